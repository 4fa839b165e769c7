"""What lies in a workspace: its users, whose homes there are, and the truth about them, found without HTTP."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from zlib import crc32

from tests.fake.trees import Listed, RegularTree, dbfs_directory, dbfs_file, workspace_object

FILE_SYSTEMS = ("dbfs", "workspace")
ESTIMATED_OBJECT_SIZE = 10_000  # what the inventory assumes for a Workspace object without a size
REFUSED = "403 PERMISSION_DENIED: The caller may not list this path."
FIRST_NAMES = ("anna", "ben", "chloe", "david", "emma", "felix", "grace", "hugo", "ines", "jan",
               "karin", "liam", "mia", "noah", "olga", "paul", "rosa", "sam", "tara", "uwe")  # fmt: skip
LAST_NAMES = ("berg", "costa", "dubois", "evans", "fischer", "garcia", "huber", "ito", "jensen", "kowalski",
              "lopez", "meyer", "novak", "olsen", "petrov", "quinn", "rossi", "smith", "tanaka", "urban",
              "vogel", "weber", "xu", "young", "zimmer")  # fmt: skip


def make_user_name(index: int) -> str:
    """A user name, the same for an index every time; some of them are awkward."""
    first = FIRST_NAMES[index % len(FIRST_NAMES)]
    last = LAST_NAMES[index // len(FIRST_NAMES) % len(LAST_NAMES)]
    last += str(index // (len(FIRST_NAMES) * len(LAST_NAMES)) or "")
    return {
        5: f"{first}.{last}+lab@example.com",
        8: f"{first}.o'{last}@example.com",
        12: f"{first.title()}.{last.title()}@Example.com",
        19: f"{first}.{last}\u00e9@example.com",
    }.get(index % 23, f"{first}.{last}@example.com")


@dataclass
class Folder:
    """A directory to be made: names to folders and files, which are sizes in DBFS, object_types in the Workspace.

    An object_type None has to be listed to be known for what it is. `denied` folders answer 403. `deleted` ones are
    gone when they are asked for, and then from their parent's listing.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    object_type: str | None = "DIRECTORY"
    denied: bool = False
    deleted: bool = False


def listed(file_system: str, path: str, value: Any) -> Listed:
    """A file or Folder as the listing of its parent shows it."""
    if file_system == "dbfs":
        return dbfs_directory(path) if isinstance(value, Folder) else dbfs_file(path, value, 1_600_000_000_000 + value)
    return workspace_object(path, value.object_type if isinstance(value, Folder) else value)


@dataclass
class Found:
    """What a complete scan finds of one user in one file system."""

    files: int = 0
    bytes: int = 0
    directories: int = 0
    types: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Truth:
    """What a complete and correct scan of one user finds."""

    username: str
    dbfs: Found
    workspace: Found

    @property
    def file_count(self) -> int:
        return self.dbfs.files + self.workspace.files

    @property
    def total_size(self) -> int:
        return self.dbfs.bytes + self.workspace.bytes

    @property
    def row(self) -> dict[str, str]:
        """The user's row of the CSV, as text."""
        found = {name: getattr(self, name) for name in FILE_SYSTEMS}
        sources = [name for name in FILE_SYSTEMS if found[name].files]
        failures = [f"{name}:{at['path']}: {at['error']}" for name in FILE_SYSTEMS for at in found[name].failures]
        status = "success" if self.file_count else "empty"
        if failures:
            status = "partial" if self.dbfs.directories or self.workspace.directories else "error"
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return {
            "username": self.username,
            "file_count": str(self.file_count),
            "total_size": str(self.total_size),
            "total_size_gb": f"{self.total_size / 1024**3:.4f}",
            "status": status,
            "file_source": "both" if len(sources) == 2 else [*sources, "none"][0],
            "error": f"{failures[0]}{more}" if failures else "",
        }


