"""An HTTP server on loopback that answers as a Databricks workspace does: SCIM users, DBFS and Workspace listings.

From a test:

    with FakeDatabricks(users=50, latency=0.01, faults=[Fault("500", rate=0.05)]) as server:
        requests.get(server.url + "/api/2.0/dbfs/list", params={"path": "/Users"}, headers=server.headers)

As a program: `python -m tests.fake_databricks --users 50 --port 8099`. It prints its URL and its token when it is
ready. `GET /_fake/counts` and `POST /_fake/settings` are for the test that started it; they need no token.
"""

import argparse
import asyncio
import base64
import binascii
import codecs
import csv
import gzip
import json
import math
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, fields
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote
from zlib import crc32

DEFAULT_TOKEN = "dapi-fake-token"
FAMILIES = ("dbfs", "workspace", "scim")
FILE_SYSTEMS = ("dbfs", "workspace")
FOLDER_TYPES = ("DIRECTORY", "REPO")
ESTIMATED_OBJECT_SIZE = 10_000  # what the inventory assumes for a Workspace object, which has no size
CACHED_TREES = 2_000
CACHED_ENTRIES = 500_000  # about 100 MB; without it 2,000 giant trees would be cached
MAX_HEAD = 65_536
MAX_BODY = 1_000_000
USERS_URL = "/api/2.0/preview/scim/v2/Users"
SERVICE_PRINCIPALS_URL = "/api/2.0/preview/scim/v2/ServicePrincipals"
ME_URL = "/api/2.0/preview/scim/v2/Me"
CLUSTER_URL = "/api/2.1/clusters/get"
METADATA_URL = "/.well-known/databricks-config"
DISCOVERY_URL = "/oidc/.well-known/oauth-authorization-server"
TOKEN_URL = "/oidc/v1/token"
LOGIN_URLS = (METADATA_URL, DISCOVERY_URL, TOKEN_URL)
ROUTES = {"/api/2.0/dbfs/list": "dbfs", "/api/2.0/workspace/list": "workspace", USERS_URL: "scim", ME_URL: "scim",
          SERVICE_PRINCIPALS_URL: "scim", CLUSTER_URL: "clusters"}  # fmt: skip


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


# Users

FIRST_NAMES = ("anna", "ben", "chloe", "david", "emma", "felix", "grace", "hugo", "ines", "jan",
               "karin", "liam", "mia", "noah", "olga", "paul", "rosa", "sam", "tara", "uwe")  # fmt: skip
LAST_NAMES = ("berg", "costa", "dubois", "evans", "fischer", "garcia", "huber", "ito", "jensen", "kowalski",
              "lopez", "meyer", "novak", "olsen", "petrov", "quinn", "rossi", "smith", "tanaka", "urban",
              "vogel", "weber", "xu", "young", "zimmer")  # fmt: skip

ODD_DISPLAY_NAMES = {
    3: "=SUM(1+1)",
    7: "+49 Anna",
    11: 'Berg, Anna "Ann"',
    14: "Zo\u00eb \u0141uk\u00e1\u0161 \u5c71\u7530",
    16: "-Ben",
}


