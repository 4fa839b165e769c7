"""What an answer is taken for: a listing, a failure, never an empty directory; what is in it, and what counts."""

import json
import math
from functools import partial
from zlib import crc32

import pytest
import responses
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from databricks_user_files_simple import Listing, UserResult, parse_listing
from databricks_user_list import DatabricksClient, DatabricksConfig, DatabricksError, MalformedAnswer
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import ANN, BEN, FILE_SYSTEMS, HOME, FakeClock, assert_truth, crawl, figures, listings, small_server
from tests.strategies import RESULTS, bytes_of, folder_of

CAL, DAN = "cal@example.com", "dan@example.com"
B, W = f"{HOME}/b", f"{HOME}/w"
workspace_directory = partial(workspace_object, object_type="DIRECTORY")


def plain_count(path, tree, lost):
    """Files, bytes, directories: without some of these, about one of four, whose paths go to `lost`."""
    counts = [(0, 0, 1)]
    for name, value in tree.items():
        below = f"{path}/{name}"
        if not isinstance(value, dict):
            counts.append((1, value if isinstance(value, int) else 10_000, 0))
        elif crc32(below.encode()) % 4 == 0:
            lost.append(below)
        else:
            counts.append(plain_count(below, value, lost))
    return tuple(map(sum, zip(*counts, strict=True)))


def trees(files):
    """A tree is a dictionary from names to trees and files. Any text without "/" that is neither "." nor ".."."""
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=12)
    names = names.filter(lambda name: name not in (".", ".."))
    return st.recursive(st.dictionaries(names, files, max_size=4),
                        lambda inner: st.dictionaries(names, files | inner, max_size=4), max_leaves=12)  # fmt: skip


OBJECTS = st.sampled_from(["NOTEBOOK", "FILE", "LIBRARY", "DASHBOARD", "NEW", None])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(trees(st.integers(0, 2**62)), trees(OBJECTS), st.integers(1, 12), st.sampled_from(["403", "500"]))
def test_trees_of_any_names_are_counted_as_a_plain_recursion_counts_them(dbfs, workspace, threads, kind):
    """In whatever order the answers come, and without what never answers, which the row names."""
    with FakeDatabricks(users=[ANN, BEN], shape="none", latency_spread=0.004) as server:
        expected, failing = {}, {"dbfs": [], "workspace": []}
        for name in server.user_names:
            home, lost = f"/Users/{name}", {"dbfs": [], "workspace": []}
            server.add_folder("dbfs", home, folder_of(dbfs))
            server.add_folder("workspace", home, folder_of(workspace))
            counts = plain_count(home, dbfs, lost["dbfs"]) + plain_count(home, workspace, lost["workspace"])
            expected[name] = counts, {api: sorted(paths) for api, paths in lost.items()}
            for api in FILE_SYSTEMS:
                failing[api] += lost[api]
        fault = Fault(kind)
        fault.applies = lambda api, path, _: path in failing.get(api, ())
        server.change(faults=[fault])
        results = crawl(server, FakeClock(), threads=threads)
        once = {number for (api, path), number in listings(server).items() if path not in ["/", *failing[api]]}
    for name, (counts, lost) in expected.items():
        found = {api: sorted(at["path"] for at in totals.failures) for api, totals in results[name].scanned.items()}
        assert (figures(results[name]), found) == (counts, lost)
        status = "success" if results[name].file_count else "empty"
        assert results[name].status == ("partial" if any(lost.values()) else status)
    if kind == "403" and sum(map(len, failing.values())) < 10:  # else the API may be asked whether it is there
        assert once == {1}


