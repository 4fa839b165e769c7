"""A workspace: its users, whose homes there are, what lies in them, and the truth about it, found without HTTP."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any
from zlib import crc32

from tests.fake.trees import (
    BUILDERS,
    FILE_SYSTEMS,
    FOLDER_TYPES,
    JSON_FORMS,
    SHAPES,
    Bench,
    Entry,
    Listed,
    Tree,
    directory_counts,
    encode,
    entry_from_json,
    mixed_shape,
    random_tree,
    type_of,
    workspace_json,
)

ESTIMATED_OBJECT_SIZE = 10_000  # what the inventory assumes for a Workspace object, which has no size
FIRST_NAMES = ("anna", "ben", "chloe", "david", "emma", "felix", "grace", "hugo", "ines", "jan",
               "karin", "liam", "mia", "noah", "olga", "paul", "rosa", "sam", "tara", "uwe")  # fmt: skip
LAST_NAMES = ("berg", "costa", "dubois", "evans", "fischer", "garcia", "huber", "ito", "jensen", "kowalski",
              "lopez", "meyer", "novak", "olsen", "petrov", "quinn", "rossi", "smith", "tanaka", "urban",
              "vogel", "weber", "xu", "young", "zimmer")  # fmt: skip
ODD_DISPLAY_NAMES = {3: "=SUM(1+1)", 7: "+49 Anna", 11: 'Berg, Anna "Ann"', 14: "Zo\u00eb \u0141uk\u00e1\u0161",
                     16: "-Ben"}  # fmt: skip


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


def other_case(user_name: str) -> str:
    return user_name.lower() if user_name != user_name.lower() else user_name.title()


@dataclass
class Truth:
    """What a complete and correct scan of one user finds; types are those of the Workspace."""

    username: str
    dbfs_home: bool = False
    workspace_home: bool = False
    dbfs_files: int = 0
    dbfs_bytes: int = 0
    dbfs_directories: int = 0
    workspace_objects: int = 0
    workspace_directories: int = 0
    types: Counter[str] = field(default_factory=Counter)

    @property
    def file_count(self) -> int:
        return self.dbfs_files + self.workspace_objects

    @property
    def total_size(self) -> int:
        """Bytes of both file systems, those of the Workspace estimated."""
        return self.dbfs_bytes + ESTIMATED_OBJECT_SIZE * self.workspace_objects


Children = Callable[[str], list[Entry] | None]


def tally(children: Children) -> tuple[int, int, int, Counter[str]]:
    """Directories, files, bytes and types below a home; a directory that is listed but not there has vanished."""
    directories = size = 0
    types: Counter[str] = Counter()
    waiting = [""]
    while waiting:
        relative = waiting.pop()
        entries = children(relative)
        if entries is None:
            continue
        directories += 1
        for entry in entries:
            types[type_of(workspace_json("", entry))] += 1
            size += entry.size
            if entry.type in FOLDER_TYPES:
                waiting.append(f"{relative}/{entry.name}")
    return directories, types.total() - sum(types[folder] for folder in FOLDER_TYPES), size, types


class Workspace:
    """The users and their trees: everything that can be listed, nothing of HTTP.

    users is a number, or user names and SCIM dictionaries; shapes overrides shape by index. directories,
    files_per_directory and file_systems are of the shape bench: so many directories per user, shared out.
    """

    def __init__(
        self,
        users: int | Iterable[str | dict[str, Any]] = 50,
        seed: int = 1,
        shape: str = "mixed",
        shapes: dict[int, str] | None = None,
        directories: int = 40,
        files_per_directory: int = 5,
        file_systems: tuple[str, ...] = FILE_SYSTEMS,
    ):
        self.seed = seed
        self.shape = shape
        self.shapes = dict(shapes or {})
        unknown = {shape, *self.shapes.values()} - set(SHAPES)
        if unknown:
            raise ValueError(f"unknown shape {sorted(unknown)}; there are {', '.join(SHAPES)}")
        self.bench = (directories, files_per_directory, file_systems)
        self.user_names: list[str] = []
        self.user_fields: dict[int, dict[str, Any]] = {}
        self.home_indexes: dict[str, int] = {}
        self.explicit: dict[str, dict[str, list[Listed]]] = {name: {} for name in FILE_SYSTEMS}
        self.explicit_homes: dict[str, set[str]] = {name: set() for name in FILE_SYSTEMS}
        self.homes_bodies: dict[str, bytes] = {}
        self.stored_tree = lru_cache(500)(self.build)
        for user in map(make_user_name, range(users)) if isinstance(users, int) else users:
            self.add_user(user)

    def add_user(self, user: str | dict[str, Any], shape: str | None = None, **scim_fields: Any) -> None:
        """A user by name or SCIM dictionary; scim_fields replace what would be made up."""
        index = len(self.user_names)
        if isinstance(user, dict):
            scim_fields = {**user, **scim_fields}
            user = str(user.get("userName", f"user{index}"))
        if shape:
            self.shapes[index] = shape
        self.user_fields[index] = scim_fields
        self.user_names.append(user)
        self.home_indexes[self.home_name(index)] = index
        self.homes_bodies.clear()

    def add_tree(self, file_system: str, listings: dict[str, list[Listed]]) -> None:
        """Listings as given: path -> entries. A home in it replaces the generated one of that file system.

        A directory with a key and no entries is empty; one that is listed but has no key is missing (404).
        """
        for path, entries in listings.items():
            self.explicit[file_system][path] = list(entries)
            parts = path.split("/", 3)
            if len(parts) > 2 and parts[1] == "Users" and parts[2]:
                self.explicit_homes[file_system].add(parts[2])
        self.homes_bodies.clear()

    # Users

    def shape_of(self, index: int) -> str:
        shape = self.shapes.get(index, self.shape)
        return mixed_shape(index) if shape == "mixed" else shape

    def home_name(self, index: int) -> str:
        """The user name, unless the shape is `case`."""
        name = self.user_names[index]
        return other_case(name) if self.shape_of(index) == "case" else name

    def scim_user(self, index: int) -> dict[str, Any]:
        """Some display names would run as a formula in a spreadsheet, or break a careless CSV."""
        name = self.user_names[index]
        first, _, last = name.partition("@")[0].partition(".")
        return {
            "id": str(4_000_000_000_000_000 + index * 1_009),
            "userName": name,
            "displayName": ODD_DISPLAY_NAMES.get(index % 20, f"{first.title()} {last.title()}"),
            "active": crc32(f"{self.seed}:{index}".encode()) % 10 != 0,
            "groups": [{"display": "users", "type": "direct", "value": "100"}],
            **self.user_fields[index],
        }

    # Trees

    def bench_tree(self, index: int, file_system: str) -> Bench:
        directories, files, file_systems = self.bench
        if file_system not in file_systems:
            return Bench(file_system, 0, files, index)
        share = directories // len(file_systems)
        if file_system == file_systems[0]:
            share = directories - share * (len(file_systems) - 1)
        return Bench(file_system, share, files, index * 7_919)

    def directory_count(self, index: int, file_system: str) -> int:
        """How many directories a generated tree has; 0 when there is no home."""
        if self.shape_of(index) == "bench":
            return self.bench_tree(index, file_system).directories
        counts = directory_counts(self.shape_of(index), self.seed, self.user_names[index])
        return counts[FILE_SYSTEMS.index(file_system)]

    def build(self, index: int, file_system: str) -> Tree:
        """It depends on the seed, the user name and the shape alone."""
        generator = Random(f"{self.seed}:{self.user_names[index]}:{file_system}")
        builder = BUILDERS.get(self.shape_of(index), random_tree)
        return builder(generator, file_system, self.directory_count(index, file_system))

    def children_function(self, file_system: str, home: str) -> Children | None:
        """The function that lists below a home; None when there is no such home."""

        def explicit_children(relative: str) -> list[Entry] | None:
            listed = self.explicit[file_system].get(f"/Users/{home}{relative}")
            return None if listed is None else [entry_from_json(entry) for entry in listed]

        if home in self.explicit_homes[file_system]:
            return explicit_children
        index = self.home_indexes.get(home)
        if index is None or not self.directory_count(index, file_system):
            return None
        if self.shape_of(index) == "bench":
            return self.bench_tree(index, file_system).children
        return self.stored_tree(index, file_system).get

    def has_home(self, file_system: str, home: str) -> bool:
        if home in self.explicit_homes[file_system]:
            return f"/Users/{home}" in self.explicit[file_system]
        index = self.home_indexes.get(home)
        return index is not None and self.directory_count(index, file_system) > 0

    def homes(self, file_system: str, only: str | None = None) -> list[Listed]:
        """The listing of /Users; only limits it to one home."""
        form = JSON_FORMS[file_system]
        names = [*self.home_indexes, *sorted(self.explicit_homes[file_system] - self.home_indexes.keys())]
        shown = [name for name in names if only in (None, name) and self.has_home(file_system, name)]
        return [form(f"/Users/{name}", Entry(name, "DIRECTORY", 0, 1 + number)) for number, name in enumerate(shown)]

    def homes_body(self, file_system: str, key: str) -> bytes:
        """The encoded listing of /Users, kept because it is large where there are many users."""
        if file_system not in self.homes_bodies:
            self.homes_bodies[file_system] = encode({key: self.homes(file_system)})
        return self.homes_bodies[file_system]

    def listing(self, file_system: str, path: str) -> list[Listed] | None:
        """A directory's entries, a file as its own only entry, or None where there is neither."""
        form = JSON_FORMS[file_system]
        explicit = self.explicit[file_system]
        if path in explicit:
            return explicit[path]
        if path == "/":
            return [form("/Users", Entry("Users", "DIRECTORY", 0, 1))]
        if path == "/Users":
            return self.homes(file_system)
        home, slash, rest = path.removeprefix("/Users/").partition("/")
        children = self.children_function(file_system, home)
        if home in self.explicit_homes[file_system] or children is None or not path.startswith("/Users/"):
            siblings = explicit.get(path.rpartition("/")[0], [])
            alone = [entry for entry in siblings if entry.get("path") == path]
            return alone[:1] if alone and entry_from_json(alone[0]).type not in FOLDER_TYPES else None
        entries = children(slash + rest)
        if entries is not None:
            return [form(f"{path}/{entry.name}", entry) for entry in entries]
        parent, _, name = (slash + rest).rpartition("/")
        found = [form(path, entry) for entry in children(parent) or () if entry.name == name]
        return found or None

    def truth(self, username: str, home: str | None = None) -> Truth:
        """What a complete scan of the user finds; home is for a tree that was added under another name."""
        if home is None:
            home = username
            if username in self.user_names and not any(username in homes for homes in self.explicit_homes.values()):
                home = self.home_name(self.user_names.index(username))
        truth = Truth(username)
        for file_system in FILE_SYSTEMS:
            children = self.children_function(file_system, home)
            if children is None or not self.has_home(file_system, home):
                continue
            directories, files, size, types = tally(children)
            if file_system == "dbfs":
                truth.dbfs_home = True
                truth.dbfs_directories, truth.dbfs_files, truth.dbfs_bytes = directories, files, size
            else:
                truth.workspace_home = True
                truth.workspace_directories, truth.workspace_objects, truth.types = directories, files, types
        return truth