def make_user_name(index):
    """A user name, the same for an index every time; some of them are awkward."""
    first = FIRST_NAMES[index % len(FIRST_NAMES)]
    last = LAST_NAMES[index // len(FIRST_NAMES) % len(LAST_NAMES)]
    number = str(index // (len(FIRST_NAMES) * len(LAST_NAMES)) or "")
    oddity = index % 23
    if oddity == 5:
        return f"{first}.{last}{number}+lab@example.com"
    if oddity == 8:
        return f"{first}.o'{last}{number}@example.com"
    if oddity == 12:
        return f"{first.title()}.{last.title()}{number}@Example.com"
    if oddity == 19:
        return f"{first}.{last}\u00e9{number}@example.com"
    return f"{first}.{last}{number}@example.com"


def make_home_name(kind, number):
    """The applicationId of a service principal, or the name of somebody whom SCIM does not list any more."""
    if kind == "service_principal":
        return f"{crc32(b'%d' % number):08x}-0000-4000-8000-{number:012x}"
    return make_user_name(number).replace("@", ".left@")


def make_display_name(index, user_name):
    """A display name; some would run as a formula in a spreadsheet or break a careless CSV."""
    first, _, last = user_name.partition("@")[0].partition(".")
    return ODD_DISPLAY_NAMES.get(index % 20, f"{first.title()} {last.title()}")


def other_case(user_name):
    """The same name in other letter case."""
    return user_name.lower() if user_name != user_name.lower() else user_name.title()


def repeated_index(position, page):
    """The user at a position of a list in which each page begins with the last user of the page before."""
    if position < page:
        return position
    number, offset = divmod(position - page, page)
    return page + number * (page - 1) + offset - 1


def asked_for(resource, attributes, excluded):
    """The resource with the attributes a SCIM client asked for; the id always stays."""

    def names(text):
        return {name.strip().partition(".")[0].lower() for name in text.split(",")}

    if attributes:
        wanted = names(attributes) | {"id"}
        return {key: value for key, value in resource.items() if key.lower() in wanted}
    if excluded:
        unwanted = names(excluded) - {"id"}
        return {key: value for key, value in resource.items() if key.lower() not in unwanted}
    return resource


class Workspace:
    """The users and their trees: everything that can be listed, nothing of HTTP."""

    def __init__(self, users=50, seed=1, shape="mixed", shapes=None, directories=40, files_per_directory=5,
                 fan_out=10, file_systems=FILE_SYSTEMS, service_principals=0, unlisted_homes=0):  # fmt: skip
        """users is a number, or a list of user names and SCIM dictionaries; shapes overrides shape by index.

        service_principals (with applicationId) and unlisted_homes (that SCIM shows nobody of) likewise; their indexes
        come after those of the users.
        directories, files_per_directory, fan_out and file_systems are of the shape bench: that many directories
        per user, shared out between the file systems.
        """
        self.seed = seed
        self.shape = shape
        self.shapes = dict(shapes or {})
        unknown = {shape, *self.shapes.values()} - set(SHAPES)
        if unknown or fan_out < 1:
            raise ValueError(f"unknown shape {sorted(unknown)}; there are {', '.join(SHAPES)}; fan_out is at least 1")
        self.bench = (directories, files_per_directory, fan_out, tuple(file_systems))
        self.owners = []  # of a home each, by index
        self.user_names = []
        self.indexes = {"user": [], "service_principal": [], "unlisted": []}
        self.user_fields = {}
        self.home_indexes = {}
        self.explicit = {file_system: {} for file_system in FILE_SYSTEMS}
        self.explicit_homes = {file_system: set() for file_system in FILE_SYSTEMS}
        self.cache = OrderedDict()
        self.cached_entries = 0
        self.lock = threading.RLock()
        self.homes_bodies = {}
        for user in map(make_user_name, range(users)) if isinstance(users, int) else users:
            self.add_user(user)
        for kind, more in (("service_principal", service_principals), ("unlisted", unlisted_homes)):
            for user in [make_home_name(kind, number) for number in range(more)] if isinstance(more, int) else more:
                self.add_user(user, kind=kind)

    def add_user(self, user, shape=None, kind="user", **scim_fields):
        """Add a user by name or SCIM dictionary; scim_fields replace what would be made up."""
        index = len(self.owners)
        if isinstance(user, dict):
            scim_fields = {**user, **scim_fields}
            user = user.get("userName", user.get("applicationId", f"user{index}"))
        if shape:
            self.shapes[index] = shape
        if scim_fields:
            self.user_fields[index] = scim_fields
        self.owners.append(user)
        self.indexes[kind].append(index)
        if kind == "user":
            self.user_names.append(user)
        self.home_indexes[self.home_name(index)] = index
        self.homes_bodies.clear()

    def add_tree(self, file_system, listings):
        """Add listings as given: path -> entries. A home in it replaces the generated one of that file system.

        A directory with a key and no entries is empty; one that is listed but has no key is missing (404).
        """
        for path, entries in listings.items():
            self.explicit[file_system][path] = list(entries)
            parts = path.split("/", 3)
            if len(parts) > 2 and parts[1] == "Users" and parts[2]:
                self.explicit_homes[file_system].add(parts[2])
        self.homes_bodies.clear()

    def shape_of(self, index):
        """The shape of the user with this index."""
        shape = self.shapes.get(index, self.shape)
        return mixed_shape(index) if shape == "mixed" else shape

    def home_name(self, index):
        """The name of a user's home, which is the user name unless the shape is `case`."""
        name = self.owners[index]
        return other_case(name) if self.shape_of(index) == "case" else name

    def scim_user(self, index):
        """The SCIM resource of a user."""
        name = self.owners[index]
        display_name = make_display_name(index, name)
        given, _, family = display_name.partition(" ")
        number = crc32(f"{self.seed}:{index}".encode())
        return {
            "id": str(4_000_000_000_000_000 + index * 1_009),
            "userName": name,
            "displayName": display_name,
            "active": number % 10 != 0,
            "emails": [{"value": name, "type": "work", "primary": True}],
            "name": {"givenName": given, "familyName": family},
            "groups": [{"display": "users", "type": "direct", "value": "100"}],
            "entitlements": [{"value": "workspace-access"}],
            **self.user_fields.get(index, {}),
        }

    def scim_service_principal(self, index):
        """The SCIM resource of a service principal."""
        return {
            "id": str(7_000_000_000_000_000 + index * 1_009),
            "applicationId": self.owners[index],
            "displayName": f"job {index}",
            "active": index % 5 != 0,
            "groups": [{"display": "users", "type": "direct", "value": "100"}],
            **self.user_fields.get(index, {}),
        }

    def bench_tree(self, index, file_system):
        """The benchmark tree of a user in one file system."""
        directories, files, fan_out, file_systems = self.bench
        if file_system not in file_systems:
            return Bench(file_system, 0, files, fan_out, index)
        share = directories // len(file_systems)
        if file_system == file_systems[0]:
            share = directories - share * (len(file_systems) - 1)
        return Bench(file_system, share, files, fan_out, index * 7_919)

    def directory_count(self, index, file_system):
        """How many directories a generated tree has; 0 when there is no home."""
        shape = self.shape_of(index)
        if shape == "bench":
            return self.bench_tree(index, file_system).directories
        return directory_counts(shape, self.seed, self.owners[index])[FILE_SYSTEMS.index(file_system)]

    def build(self, index, file_system):
        """Build a user's tree; it depends on the seed, the user name and the shape alone."""
        generator = random.Random(f"{self.seed}:{self.owners[index]}:{file_system}")
        builder = BUILDERS.get(self.shape_of(index), random_tree)
        return builder(generator, file_system, self.directory_count(index, file_system))

    def stored_tree(self, index, file_system):
        """A built tree, from the cache if it is there; the cache is bounded in trees and in entries."""
        key = (index, file_system)
        with self.lock:
            if key in self.cache:
                self.cache.move_to_end(key)
                return self.cache[key][0]
            tree = self.build(index, file_system)
            weight = len(tree) + sum(map(len, tree.values()))
            self.cache[key] = (tree, weight)
            self.cached_entries += weight
            while len(self.cache) > 1 and (len(self.cache) > CACHED_TREES or self.cached_entries > CACHED_ENTRIES):
                self.cached_entries -= self.cache.popitem(last=False)[1][1]
            return tree

    def explicit_children(self, file_system, home, relative):
        """The entries of a directory that was added by a test, or None."""
        listed = self.explicit[file_system].get(f"/Users/{home}{relative}")
        return None if listed is None else [entry_from_json(entry) for entry in listed]

    def children_function(self, file_system, home):
        """The function that lists below a home, path -> entries or None; None when there is no such home."""
        if home in self.explicit_homes[file_system]:
            return partial(self.explicit_children, file_system, home)
        index = self.home_indexes.get(home)
        if index is None or not self.directory_count(index, file_system):
            return None
        if self.shape_of(index) == "bench":
            return partial(bench_children, self.bench_tree(index, file_system))
        return self.stored_tree(index, file_system).get

    def has_home(self, file_system, home):
        """Whether the home exists in this file system; builds nothing."""
        if home in self.explicit_homes[file_system]:
            return f"/Users/{home}" in self.explicit[file_system]
        index = self.home_indexes.get(home)
        return index is not None and self.directory_count(index, file_system) > 0

    def homes(self, file_system, only=None):
        """The listing of /Users; only limits it to one home."""
        form = JSON_FORMS[file_system]
        names = [*self.home_indexes, *sorted(self.explicit_homes[file_system] - self.home_indexes.keys())]
        shown = [name for name in names if only in (None, name) and self.has_home(file_system, name)]
        return [form(f"/Users/{name}", Entry(name, "DIRECTORY", 0, 1 + number)) for number, name in enumerate(shown)]

    def listing(self, file_system, path):
        """A directory's entries, a file as its own only entry, or None where there is neither."""
        explicit = self.explicit[file_system]
        if path in explicit:
            return explicit[path]
        if path in ("/", "/Shared", "/Users"):
            return self.top_listing(file_system, path)
        if not path.startswith("/Users/"):
            return self.explicit_file(file_system, path)
        home, slash, rest = path[len("/Users/") :].partition("/")
        if home in self.explicit_homes[file_system]:
            return self.explicit_file(file_system, path)
        children = self.children_function(file_system, home)
        return None if children is None else self.generated_listing(file_system, path, children, slash + rest)

    def top_listing(self, file_system, path):
        """The listings above the homes."""
        form = JSON_FORMS[file_system]
        if path == "/":
            return [form(path, Entry(path[1:], "DIRECTORY", 0, len(path))) for path in ("/Users", "/Shared")]
        return [] if path == "/Shared" else self.homes(file_system)

    def explicit_file(self, file_system, path):
        """A file added by a test, found in its parent's listing, or None."""
        parent = path.rpartition("/")[0] or "/"
        found = [entry for entry in self.explicit[file_system].get(parent, ()) if entry.get("path") == path]
        return None if not found or entry_from_json(found[0]).type in FOLDER_TYPES else found[:1]

    def generated_listing(self, file_system, path, children, relative):
        """The listing of a generated directory or file."""
        form = JSON_FORMS[file_system]
        entries = children(relative)
        if entries is not None:
            return [form(f"{path}/{entry.name}", entry) for entry in entries]
        parent, _, name = relative.rpartition("/")
        found = [entry for entry in children(parent) or () if entry.name == name]
        return [form(path, found[0])] if found else None

    def homes_body(self, file_system, key):
        """The encoded listing of /Users, kept because it is large where there are many users."""
        if file_system not in self.homes_bodies:
            self.homes_bodies[file_system] = encode({key: self.homes(file_system)})
        return self.homes_bodies[file_system]

    def tally(self, file_system, home):
        """Sums over the tree of a home, or None when there is no home."""
        if not self.has_home(file_system, home):
            return None
        index = self.home_indexes.get(home)
        if home not in self.explicit_homes[file_system] and self.shape_of(index) == "bench":
            return tally_bench(self.bench_tree(index, file_system))
        return tally_tree(self.children_function(file_system, home))

    def truth(self, username, home=None):
        """What a complete scan of the user finds; home is for a tree that was added under another name."""
        if home is None:
            home = username
            if username in self.owners and not any(username in homes for homes in self.explicit_homes.values()):
                home = self.home_name(self.owners.index(username))
        return self.truth_of_home(username, home)

    def truth_of_home(self, username, home):
        """The truth of a home whose name is known."""
        in_dbfs, in_workspace = (self.tally(file_system, home) for file_system in FILE_SYSTEMS)
        dbfs, workspace = in_dbfs or Tally(), in_workspace or Tally()
        return Truth(username, in_dbfs is not None, in_workspace is not None, dbfs.files, dbfs.size, dbfs.directories,
                     workspace.files, workspace.directories, Counter(workspace.types))  # fmt: skip

    def write_truth(self, file_name):
        """Write the truth of every home as a CSV."""
        with open(file_name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("username", "file_count", "total_size"))
            for index, username in enumerate(self.owners):
                truth = self.truth_of_home(username, self.home_name(index))
                writer.writerow((username, truth.file_count, truth.total_size))


# Answers


class Answer(NamedTuple):
    """What is sent back; cut names how the connection fails while it is sent."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: tuple = ()
    cut: str | None = None
    seconds: float = 0.0
    chunked: bool = False


REASONS = {status.value: status.phrase for status in HTTPStatus}
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Login</title></head><body>Sign in to continue</body></html>"
SLOW_MESSAGE = (
    "The service at this URL is taking too long to process your request. "
    "Please try again later or try a faster operation."
)
TIMEOUT_MESSAGE = "java.io.IOException: java.util.concurrent.TimeoutException: Timed out after 5 seconds"
FAULT_ERRORS = {
    "400": (400, "IO_ERROR", "The storage account refused the request."),
    "401": (401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type for this API."),
    "403": (403, "PERMISSION_DENIED", "The caller may not list this path."),
    "404": (404, "RESOURCE_DOES_NOT_EXIST", "No such object."),
    "404_other": (404, "FEATURE_DISABLED", "This feature is not enabled in this workspace."),
    "429": (429, "REQUEST_LIMIT_EXCEEDED", "Request limit exceeded."),
    "500": (500, "INTERNAL_ERROR", TIMEOUT_MESSAGE),
    "502": (502, "BAD_GATEWAY", "Bad gateway."),
    "503": (503, "TEMPORARILY_UNAVAILABLE", "The service is temporarily unavailable."),
    "504": (504, "DEADLINE_EXCEEDED", "Gateway timeout."),
    "slow": (503, "TEMPORARILY_UNAVAILABLE", SLOW_MESSAGE),
}
CUT_FAULTS = ("reset", "reset_body", "truncated", "hang", "drip")
FAULT_KINDS = (*FAULT_ERRORS, *CUT_FAULTS, "truncated_json", "empty_429", "html", "redirect", "body")


def encode(value):
    """JSON as the service sends it: UTF-8, nothing escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def error_answer(api, status, error_code, message, headers=()):
    """An error in the form of its API."""
    if api == "scim":
        schemas = ["urn:ietf:params:scim:api:messages:2.0:Error"]
        return Answer(status, encode({"schemas": schemas, "detail": message, "status": str(status)}), headers=headers)
    return Answer(status, encode({"error_code": error_code, "message": message}), headers=headers)


@dataclass
class Fault:
    """A rule by which requests fail. It applies to those of its api and path, with a probability, so many times.

    kind is one of FAULT_KINDS. seconds: how long `hang` keeps silent, the pause after each byte of `drip`.
    status, error_code, message, headers, body, content_type: used in the answer in place of the kind's own.
    path: as in the counts, so for scim the startIndex (a number), "ServicePrincipals <startIndex>" or "Me".
    of_workers: only requests that say in X-Worker which worker of a cluster they come from (tests/connect_server.py).
    """

    kind: str
    rate: float = 1.0
    api: str | None = None
    path: str | int | None = None
    times: int | None = None
    seconds: float = 1.0
    status: int | None = None
    error_code: str | None = None
    message: str | None = None
    headers: dict = field(default_factory=dict)
    body: str | bytes = b""
    content_type: str = "application/json"
    location: str = "/login.html"
    of_workers: bool = False
    hits: int = 0

    def __post_init__(self):
        """Refuse a kind that would never do anything."""
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; there are {', '.join(FAULT_KINDS)}")

    def applies(self, api, path, generator):
        """Whether this request fails."""
        if self.api not in (None, api) or (self.path is not None and self.path != path):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        return self.rate >= 1 or generator.random() < self.rate


def fault_answer(fault, api, content, retry_headers):
    """The answer of a fault; content is called for those that spoil the real answer."""
    headers = tuple(fault.headers.items())
    if fault.kind in FAULT_ERRORS:
        status, error_code, message = FAULT_ERRORS[fault.kind]
        error = (fault.status or status, fault.error_code or error_code, fault.message or message)
        return error_answer(api, *error, headers=headers)
    if fault.kind == "empty_429":
        return Answer(429, b"", headers=headers or retry_headers)
    if fault.kind == "html":
        return Answer(fault.status or 200, LOGIN_PAGE, "text/html; charset=utf-8", headers)
    if fault.kind == "redirect":
        return Answer(fault.status or 302, b"", headers=(("Location", fault.location), *headers))
    if fault.kind == "body":
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        return Answer(fault.status or 200, body, fault.content_type, headers)
    if fault.kind in ("reset", "hang"):
        return Answer(0, cut=fault.kind, seconds=fault.seconds)
    return spoiled_answer(fault, content())


def spoiled_answer(fault, answer):
    """The real answer, not arriving whole or not in time."""
    if fault.kind == "truncated_json":
        return answer._replace(body=answer.body[: len(answer.body) // 2])
    return answer._replace(cut=fault.kind, seconds=fault.seconds)


def in_form(answer, form, encoding):
    """The answer as a gateway alters it: any of the words utf-16, bom, gzip, chunked; encoding: what headers claim."""
    body = answer.body
    if "utf-16" in form:
        body = body.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    if "bom" in form:
        body = (codecs.BOM_UTF16_LE if "utf-16" in form else codecs.BOM_UTF8) + body
    if "gzip" in form:
        body = gzip.compress(body, 1)
        encoding = "gzip" if encoding is None else encoding
    if "chunked" in form:
        body = chunks(body)
    headers = () if encoding is None else (("Content-Encoding", encoding),)
    return answer._replace(body=body, chunked="chunked" in form, headers=(*answer.headers, *headers))


def chunks(body):
    """The body in pieces of 100 bytes, as `Transfer-Encoding: chunked` has them."""
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


FORMS = ("plain", "gzip", "chunked", "gzip chunked")  # that the service itself answers in

# Settings and counts


@dataclass
class Settings:
    """What a test can change while the server runs.

    latency: seconds before each answer, and up to latency_spread more, so that answers overtake each other.
    limits: requests per second and family; `limit` in change() sets all three. in_flight_limit: of all together.
    retry_after: `none`, `seconds` or `date`, on the answers of the limits, retry_after_seconds ahead.
    scim_limit_status: 429, or 500 as SCIM has done. bad_token: 403 (plain text) or 401 (JSON).
    expire_after_requests: the token is refused after so many; setting it or token starts the count again.
    clients: id -> secret of those that may have OAuth tokens (client_credentials), as may who has the refresh_token;
    such tokens live for token_lifetime seconds, then they get a 401, or so much earlier than they say.
    workspace_ids: of a unified host: a request has to name one of them in X-Databricks-Workspace-Id.
    forms: in which answers come, each path in one of them: see in_form(). encoding: what Content-Encoding claims.
    outage: None, `close` or `503`. groups: `auto` follows admin, None leaves them out, or a list of names.
    clusters: id -> what clusters/get shows of it, or a list of what it shows in turn, the last one for good.
    """

    latency: float = 0.0
    latency_spread: float = 0.0
    limits: dict = field(default_factory=dict)
    in_flight_limit: int | None = None
    retry_after: str = "none"
    retry_after_seconds: int = 1
    faults: list = field(default_factory=list)
    forms: tuple = ("plain",)
    outage: str | None = None
    token: str = DEFAULT_TOKEN
    bad_token: int = 403
    workspace_ids: tuple = ()
    expire_after_requests: int | None = None
    admin: bool = True
    caller: str | None = None
    clients: dict = field(default_factory=dict)
    refresh_token: str | None = None
    token_lifetime: float = 3600.0
    token_dies_early: float = 0.0
    groups: str | list | None = "auto"
    clusters: dict = field(default_factory=dict)
    encoding: str | None = None
    dbfs_disabled: bool = False
    scim_limit_status: int = 429
    scim_page_cap: int = 100
    scim_duplicates: bool = False
    total_results_offset: int = 0
    count_paths: bool = True


SETTING_NAMES = {setting.name for setting in fields(Settings)}


def changed_settings(settings, values):
    """The values to set, checked; a short form is spelled out."""
    values = dict(values)
    if "limit" in values:
        values["limits"] = {**dict.fromkeys(FAMILIES, values.pop("limit")), **values.get("limits", {})}
    unknown = (set(values) - SETTING_NAMES) | (set(values.get("limits", ())) - set(FAMILIES))
    if unknown:
        raise TypeError(f"unknown setting: {', '.join(sorted(unknown))}")
    if "limits" in values:
        values["limits"] = {**settings.limits, **values["limits"]}
    if "faults" in values:
        values["faults"] = [Fault(**fault) if isinstance(fault, dict) else fault for fault in values["faults"]]
    if "outage" in values:
        values["outage"] = {True: "503", False: None}.get(values["outage"], values["outage"])
    return values


@dataclass
class Counts:
    """What was asked and answered since the start or the last reset; times are of time.monotonic().

    requests is keyed (api, path), path_statuses (api, path, status), api_statuses (api, status). The status of a
    request that got none is how it ended: reset, hang, close, or gone (the client went away first).
    workers: process number of each worker of a cluster -> how many requests it made.
    """

    requests: Counter = field(default_factory=Counter)
    path_statuses: Counter = field(default_factory=Counter)
    api_statuses: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    workers: Counter = field(default_factory=Counter)
    api_times: dict = field(default_factory=dict)
    total_requests: int = 0
    max_in_flight: int = 0
    connections: int = 0
    first_request_at: float | None = None
    last_request_at: float | None = None
    last_answer_at: float | None = None

    def arrived(self, api, path, now, in_flight):
        """Count a request."""
        self.total_requests += 1
        self.max_in_flight = max(self.max_in_flight, in_flight)
        if path is not None:
            self.requests[api, path] += 1
        if self.first_request_at is None:
            self.first_request_at = now
        self.last_request_at = now
        self.api_times.setdefault(api, [now, now])[1] = now

    def answered(self, api, path, status, now):
        """Count how a request ended."""
        self.last_answer_at = now
        self.api_statuses[api, status] += 1
        if path is not None:
            self.path_statuses[api, path, status] += 1

    @property
    def statuses(self):
        """Status -> number of answers."""
        result = Counter()
        for (_, status), number in self.api_statuses.items():
            result[status] += number
        return result

    def as_json(self):
        """The counts as a dictionary with text keys: requests by api and path, statuses also by api."""
        simple = ("total_requests", "max_in_flight", "connections", "first_request_at", "last_request_at",
                  "last_answer_at", "api_times", "faults", "workers")  # fmt: skip
        result = {name: getattr(self, name) for name in simple}
        result["statuses"] = {str(status): number for status, number in self.statuses.items()}
        result["requests"] = {}
        result["api_statuses"] = {}
        for (api, path), number in self.requests.items():
            result["requests"].setdefault(api, {})[str(path)] = number
        for (api, status), number in self.api_statuses.items():
            result["api_statuses"].setdefault(api, {})[str(status)] = number
        return result


def take_token(bucket, rate, now):
    """Take one from a token bucket [tokens, time of the last look]; it holds one second's worth, at least one."""
    capacity = max(rate, 1)
    bucket[0] = min(bucket[0] + (now - bucket[1]) * rate, capacity)
    bucket[1] = now
    if bucket[0] < 1:
        return False
    bucket[0] -= 1
    return True


# HTTP


class Request(NamedTuple):
    """One request, its query decoded."""

    method: str
    path: str
    query: dict
    authorization: str
    workspace_id: str
    worker: str
    body: bytes
    keep_alive: bool


def parse_head(head):
    """Method, target, version and the headers with lower-case names."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return method, target, version, headers


def take_request(buffer):
    """Take one request off the front of the buffer; None when it is not there yet, ValueError when it is no HTTP."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0 or end > MAX_HEAD:
        if len(buffer) > MAX_HEAD:
            raise ValueError("head too large")
        return None
    method, target, version, headers = parse_head(bytes(buffer[:end]))
    length = int(headers.get("content-length", 0))
    if not 0 <= length <= MAX_BODY or "transfer-encoding" in headers or version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError("not supported")
    if len(buffer) < end + 4 + length:
        return None
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    path, _, query = target.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    signs = (headers.get(name, "") for name in ("authorization", "x-databricks-workspace-id", "x-worker"))
    return Request(method, unquote(path), pairs, *signs, body, keep_alive)


def head_bytes(answer, keep_alive):
    """Status line and headers."""
    lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}"]
    length = "Transfer-Encoding: chunked" if answer.chunked else f"Content-Length: {len(answer.body)}"
    lines.append(f"Content-Type: {answer.content_type}\r\n{length}")
    lines.extend(f"{name}: {value}" for name, value in answer.headers)
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


class Connection(asyncio.Protocol):
    """One client connection; it has at most one request at a time, later ones wait in the buffer."""

    def __init__(self, server):
        self.server = server
        self.loop = server.loop
        self.transport = None
        self.buffer = bytearray()
        self.request = None
        self.key = None
        self.working = False
        self.timer = None

    def connection_made(self, transport):
        """A client has connected."""
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self)
        self.server.counts.connections += 1

    def connection_lost(self, error):
        """The connection is gone, whoever ended it."""
        self.server.connections.discard(self)
        self.finish("gone")

    def data_received(self, data):
        """Bytes have come; a client that sends ahead of the answers is held back."""
        self.buffer += data
        if self.request is None:
            self.next_request()
        elif len(self.buffer) > MAX_HEAD:
            self.transport.pause_reading()

    def next_request(self):
        """Begin with the next request if it is complete."""
        if self.request is not None or self.transport.is_closing():
            return
        try:
            self.request = take_request(self.buffer)
        except ValueError as error:
            answer = error_answer("http", 400, "MALFORMED_REQUEST", f"Malformed request: {error}")
            self.transport.write(head_bytes(answer, False) + answer.body)
            self.transport.close()
            return
        if self.request is not None:
            self.server.begin(self, self.request)

    def later(self, seconds, action, *values):
        """Do something after a while, unless the connection ends before."""
        self.timer = self.loop.call_later(seconds, action, *values)

    def send(self, answer):
        """Send an answer, or fail to in the way it says."""
        if self.transport.is_closing():
            return
        if answer.cut:
            CUTS[answer.cut](self, answer)
            return
        self.end_answer(answer.status, head_bytes(answer, self.request.keep_alive) + answer.body)

    def end_answer(self, status, data):
        """Send the last bytes of an answer, then go on with what has come meanwhile, or close.

        Counted first: a test that has its answer finds it in the counts.
        """
        keep_alive = self.request.keep_alive
        self.finish(status)
        self.transport.write(data)
        if not keep_alive:
            self.transport.close()
            return
        self.transport.resume_reading()
        if self.buffer:
            self.loop.call_soon(self.next_request)

    def finish(self, status):
        """Count the request as over; does nothing when there is none."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.request is not None:
            self.request = None
            self.server.ended(self, status)

    def close(self, status):
        """End the request and the connection."""
        self.finish(status)
        self.transport.close()

    def reset(self, status):
        """End the request and reset the connection: with a linger time of 0 the system sends RST in place of FIN."""
        self.finish(status)
        linger = struct.pack("hh" if hasattr(socket, "SIO_RCVALL") else "ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def send_half(self, answer):
        """Send the head and half of the body."""
        self.transport.write(head_bytes(answer, True) + answer.body[: len(answer.body) // 2])


def cut_reset_body(connection, answer):
    """Reset in the middle of the body, once the first half has had time to leave."""
    connection.send_half(answer)
    connection.later(0.02, connection.reset, answer.status)


def cut_truncated(connection, answer):
    """Close cleanly in the middle of the body."""
    connection.finish(answer.status)
    connection.send_half(answer)
    connection.transport.close()


def cut_drip(connection, answer):
    """Send the head, then the body byte by byte."""
    connection.transport.write(head_bytes(answer, connection.request.keep_alive))
    drip(connection, answer, 0)


def drip(connection, answer, position):
    """Send one byte and come back for the next."""
    byte = answer.body[position : position + 1]
    if position + 1 >= len(answer.body):
        connection.end_answer(answer.status, byte)
        return
    connection.transport.write(byte)
    connection.later(answer.seconds, drip, connection, answer, position + 1)


CUTS = {
    "reset": lambda connection, answer: connection.reset("reset"),
    "close": lambda connection, answer: connection.close("close"),
    "hang": lambda connection, answer: connection.later(answer.seconds, connection.close, "hang"),
    "reset_body": cut_reset_body,
    "truncated": cut_truncated,
    "drip": cut_drip,
}


# The server


def plain_path(api, path):
    """A path as the trees know it: no scheme, no trailing slash, in the Workspace no doubled slashes."""
    if api == "dbfs" and path.startswith("dbfs:/"):
        path = path[len("dbfs:") :]
    while api == "workspace" and "//" in path:
        path = path.replace("//", "/")
    return path.rstrip("/") or path[:1]


def request_key(request):
    """The family of a request and what it asks for: a path, for scim as in Fault."""
    if request.path in LOGIN_URLS:
        return "oidc", request.path
    api = ROUTES.get(request.path) if request.method == "GET" else None
    if api is None:
        return "other", request.path
    if request.path == ME_URL:
        return api, "Me"
    if request.path in (USERS_URL, SERVICE_PRINCIPALS_URL):
        start = max(whole_number(request.query.get("startIndex"), 1), 1)
        return api, start if request.path == USERS_URL else f"ServicePrincipals {start}"
    if request.path == CLUSTER_URL:
        return api, request.query.get("cluster_id", "")
    return api, plain_path(api, request.query.get("path", ""))


def whole_number(text, default):
    """A number from a query, or the default when it is none."""
    try:
        return int(text)
    except (TypeError, ValueError):
        return default


class FakeDatabricks:
    """The server. Keywords are those of Workspace, those of Settings, and `limit` for all families at once."""

    def __init__(self, users=50, port=0, seed=1, shape="mixed", shapes=None, directories=40, files_per_directory=5,
                 fan_out=10, file_systems=FILE_SYSTEMS, service_principals=0, unlisted_homes=0,
                 **settings):  # fmt: skip
        """port 0 takes any free one; the server runs from start() or `with` on."""
        self.workspace = Workspace(users, seed, shape, shapes, directories, files_per_directory, fan_out, file_systems,
                                   service_principals, unlisted_homes)  # fmt: skip
        self.port = port
        self.settings = Settings()
        self.counts = Counts()
        self.generator = random.Random(seed)
        self.buckets = {}
        self.authorised = 0
        self.issued = {}  # OAuth token -> when it expires (time.monotonic())
        self.in_flight = 0
        self.working = 0
        self.connections = set()
        self.loop = None
        self.thread = None
        self.change(**settings)

    # For tests

    def start(self):
        """Listen, and serve from a thread of its own."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(listener, ready), name="fake-databricks", daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def stop(self):
        """Drop every connection and end the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def serve(self, listener, ready):
        """The thread: serve until the loop is stopped."""
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(self.loop.create_server(partial(Connection, self), sock=listener))
        ready.set()
        self.loop.run_forever()
        server.close()
        for _ in range(3):  # a connection may have come with the last turn, and closes its socket in the next
            for connection in list(self.connections):
                connection.transport.abort()
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        self.stop()

    @property
    def url(self):
        """Where the server is, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self):
        """The header with the token that is valid now."""
        return {"Authorization": f"Bearer {self.settings.token}"}

    @property
    def user_names(self):
        """All user names, in the order in which SCIM lists them."""
        return self.workspace.user_names

    @property
    def requests(self):
        """(api, path) -> number of requests; for scim the path is as in Fault."""
        return self.counts.requests

    @property
    def statuses(self):
        """Status -> number of answers."""
        return self.counts.statuses

    @property
    def workers(self):
        """Process number of each worker of a cluster that made requests -> how many."""
        return self.counts.workers

    @property
    def total_requests(self):
        """Number of requests."""
        return self.counts.total_requests

    @property
    def max_in_flight(self):
        """The most requests that were in work at once."""
        return self.counts.max_in_flight

    def counts_reset(self):
        """Begin counting anew."""
        self.counts = Counts()

    def change(self, **values):
        """Change settings while the server runs; limits are merged, faults replaced."""
        values = changed_settings(self.settings, values)
        if "token" in values or "expire_after_requests" in values:
            self.authorised = 0
        for name, value in values.items():
            setattr(self.settings, name, value)

    def add_tree(self, file_system, listings):
        """Add listings: path -> entries from dbfs_file, dbfs_directory, workspace_object. See Workspace.add_tree."""
        self.workspace.add_tree(file_system, listings)

    def add_user(self, user, shape=None, **scim_fields):
        """Add a user by name or SCIM dictionary; kind="service_principal" or "unlisted": another owner of a home."""
        self.workspace.add_user(user, shape, **scim_fields)

    def revoke(self):
        """Refuse all OAuth tokens that were issued until now."""
        self.issued = dict.fromkeys(self.issued, -math.inf)

    def truth(self, username, home=None):
        """What a complete scan of the user finds."""
        return self.workspace.truth(username, home)

    # A request's way through

    def begin(self, connection, request):
        """Decide on the answer to a request and send it after the latency."""
        self.in_flight += 1
        if request.path.startswith("/_fake/"):
            connection.key = None
            connection.send(self.control(request))
            return
        api, path = request_key(request)
        settings = self.settings
        now = self.loop.time()
        connection.key = api, path if settings.count_paths else None
        self.counts.arrived(*connection.key, now, self.in_flight)
        if request.worker:
            self.counts.workers[request.worker] += 1
        answer = self.refusal(api, request, now)
        if answer is None:
            connection.working = True
            self.working += 1
            answer = self.fault(api, path, request) or self.content(api, path, request)
            form = settings.forms[crc32(str(path).encode()) % len(settings.forms)]
            answer = in_form(answer, form, settings.encoding)
        latency = settings.latency + settings.latency_spread * random.random()
        if latency:
            connection.later(latency, connection.send, answer)
        else:
            connection.send(answer)

    def ended(self, connection, status):
        """A request is over."""
        self.in_flight -= 1
        if connection.working:
            connection.working = False
            self.working -= 1
        if connection.key:
            self.counts.answered(*connection.key, status, self.loop.time())

    def refusal(self, api, request, now):
        """The answer that keeps a request from being served, or None: outage, token, limits."""
        settings = self.settings
        if settings.outage == "close":
            return Answer(0, cut="close")
        if settings.outage:
            return error_answer(api, 503, "TEMPORARILY_UNAVAILABLE", "The service is down for maintenance.")
        if api == "oidc":
            return None
        if not self.is_authorised(request):
            if settings.bad_token == 401 or request.authorization.removeprefix("Bearer ") in self.issued:
                return error_answer("http", *FAULT_ERRORS["401"])
            return Answer(403, b"Error 403 Invalid access token.", "text/plain; charset=utf-8")
        if settings.in_flight_limit is not None and self.working >= settings.in_flight_limit:
            message = f"Workspace 1234567890 exceeded the concurrent limit of {settings.in_flight_limit} requests."
            return error_answer("http", 429, "REQUEST_LIMIT_EXCEEDED", message)
        return self.over_limit(api, now)

    def is_authorised(self, request):
        """Whether the token is right and not used up."""
        settings = self.settings
        token = request.authorization.removeprefix("Bearer ")
        if settings.workspace_ids and request.workspace_id not in settings.workspace_ids:
            return False
        if token in self.issued:
            return self.loop.time() < self.issued[token]
        if request.authorization != f"Bearer {settings.token}":
            return False
        if settings.expire_after_requests is not None and self.authorised >= settings.expire_after_requests:
            return False
        self.authorised += 1
        return True

    def over_limit(self, api, now):
        """The answer to a request above the rate limit of its family, or None."""
        rate = self.settings.limits.get(api)
        if not rate:
            self.buckets.pop(api, None)
            return None
        if take_token(self.buckets.setdefault(api, [max(rate, 1), now]), rate, now):
            return None
        message = f"{api} RPC token bucket limit has been exceeded."
        if api == "scim" and self.settings.scim_limit_status == 500:
            return error_answer(api, 500, "", f"REQUEST_LIMIT_EXCEEDED: {message}")
        return error_answer("http", 429, "REQUEST_LIMIT_EXCEEDED", message, self.retry_headers())

    def retry_headers(self):
        """The Retry-After header as the settings want it."""
        seconds = self.settings.retry_after_seconds
        if self.settings.retry_after == "seconds":
            return (("Retry-After", str(seconds)),)
        if self.settings.retry_after == "date":
            return (("Retry-After", formatdate(math.ceil(time.time() + seconds), usegmt=True)),)
        return ()

    def fault(self, api, path, request):
        """The answer of the first fault that applies, or None."""
        for fault in self.settings.faults:
            if (request.worker or not fault.of_workers) and fault.applies(api, path, self.generator):
                fault.hits += 1
                self.counts.faults[fault.kind] += 1
                return fault_answer(fault, api, partial(self.content, api, path, request), self.retry_headers())
        return None

    def content(self, api, path, request):
        """The answer of a service in good order."""
        if api == "scim":
            kind = "user" if isinstance(path, int) else "service_principal"
            return self.me() if path == "Me" else self.scim_page(int(str(path).split()[-1]), request.query, kind)
        if api == "oidc":
            return self.issue_token(request) if path == TOKEN_URL else Answer(200, encode(self.login_endpoints(path)))
        if api == "other":
            message = f"No API found for '{request.method} {request.path}'"
            return error_answer(api, 404, "ENDPOINT_NOT_FOUND", message)
        if api == "clusters":
            return self.cluster(path)
        if not path.startswith("/"):
            return error_answer(api, 400, "INVALID_PARAMETER_VALUE", f"Path must be absolute: {path}")
        return self.dbfs(path) if api == "dbfs" else self.workspace_listing(path)

    def dbfs(self, path):
        """A DBFS listing."""
        if self.settings.dbfs_disabled:
            message = f"Public DBFS root is disabled. Access is denied on path: {path}"
            return error_answer("dbfs", 403, "PERMISSION_DENIED", message)
        if path == "/Volumes" or path.startswith("/Volumes/"):
            return error_answer("dbfs", 403, "PERMISSION_DENIED", "No operations allowed on this path.")
        if path == "/Users" and path not in self.workspace.explicit["dbfs"]:
            return Answer(200, self.workspace.homes_body("dbfs", "files"))
        entries = self.workspace.listing("dbfs", path)
        if entries is None:
            message = f"No file or directory exists on path {path}."
            return error_answer("dbfs", 404, "RESOURCE_DOES_NOT_EXIST", message)
        return Answer(200, encode({"files": entries}) if entries else b"{}")

    def workspace_listing(self, path):
        """A Workspace listing; /Workspace/Users is /Users, and its answers keep the prefix."""
        prefix = "/Workspace" if path == "/Workspace" or path.startswith("/Workspace/") else ""
        plain = path[len(prefix) :] or "/"
        if path == "/Users" and self.settings.admin and path not in self.workspace.explicit["workspace"]:
            return Answer(200, self.workspace.homes_body("workspace", "objects"))
        entries = self.visible_objects(plain)
        if entries is None:
            return error_answer("workspace", 404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")
        if prefix:
            entries = [{**entry, "path": prefix + entry["path"]} for entry in entries]
        return Answer(200, encode({"objects": entries}) if entries else b"{}")

    def visible_objects(self, path):
        """What the caller sees at a path: an admin everything, others no home but their own."""
        if self.settings.admin or not (path == "/Users" or path.startswith("/Users/")):
            return self.workspace.listing("workspace", path)
        own = self.caller()
        if path == "/Users":
            return self.workspace.homes("workspace", only=own)
        return self.workspace.listing("workspace", path) if path.split("/")[2] == own else None

    def caller(self):
        """The user name of the one whose token it is."""
        names = self.user_names
        return self.settings.caller or (names[0] if names else "admin@example.com")

    def me(self):
        """The caller as SCIM shows it, with groups as the settings say."""
        groups = self.settings.groups
        if groups == "auto":
            groups = ("admins", "users") if self.settings.admin else ("users",)
        name = self.caller()
        resource = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "id": "4000000000000000",
            "userName": name,
            "displayName": name.partition("@")[0],
            "active": True,
        }
        if groups is not None:
            resource["groups"] = [{"display": group, "type": "direct", "value": str(100 + number)}
                                  for number, group in enumerate(groups)]  # fmt: skip
        return Answer(200, encode(resource))

    def cluster(self, cluster_id):
        """A cluster, in the next of its states."""
        shown = self.settings.clusters.get(cluster_id)
        if not shown:
            return error_answer("clusters", 400, "INVALID_PARAMETER_VALUE", f"Cluster {cluster_id} does not exist")
        if isinstance(shown, list):
            shown = shown.pop(0) if len(shown) > 1 else shown[0]
        return Answer(200, encode({"cluster_id": cluster_id, **shown}))

    def login_endpoints(self, path):
        """Where databricks-sdk finds what: HostMetadata and OidcEndpoints in its oauth.py."""
        if path == METADATA_URL:
            return {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1234567890", "cloud": "AWS"}
        return {"authorization_endpoint": f"{self.url}/oidc/v1/authorize", "token_endpoint": self.url + TOKEN_URL}

    def issue_token(self, request):
        """A new token for a client with its secret (HTTP Basic), or for the refresh token that a CLI holds."""
        form, settings = dict(parse_qsl(request.body.decode())), self.settings
        try:
            client, _, secret = base64.b64decode(request.authorization.removeprefix("Basic ")).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client = secret = ""
        known = {
            "client_credentials": client in settings.clients and settings.clients[client] == secret,
            "refresh_token": settings.refresh_token and form.get("refresh_token") == settings.refresh_token,
        }.get(form.get("grant_type"))
        if not known:
            error = {"error": "invalid_client", "error_description": "Client authentication failed"}
            return Answer(401, encode(error))
        token = f"eyJ.fake-{len(self.issued)}-{self.generator.getrandbits(64):x}"
        self.issued[token] = self.loop.time() + settings.token_lifetime - settings.token_dies_early
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": int(settings.token_lifetime)}
        return Answer(200, encode({**answer, "scope": "all-apis"}))

    def scim_page(self, start, query, kind="user"):
        """A page of users or service principals; without any, the key Resources is missing."""
        settings, listed = self.settings, self.workspace.indexes[kind]
        cap = settings.scim_page_cap
        count = max(0, min(whole_number(query.get("count"), cap), cap))
        positions = range(start - 1, start - 1 + count)
        indexes = [repeated_index(position, cap) for position in positions] if settings.scim_duplicates else positions
        resources = [self.scim_resource(listed[index], query, kind) for index in indexes if index < len(listed)]
        page = {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
            "totalResults": len(listed) + settings.total_results_offset,
            "startIndex": start,
            "itemsPerPage": len(resources),
        }
        if resources:
            page["Resources"] = resources
        return Answer(200, encode(page))

    def scim_resource(self, index, query, kind):
        """A user as the caller may see it; who is no admin gets id and display name only."""
        show = self.workspace.scim_user if kind == "user" else self.workspace.scim_service_principal
        resource = show(index)
        if not self.settings.admin:
            resource = {key: resource[key] for key in ("id", "displayName")}
        return asked_for(resource, query.get("attributes"), query.get("excludedAttributes"))

    # The test's own endpoints

    def control(self, request):
        """Counts and settings over HTTP, for a server in another process."""
        if (request.method, request.path) == ("GET", "/_fake/counts"):
            return Answer(200, encode(self.counts.as_json()))
        if (request.method, request.path) != ("POST", "/_fake/settings"):
            return error_answer("http", 404, "ENDPOINT_NOT_FOUND", "GET /_fake/counts, POST /_fake/settings")
        try:
            values = json.loads(request.body)
            reset = values.pop("reset_counts", False)
            self.change(**values)
        except (TypeError, ValueError, AttributeError) as error:
            return error_answer("http", 400, "INVALID_PARAMETER_VALUE", str(error))
        if reset:
            self.counts_reset()
        return Answer(200, encode({"changed": sorted(values), "reset_counts": bool(reset)}))


# Program


def fault_option(text):
    """KIND:RATE from the command line."""
    kind, _, rate = text.partition(":")
    try:
        return Fault(kind, rate=float(rate or 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description="An HTTP server that behaves as a Databricks workspace does.")
    parser.add_argument("--users", type=int, default=50, help="number of users (default: %(default)s)")
    parser.add_argument("--service-principals", type=int, default=0, help="how many (default: %(default)s)")
    parser.add_argument("--unlisted-homes", type=int, default=0, help="homes of nobody (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1, 0 for any free one")
    parser.add_argument("--seed", type=int, default=1, help="of trees and faults (default: %(default)s)")
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="the valid token (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of every answer")
    parser.add_argument("--limit", type=float, help="requests per second, for each API")
    for family in FAMILIES:
        parser.add_argument(f"--{family}-limit", type=float, help=f"requests per second, for {family}")
    parser.add_argument("--retry-after", choices=("none", "seconds", "date"), default="none", help="on 429")
    parser.add_argument("--in-flight-limit", type=int, help="requests at once")
    parser.add_argument("--fault", type=fault_option, action="append", default=[], metavar="KIND:RATE",
                        help=f"repeatable; kinds: {', '.join(FAULT_KINDS)}")  # fmt: skip
    parser.add_argument("--shape", choices=SHAPES, default="mixed", help="of all users (default: %(default)s)")
    parser.add_argument("--directories", type=int, default=40, help="per user, for --shape bench")
    parser.add_argument("--files-per-directory", type=int, default=5, help="for --shape bench")
    parser.add_argument("--file-system", choices=FILE_SYSTEMS, help="the only one, for --shape bench")
    parser.add_argument("--no-count-paths", action="store_true", help="count no single paths: for millions of requests")
    parser.add_argument("--truth", metavar="FILE", help="write what a complete scan finds, as a CSV")
    return parser


def server_from(options):
    """A server as the command line wants it."""
    limits = {family: getattr(options, f"{family}_limit") or options.limit for family in FAMILIES}
    return FakeDatabricks(
        users=options.users, port=options.port, seed=options.seed, shape=options.shape,
        directories=options.directories, files_per_directory=options.files_per_directory,
        file_systems=(options.file_system,) if options.file_system else FILE_SYSTEMS,
        token=options.token, latency=options.latency, limits=limits, retry_after=options.retry_after,
        service_principals=options.service_principals, unlisted_homes=options.unlisted_homes,
        in_flight_limit=options.in_flight_limit, faults=options.fault, count_paths=not options.no_count_paths,
    )  # fmt: skip


def main(argv=None):
    """Serve until SIGTERM or SIGINT."""
    options = build_parser().parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = server_from(options)
    if options.truth:
        server.workspace.write_truth(options.truth)
    with server:
        print(server.url, server.settings.token, flush=True)
        # In slices, because on Windows a signal does not interrupt a wait without an end.
        while not ended.wait(1):
            pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
