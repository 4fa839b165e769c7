"""What hypothesis makes up for several test files: results of users, and trees of any names."""

from hypothesis import strategies as st

from databricks_user_files_simple import FileSystemTotals, UserResult

COUNTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(), max_size=20)  # surrogates, too: a path may have them
TOTALS = st.builds(
    FileSystemTotals, files=COUNTS, bytes=COUNTS, directories=COUNTS, types=st.dictionaries(TEXTS, COUNTS, max_size=3),
    failures=st.lists(st.fixed_dictionaries({"path": TEXTS, "error": TEXTS}), max_size=3),
)  # fmt: skip
USERNAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"], exclude_characters='/"<>,;'), min_size=1)
USERNAMES = USERNAMES.filter(
    lambda name: name not in (".", "..") and name == name.strip() and "'" not in (name[0], name[-1]))  # fmt: skip
RESULTS = st.builds(UserResult, username=USERNAMES, scanned_at=st.just("2026-11-23T04:00:00Z"),
                    dbfs=st.none() | TOTALS, workspace=st.none() | TOTALS)  # fmt: skip

# Any text without "/" that is neither "." nor ".."
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", ".."))  # fmt: skip


def trees(files):
    """A tree is a dictionary from names to trees and files."""
    return st.recursive(st.dictionaries(NAMES, files, max_size=4),
                        lambda inner: st.dictionaries(NAMES, files | inner, max_size=4), max_leaves=12)  # fmt: skip


def flatten(path, tree, as_file, as_directory):
    """The listings of a tree, as the fake server takes them."""
    result = {path: [as_directory(f"{path}/{name}") if isinstance(value, dict) else as_file(f"{path}/{name}", value)
                     for name, value in tree.items()]}  # fmt: skip
    for name, value in tree.items():
        if isinstance(value, dict):
            result.update(flatten(f"{path}/{name}", value, as_file, as_directory))
    return result


def plain_count(tree):
    """Files, sum of their values, directories."""
    inner = [plain_count(value) for value in tree.values() if isinstance(value, dict)]
    files = [value for value in tree.values() if not isinstance(value, dict)]
    return (len(files) + sum(count[0] for count in inner), sum(value for value in files if isinstance(value, int))
            + sum(count[1] for count in inner), 1 + sum(count[2] for count in inner))  # fmt: skip
