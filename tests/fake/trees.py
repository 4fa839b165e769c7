"""Entries of listings, and generators of trees: to add a shape, add a builder and its number of directories."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

FILE_SYSTEMS = ("dbfs", "workspace")
FOLDER_TYPES = ("DIRECTORY", "REPO")
Listed = dict[str, Any]  # an entry as the API shows it


class Entry(NamedTuple):
    """One child of a directory; number is the object id (Workspace) or the modification time (DBFS)."""

    name: str
    type: str | None
    size: int = 0
    number: int = 0


Tree = dict[str, list[Entry]]  # by path below the home: "" is the home, "/a/b" deeper


# Entries as the APIs show them


def dbfs_file(path: str, size: Any, modification_time: Any = 1_700_000_000_000) -> Listed:
    return {"path": path, "is_dir": False, "file_size": size, "modification_time": modification_time}


def dbfs_directory(path: str) -> Listed:
    return {"path": path, "is_dir": True, "file_size": 0, "modification_time": 1_700_000_000_000}


def workspace_object(path: str, object_type: Any = "NOTEBOOK", **more: Any) -> Listed:
    """object_type None leaves the type out."""
    number = crc32(path.encode(errors="surrogatepass"))
    return {**workspace_json(path, Entry(path.rpartition("/")[2], object_type, 0, number)), **more}


def dbfs_json(path: str, entry: Entry) -> Listed:
    """A generated entry; the modification time is sometimes absent."""
    result: Listed = {"path": path, "is_dir": entry.type == "DIRECTORY", "file_size": entry.size}
    if entry.number:
        result["modification_time"] = entry.number
    return result


def workspace_json(path: str, entry: Entry) -> Listed:
    """No sizes, a language for notebooks only."""
    result: Listed = {"path": path, "object_id": entry.number, "resource_id": str(entry.number)}
    if entry.type:
        result["object_type"] = entry.type
    if entry.type == "NOTEBOOK":
        result["language"] = ("PYTHON", "SQL", "SCALA", "R")[entry.number % 4]
    if entry.type == "FILE":
        result["created_at"] = result["modified_at"] = 1_700_000_000_000 + entry.number % 1_000_000
    return result


JSON_FORMS: dict[str, Callable[[str, Entry], Listed]] = {"dbfs": dbfs_json, "workspace": workspace_json}


def entry_from_json(listed: Listed) -> Entry:
    """The entry behind a listed one of either file system."""
    name = listed.get("path", "").rpartition("/")[2]
    if "is_dir" in listed:
        return Entry(name, "DIRECTORY" if listed["is_dir"] else "FILE", listed.get("file_size", 0))
    return Entry(name, listed.get("object_type"), 0, listed.get("object_id", 0))


def type_of(listed: Listed) -> str:
    """What an object of the Workspace counts as."""
    return f"{listed.get('object_type', 'UNKNOWN')} {listed.get('language', '')}".rstrip()


def encode(value: Any) -> bytes:
    """JSON as the service sends it: UTF-8, nothing escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


# Generated trees

FILES_PER_DIRECTORY = (0, 0, 1, 2, 3, 5, 8, 30)
WORKSPACE_TYPES = ("NOTEBOOK",) * 6 + ("FILE",) * 5 + ("LIBRARY", "DASHBOARD", None)
FOLDER_WORDS = ("data", "src", "models", "old stuff", "Reports", "tmp", "2024", "ml")
FILE_NAMES = ("part-{}.parquet", "notebook {}", "export_{}.csv", "model{}.pkl", "Untitled {}", "log-{}")
AWKWARD_NAMES = (
    "with space", " leading", "trailing ", "100%", "%2F", "a+b", "a&b=c", "what?", "#1", "x;y", 'say "hi"', "it's",
    "back\\slash", "caf\u00e9", "cafe\u0301", "\U0001f600", "\u65e5\u672c\u8a9e", "tab\there", "new\nline",
    "n" * 255, "..hidden", "...", "$(x)", "`x`", "-rf", "~", "*", "dbfs:", "a:b", "<b>", "{}", "[0]", "a,b", "=1+1",
    "None", "null", "Case", "case", "Trash", "\u202eabc", "a|b", "%25", "%", "+", " ",
)  # fmt: skip