def test_what_the_workspace_shows_is_a_file_but_for_folders_and_its_size_counts_where_it_is_told(clock):
    types = ["NOTEBOOK", "LIBRARY", "FILE", "DASHBOARD", "SOMETHING_NEW", "MLFLOW_EXPERIMENT", None]
    sized = [workspace_object(f"{HOME}/r/{size}", "FILE", size=size) for size in (0, 7, "8", -1, None)]
    with FakeDatabricks(users=[ANN], shape="none") as server:
        server.add_tree("workspace", {
            HOME: [workspace_object(f"{HOME}/r", "REPO"), workspace_object(f"{HOME}/folder", None),
                   *(workspace_object(f"{HOME}/{number}", name) for number, name in enumerate(types))],
            f"{HOME}/r": [workspace_object(f"{HOME}/r/x", "NOTEBOOK", language=None), *sized],
            f"{HOME}/folder": [workspace_object(f"{HOME}/folder/x")],
        })  # fmt: skip
        found = crawl(server, clock)[ANN].workspace
    assert (found.files, found.bytes, found.estimated, found.directories) == (14, 120_007, 12, 3)
    assert found.types == {**dict.fromkeys(types[1:-1], 1), "FILE": 6, "NOTEBOOK PYTHON": 1, "NOTEBOOK SCALA": 1,
                           "NOTEBOOK": 1, "REPO": 1, "UNKNOWN": 1}  # fmt: skip


def test_the_newest_modification_is_told(clock):
    times = [1_700_000_001_007, 1_700_000_000_007, 32_503_680_000_000, -1, "soon"]  # none is told from the year 3000 on
    listed = {f"{HOME}/{name}": [dbfs_file(f"{HOME}/{name}/{at}", 2**53 + 1, at) for at in times] for name in "ab"}
    with small_server() as server:
        server.add_tree("dbfs", listed)
        found = crawl(server, clock, file_systems=("dbfs",))[ANN].dbfs
    assert (found.bytes, found.last_modified) == (10 * (2**53 + 1) + 5, "2023-11-14T22:13:21Z")
    assert parse_listing("dbfs", B, {"files": listed[B][2:]}).totals.last_modified == ""


@pytest.mark.parametrize(("kind", "more", "is_final"), [
    *((kind, {}, False) for kind in ("429", "500", "slow", "reset", "truncated", "truncated_json", "html")),
    ("body", {"body": "null"}, False), ("body", {"body": '{"error_code": "INTERNAL_ERROR", "message": "oops"}'}, False),
    *((kind, {}, True) for kind in ("403", "404_other", "redirect")),
    *(("body", {"body": "{}", "status": status}, True) for status in (202, 404)),
])  # fmt: skip
def test_what_cannot_be_listed_is_in_its_users_row(clock, kind, more, is_final):
    """A directory, both homes, and the home in one file system."""
    fault = partial(Fault, kind, **more)
    with small_server([ANN, BEN, CAL, DAN]) as server:
        server.change(faults=[fault(api="dbfs", path=B), fault(path=f"/Users/{BEN}"),
                              fault(api="workspace", path=f"/Users/{CAL}")])  # fmt: skip
        found = crawl(server, clock)
        assert (server.requests["dbfs", B] == 1) == is_final
        assert_truth(found[DAN], server.truth(DAN))
    assert (found[ANN].status, found[ANN].file_source) == ("partial", "both")
    assert [failure["path"] for failure in found[ANN].dbfs.failures] == [B]
    assert found[ANN].error.startswith(f"dbfs:{B}: ")
    assert ("dbutils.fs" in found[ANN].error) == (kind == "slow")
    assert figures(found[ANN]) == (2, 105, 2, 2, 20_000, 2)
    assert (found[BEN].status, found[BEN].file_source, figures(found[BEN])) == ("error", "none", (0,) * 6)
    assert found[BEN].error.startswith(f"dbfs:/Users/{BEN}: ")
    assert found[BEN].error.endswith(" (and 1 more)")
    assert (found[CAL].status, found[CAL].file_source) == ("partial", "dbfs")
    assert figures(found[CAL]) == (4, 128, 4, 0, 0, 0)
    assert (clock.waits == []) == is_final


def lost(listing):
    return sorted(at["path"] for at in listing.totals.failures)


X = dbfs_file(f"{B}/x", 1)


