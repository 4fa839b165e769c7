"""A workspace with everything in it that is awkward, and what a right inventory of it says, found while it is built."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from random import Random
from typing import Any, NamedTuple

from tests.fake.faults import FORMS, Fault, Key
from tests.fake.server import FakeDatabricks
from tests.fake.trees import AWKWARD_NAMES, Listed, dbfs_directory, dbfs_file, type_of, workspace_object
from tests.fake.workspace import ESTIMATED_OBJECT_SIZE

REFUSED = "403 PERMISSION_DENIED: The caller may not list this path."


@dataclass
class Folder:
    """A directory: names to folders and files, which are sizes in DBFS, object_types in the Workspace.

    There an object_type may be None: such an entry has to be listed to be known for what it is.

    `denied` folders answer 403. `deleted` ones are gone when they are asked for, and then from their parent's listing.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    object_type: str | None = "DIRECTORY"
    git: bool = False
    denied: bool = False
    deleted: bool = False


class File(NamedTuple):
    """One that an inventory has to find; size in bytes (None in the Workspace), modified in ms since 1970 or None."""

    username: str
    file_system: str
    path: str
    object_type: str
    language: str
    object_id: int | None
    size: int | None
    modified: int | None


class Deletion(Fault):
    """Never fails: it takes a folder out of its parent's listing when the folder is asked for."""

    def __init__(self, listings: dict[str, list[Listed]], file_system: str, path: str):
        super().__init__("404", api=file_system, path=path)
        self.listings = listings

    def applies(self, api: str, path: Key, _: Random) -> bool:
        if (api, path) == (self.api, self.path):
            parent = str(path).rpartition("/")[0]
            self.listings[parent][:] = [entry for entry in self.listings[parent] if entry["path"] != path]
        return False


class World:
    """Homes, and of each user the files, directories, types and failures that are to be found, by file system.

    `deletions` has users and file systems that have a deleted folder: nobody can say whether it is in the types.
    """

    def __init__(self) -> None:
        self.usernames: list[str] = []
        self.files: list[File] = []
        self.faults: list[Fault] = []
        self.listings: dict[str, dict[str, list[Listed]]] = {"dbfs": {}, "workspace": {}}
        self.directories: Counter[tuple[str, str]] = Counter()
        self.types: dict[tuple[str, str], Counter[str]] = {}
        self.failures: dict[tuple[str, str], list[dict[str, str]]] = {}
        self.deletions: set[tuple[str, str]] = set()

    def add_user(
        self, username: str, dbfs: Folder | None = None, workspace: Folder | None = None, home: str | None = None
    ) -> None:
        """A user with a home for each tree that is given, under another name if `home` is."""
        self.usernames.append(username)
        for file_system, folder in (("dbfs", dbfs), ("workspace", workspace)):
            self.types[username, file_system], self.failures[username, file_system] = Counter(), []
            if folder:
                self.add_folder(username, file_system, f"/Users/{home or username}", folder)

    def add_folder(self, username: str, file_system: str, path: str, folder: Folder, found: bool = True) -> None:
        """Below a denied folder nothing is to be `found`."""
        if folder.deleted:
            self.faults.append(Deletion(self.listings[file_system], file_system, path))
            self.deletions.add((username, file_system))
            return
        if folder.denied:
            self.faults.append(Fault("403", api=file_system, path=path))
            self.failures[username, file_system].append({"path": path, "error": REFUSED})
            found = False
        self.directories[username, file_system] += found
        entries: list[Listed] = []
        self.listings[file_system][path] = entries
        for name, value in folder.entries.items():
            below = f"{path}/{name}"
            entries.append(self.entry(file_system, below, value))
            if isinstance(value, Folder):
                self.add_folder(username, file_system, below, value, found)
                if value.object_type:
                    self.types[username, file_system][value.object_type] += found and not value.deleted
            elif found:
                self.files.append(self.file(username, file_system, entries[-1]))
                self.types[username, file_system][type_of(entries[-1]) if file_system == "workspace" else "FILE"] += 1

    def entry(self, file_system: str, path: str, value: Any) -> Listed:
        """A file or folder as the listing of its parent shows it."""
        if file_system == "workspace":
            git = {"directory_info": {"is_git_folder": True}} if isinstance(value, Folder) and value.git else {}
            return workspace_object(path, value.object_type if isinstance(value, Folder) else value, **git)
        return dbfs_directory(path) if isinstance(value, Folder) else dbfs_file(path, value, 1_600_000_000_000 + value)

    def file(self, username: str, file_system: str, entry: Listed) -> File:
        path = entry["path"]
        if file_system == "dbfs":
            return File(username, file_system, path, "FILE", "", None, entry["file_size"], entry["modification_time"])
        object_type = entry.get("object_type", "UNKNOWN")
        more = entry.get("language", ""), entry["object_id"], None, entry.get("modified_at")
        return File(username, file_system, path, object_type, *more)

    def server(self, *faults: Fault, **settings: Any) -> FakeDatabricks:
        """The workspace; `faults` beside those of denied and deleted folders."""
        server = FakeDatabricks(users=self.usernames, shape="none", forms=FORMS, **settings)
        for file_system, listings in self.listings.items():
            server.workspace.explicit[file_system] = listings  # which deletions change
            server.workspace.explicit_homes[file_system] = {path.split("/")[2] for path in listings}
        server.change(faults=[*self.faults, *faults])
        return server

    def details(self, username: str) -> dict[str, dict[str, Any]]:
        """By file system: what --details has to say of a user."""
        result = {}
        for file_system in ("dbfs", "workspace"):
            key = username, file_system
            files = [file for file in self.files if (file.username, file.file_system) == key]
            result[file_system] = {
                "files": len(files),
                "bytes": sum(ESTIMATED_OBJECT_SIZE if file.size is None else file.size for file in files),
                "directories": self.directories[key],
                "types": dict(+self.types[key]),
                "failures": self.failures[key],
            }
        return result

    def file_rows(self) -> list[tuple[str, ...]]:
        """What --files has to say, as text, sorted; half of a surrogate pair is shown as what it is."""
        rows = []
        for file in self.files:
            numbers = ["" if number is None else str(number) for number in (file.object_id, file.size)]
            modified = ""
            if file.modified:
                modified = f"{datetime.fromtimestamp(file.modified // 1000, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
            path = file.path.encode("utf-8", "backslashreplace").decode()
            rows.append((file.username, file.file_system, path, file.object_type, file.language, *numbers, modified))
        return sorted(rows)

    def row(self, username: str) -> dict[str, str]:
        """The user's row of the CSV, as text."""
        details = self.details(username)
        files = sum(found["files"] for found in details.values())
        size = sum(found["bytes"] for found in details.values())
        sources = [name for name, found in details.items() if found["files"]]
        failures = [f"{name}:{at['path']}: {at['error']}" for name in details for at in details[name]["failures"]]
        status = "success" if files else "empty"
        if failures:
            status = "partial" if any(found["directories"] for found in details.values()) else "error"
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return {
            "username": username,
            "file_count": str(files),
            "total_size": str(size),
            "total_size_gb": f"{size / 1024**3:.4f}",
            "status": status,
            "file_source": "both" if len(sources) == 2 else [*sources, "none"][0],
            "error": f"{failures[0]}{more}" if failures else "",
        }


