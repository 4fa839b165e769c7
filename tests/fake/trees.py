"""Entries of listings, and trees of them: generated ones, computed ones, and the truth about each."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

FILE_SYSTEMS = ("dbfs", "workspace")
FOLDER_TYPES = ("DIRECTORY", "REPO")
ESTIMATED_OBJECT_SIZE = 10_000  # what the inventory assumes for a Workspace object, which has no size


# Entries of a listing


class Entry(NamedTuple):
    """One child of a directory; number is the object id (Workspace) or the modification time (DBFS)."""

    name: str
    type: str | None
    size: int = 0
    number: int = 0


def dbfs_file(path, size, modification_time=1_700_000_000_000):
    """A file as dbfs/list shows it."""
    return {"path": path, "is_dir": False, "file_size": size, "modification_time": modification_time}


def dbfs_directory(path):
    """A directory as dbfs/list shows it."""
    return {"path": path, "is_dir": True, "file_size": 0, "modification_time": 1_700_000_000_000}


def workspace_object(path, object_type="NOTEBOOK", **more):
    """An object as workspace/list shows it; object_type None leaves the type out."""
    number = crc32(path.encode(errors="surrogatepass"))
    return {**workspace_json(path, Entry(path.rpartition("/")[2], object_type, 0, number)), **more}


def dbfs_json(path, entry):
    """The answer's form of a generated DBFS entry; the modification time is sometimes absent."""
    result = {"path": path, "is_dir": entry.type == "DIRECTORY", "file_size": entry.size}
    if entry.number:
        result["modification_time"] = entry.number
    return result


def workspace_json(path, entry):
    """The answer's form of a generated Workspace entry: no sizes, a language for notebooks only."""
    result = {"path": path, "object_id": entry.number, "resource_id": str(entry.number)}
    if entry.type:
        result["object_type"] = entry.type
    if entry.type == "NOTEBOOK":
        result["language"] = ("PYTHON", "SQL", "SCALA", "R")[entry.number % 4]
    if entry.type == "FILE":
        result["created_at"] = result["modified_at"] = 1_700_000_000_000 + entry.number % 1_000_000
    return result


JSON_FORMS = {"dbfs": dbfs_json, "workspace": workspace_json}


