"""A world with everything in it that is awkward, and faults that pass."""

from typing import Any

from tests.fake.faults import Fault
from tests.fake.world import Folder, World

AWKWARD_NAMES = (
    "with space", " leading", "trailing ", "100%", "%2F", "a+b", "a&b=c", "what?", "#1", "x;y", 'say "hi"', "it's",
    "back\\slash", "caf\u00e9", "cafe\u0301", "\U0001f600", "\u65e5\u672c\u8a9e", "tab\there", "new\nline",
    "n" * 255, "..hidden", "...", "$(x)", "`x`", "-rf", "~", "*", "dbfs:", "a:b", "<b>", "{}", "[0]", "a,b", "=1+1",
    "None", "null", "Case", "case", "Trash", "\u202eabc", "a|b", "%25", "%", "+", " ",
)  # fmt: skip


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
        "folder": Folder({"b.py": "FILE", "src": Folder({"c.py": "FILE"})}),
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