def awkward_folder(file: Any) -> Folder:
    """Directories whose names need care in a URL, in JSON or on a terminal, each with an awkward file in it."""
    return Folder({name: Folder({name: file, "within": Folder()}) for name in AWKWARD_NAMES})


def deep_folder(file: Any, depth: int) -> Folder:
    """Directories in directories, a file in each."""
    folder = Folder({"file": file})
    for _ in range(depth):
        folder = Folder({"file": file, "deeper": folder})
    return folder


def make_world(bulk: int = 4, directories: int = 10) -> World:
    """Users with one oddity each, and `bulk` users with so many directories in each file system."""
    world = World()
    types = ("FILE", "LIBRARY", "DASHBOARD", "SOMETHING_NEW", None)
    objects = Folder({f"a {object_type}": object_type for object_type in types})
    world.add_user("plain@example.com", Folder({"a": Folder({"one": 2**40, "two": 1}), "top": 5, "none": Folder()}),
                   Folder({"n": "NOTEBOOK", "w": objects, "untyped": Folder({"n": "NOTEBOOK"}, None)}))  # fmt: skip
    world.add_user("awk ward+o'neil@example.com", awkward_folder(3), awkward_folder("FILE"))
    world.add_user("git@example.com", None, Folder({
        "repo": Folder({"src": Folder({"a.py": "FILE", "n": "NOTEBOOK"})}, "REPO"),
        "folder": Folder({"b.py": "FILE", "src": Folder({"c.py": "FILE"})}, git=True),
    }))  # fmt: skip
    world.add_user("denied@example.com", Folder({"open": Folder({"f": 7}), "shut": Folder({"lost": 1}, denied=True)}),
                   Folder({"n": "NOTEBOOK", "shut": Folder({"lost": "FILE"}, denied=True)}))  # fmt: skip
    world.add_user("denied.home@example.com", None, Folder({"lost": "FILE"}, denied=True))
    world.add_user("deleted@example.com", Folder({"f": 9, "gone": Folder(deleted=True)}),
                   Folder({"n": "NOTEBOOK", "gone": Folder(deleted=True)}))  # fmt: skip
    world.add_user("other.case@example.com", Folder({"f": 11}), Folder({"n": "NOTEBOOK"}), "Other.Case@Example.com")
    world.add_user("deep@example.com", deep_folder(1, 30), deep_folder("FILE", 30))
    world.add_user("dbfs@example.com", Folder({"f": 0}))
    world.add_user("empty@example.com", Folder(), Folder({"w": Folder()}))
    world.add_user("none@example.com")
    for number in range(bulk):
        folders = range(directories)
        world.add_user(f"bulk{number}@example.com", Folder({f"d{at}": Folder({f"f{at}": at}) for at in folders}),
                       Folder({f"d{at}": Folder({"n": "NOTEBOOK", "f": "FILE"}) for at in folders}))  # fmt: skip
    return world


def passing_faults() -> list[Fault]:
    """Of all kinds, with and without Retry-After: after one or two of them each of these folders can be listed."""
    return [
        Fault("500", api="dbfs", path="/Users/plain@example.com/a", times=2),
        Fault("503", api="workspace", path="/Users/plain@example.com", times=1),
        Fault("503", api="dbfs", path="/Users/bulk0@example.com", times=1, headers={"Retry-After": "1"}),
        Fault("429", api="dbfs", path="/Users/bulk1@example.com/d1", times=1),
        Fault("429", api="workspace", path="/Users/bulk2@example.com", times=1, headers={"Retry-After": "1"}),
        Fault("reset", api="dbfs", path="/Users/bulk2@example.com/d3", times=1),
        Fault("truncated", api="workspace", path="/Users/bulk3@example.com/d2", times=1),
    ]