def encode(value):
    """JSON as the service sends it: UTF-8, nothing escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def entry_from_json(listed):
    """The entry behind a listed dictionary of either file system."""
    name = listed.get("path", "").rpartition("/")[2]
    if "is_dir" in listed:
        return Entry(name, "DIRECTORY" if listed["is_dir"] else "FILE", listed.get("file_size", 0))
    return Entry(name, listed.get("object_type"))


# Generated trees: a dictionary from the path below the home ("" is the home, "/a/b" deeper) to its entries

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


def random_size(generator):
    """Mostly small, at times several GB, so that sums do not fit into 32 bits."""
    return 0 if generator.random() < 0.1 else int(2 ** (generator.random() * 32.5))


def random_file(generator, file_system, number):
    """A file or Workspace object; number makes its name unique in its directory."""
    name = FILE_NAMES[int(generator.random() * len(FILE_NAMES))].format(number)
    identity = int(generator.random() * 10**12)
    if file_system == "dbfs":
        modified = 0 if identity % 20 == 0 else 1_600_000_000_000 + identity // 10
        return Entry(name, "FILE", random_size(generator), modified)
    return Entry(name, WORKSPACE_TYPES[int(generator.random() * len(WORKSPACE_TYPES))], 0, identity)


def random_folder(generator, file_system, number):
    """A directory, in the Workspace now and then a REPO."""
    name = f"{FOLDER_WORDS[int(generator.random() * len(FOLDER_WORDS))]}_{number}"
    identity = int(generator.random() * 10**12)
    if file_system == "dbfs":
        return Entry(name, "DIRECTORY", 0, 1_600_000_000_000 + identity // 10)
    return Entry(name, "REPO" if identity % 15 == 0 else "DIRECTORY", 0, identity)


def random_tree(generator, file_system, directories):
    """An irregular tree of so many directories: chains where the newest gets the next child, bushes elsewhere."""
    paths = [""]
    listings = {"": []}
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


def deep_tree(generator, file_system, directories):
    """One directory within the other; short names keep the deepest path below 8 KB."""
    listings = {}
    path = ""
    for level in range(directories):
        entries = [random_file(generator, file_system, level)] if level % 3 == 0 else []
        listings[path] = entries
        if level + 1 < directories:
            name = "abcdefg"[level % 7] * (1 + level % 3)
            entries.append(Entry(name, "DIRECTORY", 0, level + 1))
            path = f"{path}/{name}"
    return listings


def awkward_tree(generator, file_system, _):
    """Directories whose names need care in a URL, in JSON or on a terminal, each with awkward files in it."""
    listings = {"": [Entry(name, "DIRECTORY", 0, 1 + i) for i, name in enumerate(AWKWARD_NAMES)]}
    for position, name in enumerate(AWKWARD_NAMES):
        others = [AWKWARD_NAMES[(position + step) % len(AWKWARD_NAMES)] for step in (1, 2)]
        files = [random_file(generator, file_system, 0)._replace(name=other) for other in others]
        listings[f"/{name}"] = [Entry(name, "DIRECTORY", 0, 100 + position), *files]
        listings[f"/{name}/{name}"] = []
    return listings


def empty_tree(generator, file_system, _):
    """A home with nothing in it."""
    return {"": []}


BUILDERS = {"deep": deep_tree, "awkward": awkward_tree, "empty": empty_tree}
SHAPES = ("mixed", "small", "dbfs", "workspace", "empty", "none", "giant", "deep", "awkward", "case", "bench")
SPECIAL_SHAPES = {17: "giant", 23: "deep", 29: "awkward", 35: "case"}
SHAPES_BY_LAST_DIGIT = {4: "dbfs", 6: "workspace", 8: "empty", 9: "none"}
FIXED_COUNTS = {
    "empty": (1, 1),
    "none": (0, 0),
    "giant": (1_200, 1_800),
    "deep": (100, 500),
    "awkward": (1 + 2 * len(AWKWARD_NAMES),) * 2,
    "case": (8, 12),
}


def mixed_shape(index):
    """The shape of a user in a mixed workspace; the four special ones exist once, however many users there are."""
    return SPECIAL_SHAPES.get(index) or SHAPES_BY_LAST_DIGIT.get(index % 10, "small")


def directory_counts(shape, seed, user_name):
    """How many directories the user has in DBFS and in the Workspace, home included."""
    if shape in FIXED_COUNTS:
        return FIXED_COUNTS[shape]
    number = crc32(f"{seed}:{user_name}".encode())
    total = 1 + number % 40
    in_dbfs = (number >> 8) % (total + 1)
    return {"dbfs": (total, 0), "workspace": (0, total), "small": (in_dbfs, total - in_dbfs)}[shape]


# Benchmark trees: computed from the path, nothing stored


class Bench(NamedTuple):
    """A regular tree: directory k has the children k*fan_out+1 to k*fan_out+fan_out, as far as they exist."""

    file_system: str
    directories: int
    files: int
    fan_out: int
    salt: int


def bench_number(bench, relative):
    """Which directory a path is, or None when there is no such one."""
    number = 0
    for name in relative.split("/")[1:]:
        digits = name[1:]
        if name[:1] != "d" or not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and digits != "0"):
            return None
        if int(digits) >= bench.fan_out:
            return None
        number = number * bench.fan_out + int(digits) + 1
    return number if number < bench.directories else None


def bench_size(bench, directory, file):
    """The size of a file in DBFS: any value below 5 GB."""
    return (bench.salt + directory * 2_654_435_761 + file * 40_503) % 5_000_000_000


def bench_file(bench, directory, file):
    """One file of a directory of the tree."""
    number = 1 + directory * bench.files + file
    if bench.file_system == "dbfs":
        return Entry(f"f{file}", "FILE", bench_size(bench, directory, file), 1_600_000_000_000 + number)
    return Entry(f"f{file}", WORKSPACE_TYPES[(directory + file) % len(WORKSPACE_TYPES)], 0, number)


def bench_children(bench, relative):
    """The entries of a directory of the tree, or None."""
    number = bench_number(bench, relative)
    if number is None:
        return None
    first = number * bench.fan_out + 1
    last = min(first + bench.fan_out, bench.directories)
    entries = [Entry(f"d{child - first}", "DIRECTORY", 0, child) for child in range(first, last)]
    entries.extend(bench_file(bench, number, file) for file in range(bench.files))
    return entries


# The truth about a tree, found without HTTP


@dataclass(frozen=True)
class Truth:
    """What a complete and correct scan of one user finds."""

    username: str
    dbfs_home: bool = False
    workspace_home: bool = False
    dbfs_files: int = 0
    dbfs_bytes: int = 0
    dbfs_directories: int = 0
    workspace_objects: int = 0
    workspace_directories: int = 0
    types: Counter = field(default_factory=Counter)

    @property
    def file_count(self):
        """Files of both file systems."""
        return self.dbfs_files + self.workspace_objects

    @property
    def total_size(self):
        """Bytes of both file systems, those of the Workspace estimated."""
        return self.dbfs_bytes + ESTIMATED_OBJECT_SIZE * self.workspace_objects


class Tally(NamedTuple):
    """Sums over one tree; types counts what was listed, so the home itself is not in it."""

    directories: int = 0
    files: int = 0
    size: int = 0
    types: Counter = Counter()  # noqa: RUF012 - never changed


def tally_tree(children):
    """Walk a tree through its children function; a directory that is listed but not there counts as vanished."""
    directories = size = 0
    types = Counter()
    waiting = [""]
    while waiting:
        relative = waiting.pop()
        entries = children(relative)
        if entries is None:
            continue
        directories += 1
        for entry in entries:
            types[entry.type or "UNKNOWN"] += 1
            size += entry.size
            if entry.type in FOLDER_TYPES:
                waiting.append(f"{relative}/{entry.name}")
    files = sum(types.values()) - sum(types[folder] for folder in FOLDER_TYPES)
    return Tally(directories, files, size, types)


def tally_bench(bench):
    """The same for a benchmark tree, without its paths: a million directories take seconds, not minutes."""
    types = Counter()
    size = 0
    numbers = range(bench.files)
    for directory in range(bench.directories):
        if bench.file_system == "dbfs":
            size += sum([bench_size(bench, directory, file) for file in numbers])
        else:
            types.update([WORKSPACE_TYPES[(directory + file) % len(WORKSPACE_TYPES)] or "UNKNOWN" for file in numbers])
    files = bench.directories * bench.files
    if bench.file_system == "dbfs":
        types["FILE"] = files
    types["DIRECTORY"] = max(bench.directories - 1, 0)
    return Tally(bench.directories, files, size, +types)