@pytest.mark.parametrize(("api", "key", "table"), [("dbfs", "files", {  # what the error says: such answers for B
    "not a whole listing": [[], None, "files", {"next_page_token": "x"}, {"files": [X], "next_page_token": "x"}],
    "not a listing": [{"files": {}}, {"files": ""}, {"objects": []}],
    "an entry without a path": [[None], [B], [{"is_dir": False, "file_size": 1}], [{**X, "path": 1}]],
    "does not lie in it": [
        *([dbfs_file(path, 1)] for path in ("/Users/other/x", HOME, f"{B}b", f"{B}b/x", "", f"s3:{B}/x")),
        [dbfs_directory(HOME)], [X, dbfs_file(f"{HOME}/y", 1)],
    ],
    "no entry that lies directly in it": [[dbfs_file(f"{B}/x/y", 1), dbfs_file(f"{B}/x/z", 1)]],
    "a file without a size": [
        [{"path": f"{B}/x", "is_dir": False}], [{**X, "is_dir": "no"}],
        *([dbfs_file(f"{B}/x", size)] for size in (None, -1, "5", 1.5, True, 2**63, math.nan, math.inf)),
    ],
}), ("workspace", "objects", {
    "not a listing": ["", {}],
    "an entry without a path": [[None], [{"object_type": "FILE"}]],
    "does not lie in it": [[workspace_object(f"{HOME}/x")], [workspace_object(f"/Workspace{B}/x")]],
    "an object_type that is no text": [[workspace_object(f"{B}/x", 7)]],
})])  # fmt: skip
def test_what_is_no_listing_is_refused(api, key, table):
    for message, answers in table.items():
        for answer in answers:
            wrapped = message not in ("not a whole listing", "not a listing") or api == "workspace"
            with pytest.raises(MalformedAnswer, match=message):
                parse_listing(api, B, {key: answer} if wrapped else answer)


@pytest.mark.parametrize("body", [{}, *({"files": files, "more": 1} for files in ([], None, [dbfs_directory(B)]))])
def test_a_directory_with_nothing_in_it_is_empty(body):
    assert parse_listing("dbfs", B, body) == Listing()
    assert parse_listing("workspace", B, {"objects": [workspace_object(B, "REPO")]}) == Listing()


ITSELF = [dbfs_directory(B), dbfs_directory(f"{B}/"), dbfs_file(B, 0), dbfs_file(f"{B}/", 0)]
DIFFERENT = [[dbfs_file(B, 1)], [dbfs_file(f"{B}/", 1)], [dbfs_directory(f"{B}/y"), dbfs_file(f"{B}/y", 0)],
             [dbfs_file(f"{B}/y", size) for size in (1, 2, 2)]]  # fmt: skip


@pytest.mark.parametrize(("more", "failures"), [
    *(([at], 0) for at in ITSELF), (ITSELF, 0), ([X, X], 0), *((entries, 1) for entries in DIFFERENT),
])  # fmt: skip
def test_what_is_listed_twice_counts_once_or_fails_and_the_directory_itself_is_passed_over(more, failures):
    """Neither counts of what is different under one path, as a file and a directory in an object store."""
    listing = parse_listing("dbfs", B, {"files": [*more, X, dbfs_directory(f"{B}/c")]})
    assert ([entry.path for entry in listing.files], listing.totals.bytes) == ([X["path"]], 1)
    assert listing.directories == [f"{B}/c"]
    assert lost(listing) == [more[-1]["path"]] * failures


@pytest.mark.parametrize(("api", "path", "found"), [
    ("dbfs", HOME, (1, 7, 0, 2, 20_000, 2)), ("dbfs", B, (3, 112, 2, 2, 20_000, 2)),
    ("workspace", W, (4, 128, 4, 2, 20_000, 1)),
])  # fmt: skip
def test_a_listed_file_returns_itself_and_counts_once(clock, api, path, found):
    listed = {"files": [dbfs_file(path, 7)]} if api == "dbfs" else {"objects": [workspace_object(path, "NOTEBOOK")]}
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps(listed), api=api, path=path)])
        result = crawl(server, clock)[ANN]
        assert server.requests[api, path] == 1
    assert (result.status, figures(result)) == ("success", found)


ODD_NAMES = {  # name -> whether it counts as a file; else it is a failure of its own, as every directory is
    "a/b": True, "x/": True, "sub/x": False, "sub/x/y": False, "../x": False, "./x": False, "..": False,
    ".": False,
}  # fmt: skip


