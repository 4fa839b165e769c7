"""What hypothesis makes up for several test files: results of users, and bytes; and the listings of a tree."""

from typing import Any

from hypothesis import strategies as st

from databricks_user_files_simple import FileSystemTotals, UserResult
from tests.fake import Folder

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

Tree = dict[str, Any]  # names to trees and files


def folder_of(tree: Tree) -> Folder:
    """A tree as the fake server takes it."""
    return Folder({name: folder_of(value) if isinstance(value, dict) else value for name, value in tree.items()})


PIECES = st.sampled_from([
    b"\n", b"\r\n", b"\r", b",", b";", b'"', b"'", b"=", b"[", b"]", b"{", b"}", b"\x00", b" ", b"\t", b"%", b"#",
    b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff", b"username", b"email", b"a@x.com", b"..", b"/", b"\\",
])  # fmt: skip


def bytes_of(*pieces: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, and such as are nearly right."""
    return st.binary(max_size=60) | st.lists(PIECES | st.sampled_from(pieces), max_size=14).map(b"".join)
