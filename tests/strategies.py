"""What hypothesis makes up for several test files: results of users, and trees of any names."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import responses
from hypothesis import strategies as st

from databricks_user_files_simple import FileSystemTotals, UserResult
from databricks_user_list import DatabricksClient, DatabricksConfig, DatabricksError
from tests.fake import Listed

COUNTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(), max_size=20)  # surrogates, too: a path may have them
TOTALS = st.builds(
    FileSystemTotals, files=COUNTS, bytes=COUNTS, directories=COUNTS, estimated=COUNTS,
    types=st.dictionaries(TEXTS, COUNTS, max_size=3),
    failures=st.lists(st.fixed_dictionaries({"path": TEXTS, "error": TEXTS}), max_size=3),
)  # fmt: skip
USERNAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"], exclude_characters='/"<>,;'), min_size=1)
USERNAMES = USERNAMES.filter(
    lambda name: name not in (".", "..") and name == name.strip() and "'" not in (name[0], name[-1]))  # fmt: skip
RESULTS = st.builds(UserResult, username=USERNAMES, scanned_at=st.just("2026-11-23T04:00:00Z"),
                    dbfs=st.none() | TOTALS, workspace=st.none() | TOTALS)  # fmt: skip

Parsed = TypeVar("Parsed")
Tree = dict[str, Any]  # names to trees and files

# Any text without "/" that is neither "." nor ".."
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", ".."))  # fmt: skip


def trees(files: st.SearchStrategy[Any]) -> st.SearchStrategy[Tree]:
    """A tree is a dictionary from names to trees and files."""
    return st.recursive(st.dictionaries(NAMES, files, max_size=4),
                        lambda inner: st.dictionaries(NAMES, files | inner, max_size=4), max_leaves=12)  # fmt: skip


def flatten(
    path: str, tree: Tree, as_file: Callable[[str, Any], Listed], as_directory: Callable[[str], Listed]
) -> dict[str, list[Listed]]:
    """The listings of a tree, as the fake server takes them."""
    result = {path: [as_directory(f"{path}/{name}") if isinstance(value, dict) else as_file(f"{path}/{name}", value)
                     for name, value in tree.items()]}  # fmt: skip
    for name, value in tree.items():
        if isinstance(value, dict):
            result.update(flatten(f"{path}/{name}", value, as_file, as_directory))
    return result


def plain_count(tree: Tree) -> tuple[int, int, int]:
    """Files, sum of their values, directories."""
    inner = [plain_count(value) for value in tree.values() if isinstance(value, dict)]
    files = [value for value in tree.values() if not isinstance(value, dict)]
    return (len(files) + sum(count[0] for count in inner), sum(value for value in files if isinstance(value, int))
            + sum(count[1] for count in inner), 1 + sum(count[2] for count in inner))  # fmt: skip


# Answers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip
STATUSES = st.just(200) | st.sampled_from([204, 301, 400, 401, 403, 404, 418, 429, 500, 503])
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "Location", "Content-Encoding"]), TEXT)
PIECES = st.sampled_from([
    b"\n", b"\r\n", b"\r", b",", b";", b'"', b"'", b"=", b"[", b"]", b"{", b"}", b"\x00", b" ", b"\t", b"%", b"#",
    b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff", b"username", b"email", b"a@x.com", b"..", b"/", b"\\",
])  # fmt: skip


def bytes_of(*pieces: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and such as are nearly right."""
    return st.binary(max_size=60) | st.lists(PIECES | st.sampled_from(pieces), max_size=14).map(b"".join)


BODIES = JSON.map(json.dumps) | bytes_of(b"{}", b'{"files": [', b"<html>")


def answered(
    parse: Callable[[Any], Parsed], status: int, body: str | bytes, headers: dict[str, str]
) -> Parsed | DatabricksError:
    """What attempt() returns for this answer, or its error."""
    config = DatabricksConfig("https://adb-1.2.azuredatabricks.net", "dapi-5ecret-0123456789")
    with responses.RequestsMock() as mocked:
        mocked.get(f"{config.host}/x", body=body, status=status, headers=headers)
        try:
            return DatabricksClient(config).attempt("/x", {"path": "/Users/a"}, parse)
        except DatabricksError as error:
            assert config.token not in str(error)
            assert "\n" not in str(error)
            assert 0 <= error.retry_after <= 120
            return error