class World:
    """The users and their trees: everything that can be listed.

    users is a number, or user names and SCIM dictionaries; shapes overrides shape by index. directories,
    files_per_directory and file_systems are of the shape bench: so many directories per user, shared out.
    """

    def __init__(
        self, users: int | Iterable[str | dict[str, Any]] = (), shape: str = "none",
        shapes: dict[int, str] | None = None, directories: int = 40, files_per_directory: int = 5,
        file_systems: tuple[str, ...] = FILE_SYSTEMS,
    ):  # fmt: skip
        self.shape, self.shapes = shape, dict(shapes or {})
        self.bench = (directories, files_per_directory, file_systems)
        self.usernames: list[str] = []
        self.scim_fields: list[dict[str, Any]] = []
        self.shape_of: dict[str, str] = {}
        self.home_of: dict[str, str] = {}  # of users whose home has another name than they
        self.explicit: dict[str, dict[str, list[Listed]]] = {name: {} for name in FILE_SYSTEMS}
        self.explicit_homes: dict[str, set[str]] = {name: set() for name in FILE_SYSTEMS}
        self.denied: set[tuple[str, str]] = set()  # file system and path
        self.deleted: set[tuple[str, str]] = set()
        for user in map(make_user_name, range(users)) if isinstance(users, int) else users:
            self.add_user(user)

    def add_user(
        self, user: str | dict[str, Any], dbfs: Folder | None = None, workspace: Folder | None = None,
        home: str | None = None, shape: str | None = None, **scim_fields: Any,
    ) -> None:  # fmt: skip
        """A user by name or SCIM dictionary, whose fields replace what would be made up.

        With a home for each tree that is given, under another name if `home` is.
        """
        index = len(self.usernames)
        if isinstance(user, dict):
            scim_fields = {**user, **scim_fields}
            user = str(user.get("userName", f"user{index}"))
        shape = shape or self.shapes.get(index, self.shape)
        mixed = {4: "dbfs", 6: "workspace", 8: "empty", 9: "none"}.get(index % 10, "small") if index != 17 else "giant"
        self.shape_of[user] = mixed if shape == "mixed" else shape
        self.scim_fields.append(scim_fields)
        self.usernames.append(user)
        self.home_of[user] = home or user
        for file_system, folder in (("dbfs", dbfs), ("workspace", workspace)):
            if folder:
                self.add_folder(file_system, f"/Users/{home or user}", folder)

    def add_folder(self, file_system: str, path: str, folder: Folder) -> None:
        for paths, applies in ((self.denied, folder.denied), (self.deleted, folder.deleted)):
            if applies:
                paths.add((file_system, path))
        below = {f"{path}/{name}": value for name, value in folder.entries.items()}
        self.add_tree(file_system, {path: [listed(file_system, *item) for item in below.items()]})
        for name, value in below.items():
            if isinstance(value, Folder):
                self.add_folder(file_system, name, value)

    def add_tree(self, file_system: str, listings: dict[str, list[Listed]]) -> None:
        """Listings as given: path -> entries. A home in it replaces the generated one of that file system.

        A directory with a key and no entries is empty; one that is listed but has no key is missing (404).
        """
        for path, entries in listings.items():
            self.explicit[file_system][path] = list(entries)
            parts = path.split("/", 3)
            if len(parts) > 2 and parts[1] == "Users" and parts[2]:
                self.explicit_homes[file_system].add(parts[2])

    def scim_user(self, index: int) -> dict[str, Any]:
        name = self.usernames[index]
        return {
            "id": str(4_000_000_000_000_000 + index * 1_009),
            "userName": name,
            "displayName": name.partition("@")[0].replace(".", " ").title(),
            "active": crc32(f"1:{index}".encode()) % 10 != 0,
            **self.scim_fields[index],
        }

    def tree(self, file_system: str, home: str) -> RegularTree:
        """The generated home of that name; without directories where there is none."""
        number = crc32(f"1:{home}".encode(errors="surrogatepass"))
        total, (directories, files, file_systems) = 1 + number % 40, self.bench
        in_dbfs = (number >> 8) % (total + 1)
        share = directories // len(file_systems)
        shape = self.shape_of.get(home, "none") if home not in self.explicit_homes[file_system] else "none"
        counts = {
            "small": (in_dbfs, total - in_dbfs),
            "dbfs": (total, 0),
            "workspace": (0, total),
            "bench": [(file_systems[0] == name) * (directories - share * len(file_systems))
                      + (name in file_systems) * share for name in FILE_SYSTEMS],
            "empty": (1, 1),
            "giant": (1_200, 1_800),
            "none": (0, 0),
        }[shape]  # fmt: skip
        each = {"bench": files, "empty": 0}.get(shape)
        count = counts[FILE_SYSTEMS.index(file_system)]
        return RegularTree(file_system, count, each, number)

    def homes(self, file_system: str) -> list[Listed]:
        """The listing of /Users."""
        explicit = {home for home in self.explicit_homes[file_system] if f"/Users/{home}" in self.explicit[file_system]}
        names = [name for name in self.shape_of if name in explicit or self.tree(file_system, name).directories]
        return [listed(file_system, f"/Users/{name}", Folder()) for name in [*names, *sorted(explicit - set(names))]]

    def listing(self, file_system: str, path: str) -> list[Listed] | None:
        """A directory's entries, a file as its own only entry, or None where there is neither."""
        explicit = self.explicit[file_system]
        if path in explicit:
            return explicit[path]
        if path == "/":
            return [listed(file_system, "/Users", Folder())]
        if path == "/Users":
            return self.homes(file_system)
        parent = path.rpartition("/")[0]
        if not path.startswith("/Users/") or parent == "/Users" and not self.shape_of.get(path[7:]):
            siblings = explicit.get(parent, [])
        else:
            home, slash, below = path[7:].partition("/")
            entries = self.tree(file_system, home).listing(path, slash + below)
            if entries is not None or not slash:
                return entries
            siblings = self.listing(file_system, parent) or []
        alone = [entry for entry in siblings if entry.get("path") == path and not self.is_folder(file_system, entry)]
        return alone[:1] or None

    def take(self, file_system: str, path: str) -> list[Listed] | None:
        """A listing that is asked for: a deleted folder is gone then, also from its parent's listing."""
        if (file_system, path) in self.deleted:
            siblings = self.explicit[file_system][path.rpartition("/")[0]]
            siblings[:] = [entry for entry in siblings if entry["path"] != path]
            return None
        return self.listing(file_system, path)

    def is_folder(self, file_system: str, entry: Listed) -> bool:
        """One without a type is a folder if it has a listing."""
        if file_system == "dbfs":
            return bool(entry.get("is_dir"))
        return entry.get("object_type", "DIRECTORY" if entry.get("path") in self.explicit[file_system] else "") in (
            "DIRECTORY", "REPO")  # fmt: skip

    def walk(self, file_system: str, home: str) -> Iterator[tuple[str, list[Listed] | None]]:
        """Each directory from a home on that is there, and its entries, None for one that may not be listed."""
        waiting = [f"/Users/{home}"]
        while waiting:
            path = waiting.pop()
            entries = self.listing(file_system, path)
            if entries is None or (file_system, path) in self.deleted:
                continue
            if (file_system, path) in self.denied:
                yield path, None
                continue
            yield path, entries
            waiting += [entry["path"] for entry in entries if self.is_folder(file_system, entry)]

    def found(self, file_system: str, home: str) -> Found:
        found = Found()
        for path, entries in self.walk(file_system, home):
            if entries is None:
                found.failures.append({"path": path, "error": REFUSED})
                continue
            found.directories += 1
            for entry in entries:
                folder = self.is_folder(file_system, entry)
                if file_system == "dbfs" or not folder or entry.get("object_type"):
                    found.types[type_of(entry)] += 1
                if not folder:
                    size = entry.get("file_size", entry.get("size"))
                    found.files += 1
                    found.bytes += ESTIMATED_OBJECT_SIZE if size is None else size
        return found

    def truth(self, username: str, home: str | None = None) -> Truth:
        """What a complete scan of the user finds; home is for a tree that was added under another name."""
        home = home or self.home_of.get(username, username)
        return Truth(username, *(self.found(file_system, home) for file_system in FILE_SYSTEMS))

    def file_rows(self) -> list[tuple[str, ...]]:
        """What --files has to say, as text, sorted; half of a surrogate pair is shown as what it is."""
        return sorted(
            (name, file_system, *file_cells(entry))
            for name in self.usernames
            for file_system in FILE_SYSTEMS
            for _, entries in self.walk(file_system, self.home_of[name])
            for entry in entries or ()
            if not self.is_folder(file_system, entry)
        )


def type_of(entry: Listed) -> str:
    """What an entry counts as: its type, and a notebook's language."""
    if "is_dir" in entry:
        return "DIRECTORY" if entry["is_dir"] else "FILE"
    return f"{entry.get('object_type', 'UNKNOWN')} {entry.get('language', '')}".rstrip()


def file_cells(entry: Listed) -> tuple[str, ...]:
    """Path, type, language, id, size and time of a file."""
    path = entry["path"].encode("utf-8", "backslashreplace").decode()
    kind, _, language = type_of(entry).partition(" ")
    size = entry.get("file_size", entry.get("size", ""))
    modified = entry.get("modification_time", entry.get("modified_at"))
    moment = datetime.fromtimestamp(modified // 1000, timezone.utc) if modified else None
    time = f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else ""
    return path, kind, language, str(entry.get("object_id", "")), str(size), time
