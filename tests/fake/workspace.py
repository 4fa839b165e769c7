"""A workspace: its users, whose homes there are, and what lies in them."""

import csv
import random
import threading
from collections import Counter, OrderedDict
from functools import partial
from zlib import crc32

from tests.fake.trees import (
    BUILDERS,
    FILE_SYSTEMS,
    FOLDER_TYPES,
    JSON_FORMS,
    SHAPES,
    Bench,
    Entry,
    Tally,
    Truth,
    bench_children,
    directory_counts,
    encode,
    entry_from_json,
    mixed_shape,
    random_tree,
    tally_bench,
    tally_tree,
)

CACHED_TREES = 2_000
CACHED_ENTRIES = 500_000  # about 100 MB; without it 2,000 giant trees would be cached


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