@pytest.mark.parametrize(("api", "key", "as_file", "as_directory"), [
    ("dbfs", "files", partial(dbfs_file, size=1), dbfs_directory),
    ("workspace", "objects", workspace_object, workspace_directory),
])  # fmt: skip
@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_does_not_condemn_the_others_of_its_listing(api, key, as_file, as_directory, name):
    plain, sub, path = f"{B}/plain", f"{B}/sub", f"{B}/{name}"
    for odd, counts in ((as_file, ODD_NAMES[name]), (as_directory, False)):
        listing = parse_listing(api, B, {key: [as_file(plain), as_directory(sub), odd(path)]})
        assert [entry.path for entry in listing.files] == ([plain, path] if counts else [plain])
        assert (listing.directories, lost(listing)) == ([sub], [] if counts else [path])


def test_an_odd_name_alone_is_a_listing():
    """Only among several does one have to lie directly in the directory. What is not said to be a directory is none."""
    assert parse_listing("dbfs", B, {"files": [{"path": f"{B}/x/y", "file_size": 5}]}).totals.bytes == 5
    assert parse_listing("dbfs", B, {"files": [dbfs_directory(f"{B}/x/y")]}).totals.failures[0]["path"] == f"{B}/x/y"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip
STATUSES = st.just(200) | st.sampled_from([204, 301, 400, 401, 403, 404, 418, 429, 500, 503])
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "Location", "Content-Encoding"]), TEXT)
BODIES = JSON.map(json.dumps) | bytes_of(b"{}", b'{"files": [', b"<html>")
PATHS = ["/Users/a", "/Users/a/b", "/Users/a/c", "/Users/a/b/c", "/Users", "/Users/a/..", "/", "/Users/b/x"]
TYPES = st.sampled_from(["DIRECTORY", "REPO", "FILE"])
GOOD = st.fixed_dictionaries({"path": st.sampled_from(PATHS[1:3] * 5 + PATHS), "is_dir": st.booleans(),
                              "object_type": TYPES, "file_size": st.sampled_from([0, 1, 2**40, -1])})  # fmt: skip
ENTRY = st.fixed_dictionaries({"path": st.sampled_from(PATHS) | JSON}, optional={
    "is_dir": st.booleans() | JSON, "file_size": st.integers(-1, 2**63) | JSON, "object_type": TYPES | JSON,
})  # fmt: skip
ENTRIES = st.lists(GOOD | ENTRY, max_size=4) | JSON
LISTING = st.fixed_dictionaries({}, optional={"files": ENTRIES, "objects": ENTRIES, "error_code": JSON})
GOOD_LISTING = st.lists(GOOD, min_size=1, max_size=3).map(lambda entries: {"files": entries, "objects": entries})


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@example("dbfs", 429, "{}", {"Retry-After": "3600"})
@given(st.sampled_from(FILE_SYSTEMS), STATUSES, (GOOD_LISTING | LISTING).map(json.dumps) | BODIES, HEADERS)
def test_any_answer_is_the_listing_or_an_error(file_system, status, body, headers):
    config, parse = DatabricksConfig("https://example.com", "dapi-5ecret"), partial(parse_listing, file_system)
    with responses.RequestsMock() as mocked:
        mocked.get(f"{config.host}/x", body=body, status=status, headers=headers)
        try:
            listing = DatabricksClient(config).attempt("/x", {"path": "/Users/a"}, partial(parse, "/Users/a"))
        except DatabricksError as error:
            assert not [text for text in (config.token, "\n") if text in str(error)]
            assert 0 <= error.retry_after <= 120
            return
    entries = json.loads(body).get("files" if file_system == "dbfs" else "objects") or []
    counted = [*(entry.path for entry in listing.files), *listing.directories, *lost(listing)]
    paths = {entry["path"] for entry in entries}
    assert status == 200
    assert paths - {"/Users/a", "/Users/a/"} <= set(counted) <= paths
    assert len(counted) == len(set(counted))
    assert all(path.startswith("/Users/a") for path in counted) or not listing.totals.directories
    assert not [path for path in listing.directories if "/" in path.removeprefix("/Users/a/")]
    if file_system == "dbfs":
        assert 0 <= listing.totals.bytes == sum(entry.size for entry in listing.files)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(RESULTS)
def test_a_result_survives_json(result):
    assert UserResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result