def random_file(generator: Random, file_system: str, number: int) -> Entry:
    """A file or Workspace object; number makes its name unique. Sizes are small, or several GB: beyond 32 bits."""
    name = FILE_NAMES[int(generator.random() * len(FILE_NAMES))].format(number)
    identity = int(generator.random() * 10**12)
    if file_system == "workspace":
        return Entry(name, WORKSPACE_TYPES[int(generator.random() * len(WORKSPACE_TYPES))], 0, identity)
    size = 0 if generator.random() < 0.1 else int(2 ** (generator.random() * 32.5))
    return Entry(name, "FILE", size, 0 if identity % 20 == 0 else 1_600_000_000_000 + identity // 10)


def random_folder(generator: Random, file_system: str, number: int) -> Entry:
    """A directory, in the Workspace now and then a REPO."""
    name = f"{FOLDER_WORDS[int(generator.random() * len(FOLDER_WORDS))]}_{number}"
    identity = int(generator.random() * 10**12)
    if file_system == "dbfs":
        return Entry(name, "DIRECTORY", 0, 1_600_000_000_000 + identity // 10)
    return Entry(name, "REPO" if identity % 15 == 0 else "DIRECTORY", 0, identity)


def random_tree(generator: Random, file_system: str, directories: int) -> Tree:
    """An irregular tree of so many directories: chains where the newest gets the next child, bushes elsewhere."""
    paths = [""]
    listings: Tree = {"": []}
    for number in range(1, directories):
        chained = generator.random() < 0.3
        parent = paths[-1] if chained else paths[int(generator.random() * len(paths))]
        folder = random_folder(generator, file_system, number)
        listings[parent].append(folder)
        paths.append(f"{parent}/{folder.name}")
        listings[paths[-1]] = []
    for entries in listings.values():
        files = FILES_PER_DIRECTORY[int(generator.random() * len(FILES_PER_DIRECTORY))]
        entries.extend(random_file(generator, file_system, number) for number in range(files))
    return listings


def deep_tree(generator: Random, file_system: str, directories: int) -> Tree:
    """One directory within the other; short names keep the deepest path below 8 KB."""
    listings: Tree = {}
    path = ""
    for level in range(directories):
        entries = [random_file(generator, file_system, level)] if level % 3 == 0 else []
        listings[path] = entries
        if level + 1 < directories:
            name = "abcdefg"[level % 7] * (1 + level % 3)
            entries.append(Entry(name, "DIRECTORY", 0, level + 1))
            path = f"{path}/{name}"
    return listings


def awkward_tree(generator: Random, file_system: str, _: int) -> Tree:
    """Directories whose names need care in a URL, in JSON or on a terminal, each with awkward files in it."""
    listings = {"": [Entry(name, "DIRECTORY", 0, 1 + number) for number, name in enumerate(AWKWARD_NAMES)]}
    for position, name in enumerate(AWKWARD_NAMES):
        others = [AWKWARD_NAMES[(position + step) % len(AWKWARD_NAMES)] for step in (1, 2)]
        files = [random_file(generator, file_system, 0)._replace(name=other) for other in others]
        listings[f"/{name}"] = [Entry(name, "DIRECTORY", 0, 100 + position), *files]
        listings[f"/{name}/{name}"] = []
    return listings


def empty_tree(*_: Any) -> Tree:
    return {"": []}


BUILDERS = {"deep": deep_tree, "awkward": awkward_tree, "empty": empty_tree}  # others: random_tree
FIXED_COUNTS = {  # shape -> directories in DBFS and in the Workspace, home included
    "empty": (1, 1),
    "none": (0, 0),
    "giant": (1_200, 1_800),
    "deep": (100, 500),
    "awkward": (1 + 2 * len(AWKWARD_NAMES),) * 2,
    "case": (8, 12),
}
SHAPES = ("mixed", "small", "dbfs", "workspace", "bench", *FIXED_COUNTS)


def mixed_shape(index: int) -> str:
    """The shape of a user in a mixed workspace; the four special ones exist once, however many users there are."""
    special = {17: "giant", 23: "deep", 29: "awkward", 35: "case"}
    return special.get(index) or {4: "dbfs", 6: "workspace", 8: "empty", 9: "none"}.get(index % 10, "small")


def directory_counts(shape: str, seed: int, user_name: str) -> tuple[int, int]:
    """How many directories the user has in DBFS and in the Workspace, home included."""
    if shape in FIXED_COUNTS:
        return FIXED_COUNTS[shape]
    number = crc32(f"{seed}:{user_name}".encode())
    total = 1 + number % 40
    in_dbfs = {"dbfs": total, "workspace": 0}.get(shape, (number >> 8) % (total + 1))
    return in_dbfs, total - in_dbfs


# Benchmark trees: computed from the path, nothing stored

BENCH_TYPES = [name for name in WORKSPACE_TYPES if name]  # others are listed one by one, which is slow with 50,000


class Bench(NamedTuple):
    """A regular tree: directory k has the children 10k+1 to 10k+10, as far as they exist."""

    file_system: str
    directories: int
    files: int
    salt: int

    def number(self, relative: str) -> int | None:
        """Which directory a path is, or None when there is no such one."""
        number = 0
        for name in relative.split("/")[1:]:
            if len(name) != 2 or name[0] != "d" or name[1] not in "0123456789":
                return None
            number = 10 * number + int(name[1]) + 1
        return number if number < self.directories else None

    def file(self, directory: int, file: int) -> Entry:
        """Sizes in DBFS are any value below 5 GB."""
        number = 1 + directory * self.files + file
        if self.file_system == "workspace":
            return Entry(f"f{file}", BENCH_TYPES[(directory + file) % len(BENCH_TYPES)], 0, number)
        size = (self.salt + directory * 2_654_435_761 + file * 40_503) % 5_000_000_000
        return Entry(f"f{file}", "FILE", size, 1_600_000_000_000 + number)

    def children(self, relative: str) -> list[Entry] | None:
        """The entries of a directory of the tree, or None."""
        number = self.number(relative)
        if number is None:
            return None
        first = 10 * number + 1
        folders = range(first, min(first + 10, self.directories))
        entries = [Entry(f"d{child - first}", "DIRECTORY", 0, child) for child in folders]
        return entries + [self.file(number, file) for file in range(self.files)]
