"""What an answer is taken for: a listing, a failure, never an empty directory; what is in it, and what counts."""

import json
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databricks_user_files_simple import UserResult, parse_listing, scan_users
from databricks_user_list import DatabricksError
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import (
    ANN,
    BEN,
    FILE_SYSTEMS,
    HOME,
    MINUTE,
    assert_all_true,
    assert_truth,
    config_of,
    crawl,
    figures,
    listings,
    small_server,
)
from tests.strategies import BODIES, HEADERS, JSON, RESULTS, STATUSES, answered, flatten, plain_count, trees

CAL, DAN = "cal@example.com", "dan@example.com"
B, W = f"{HOME}/b", f"{HOME}/w"


# What is counted


@pytest.mark.parametrize(("shape", "users"), [
    ("mixed", 12), ("dbfs", 3), ("workspace", 3), ("deep", 1), ("awkward", 1), ("case", 3), ("bench", 2),
])  # fmt: skip
def test_a_scan_finds_the_truth_and_lists_no_directory_twice(clock, shape, users):
    with FakeDatabricks(users=users, shape=shape, shapes={5: "empty", 6: "none"}) as server:
        assert_all_true(server, crawl(server, clock))
        assert set(listings(server).values()) == {1}
    assert clock.waits == []


OBJECTS = st.sampled_from(["NOTEBOOK", "FILE", "LIBRARY", "DASHBOARD", "NEW", None])


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(trees(st.integers(0, 2**62)), trees(OBJECTS), st.integers(1, 12))
def test_trees_of_any_names_are_counted_as_a_plain_recursion_counts_them(dbfs, workspace, threads):
    """In whatever order the answers come."""
    with FakeDatabricks(users=[ANN, BEN], shape="none", latency_spread=0.004) as server:
        for name in server.user_names:
            server.add_tree("dbfs", flatten(f"/Users/{name}", dbfs, dbfs_file, dbfs_directory))
            as_directory = partial(workspace_object, object_type="DIRECTORY")
            server.add_tree("workspace", flatten(f"/Users/{name}", workspace, workspace_object, as_directory))
        results = list(scan_users(server.user_names, config_of(server), threads))
        files, _, directories = plain_count(workspace)
        expected = (*plain_count(dbfs), files, files * 10_000, directories)
        assert {result.username: figures(result) for result in results} == {ANN: expected, BEN: expected}
        assert set(listings(server).values()) == {1}


def test_repos_are_descended_into_and_everything_else_is_a_file(clock):
    types = ["NOTEBOOK", "LIBRARY", "FILE", "DASHBOARD", "SOMETHING_NEW", "MLFLOW_EXPERIMENT", None]
    with FakeDatabricks(users=[ANN], shape="none") as server:
        server.add_tree("workspace", {
            HOME: [workspace_object(f"{HOME}/r", "REPO"), workspace_object(f"{HOME}/folder", None),
                   *(workspace_object(f"{HOME}/{number}", name) for number, name in enumerate(types))],
            f"{HOME}/r": [workspace_object(f"{HOME}/r/x")],
            f"{HOME}/folder": [workspace_object(f"{HOME}/folder/x")],
        })  # fmt: skip
        found = crawl(server, clock)[ANN].workspace
    assert (found.files, found.bytes, found.directories) == (9, 90_000, 3)
    assert found.types == {**dict.fromkeys(types[1:-1], 1), "NOTEBOOK": 3, "REPO": 1, "UNKNOWN": 1}


def test_sizes_beyond_32_bits_add_up_exactly(clock):
    with small_server() as server:
        server.add_tree("dbfs", {f"{HOME}/a": [dbfs_file(f"{HOME}/a/f", 2**53 + 1)]})
        assert crawl(server, clock)[ANN].dbfs.bytes == 2**53 + 1 + 28


def test_the_newest_modification_is_told(clock):
    times = [1_700_000_001_007, 1_700_000_000_007, 32_503_680_000_000, -1, "soon"]  # none is told from the year 3000 on
    with small_server() as server:
        server.add_tree("dbfs", {f"{HOME}/a": [dbfs_file(f"{HOME}/a/{at}", 1, at) for at in times]})
        server.add_tree("dbfs", {f"{HOME}/b": [dbfs_file(f"{HOME}/b/x", 1, times[2])]})
        result = crawl(server, clock, file_systems=("dbfs",))[ANN]
        server.add_tree("dbfs", {HOME: [dbfs_directory(f"{HOME}/b")]})
        none = crawl(server, clock, file_systems=("dbfs",))[ANN]
    assert (result.status, result.dbfs.last_modified) == ("success", "2023-11-14T22:13:21Z")
    assert (none.status, none.dbfs.last_modified) == ("success", "")


# A failed listing is never an empty directory


def body_fault(value, **more):
    return {"kind": "body", "body": value if isinstance(value, str) else json.dumps(value), **more}


MENDED = {  # by another try
    **{kind: {"kind": kind} for kind in (
        "429", "500", "503", "slow", "reset", "reset_body", "truncated", "truncated_json", "empty_429", "html")},
    "500 that is a 429": {"kind": "500", "message": "REQUEST_LIMIT_EXCEEDED: too many"},
    "408": body_fault({}, status=408),
    "598": body_fault({}, status=598),
    "no body": body_fault(""),
    "null": body_fault(None),
    "an error with 200": body_fault({"error_code": "INTERNAL_ERROR", "message": "oops"}),
    "two documents": body_fault("{}{}"),
    "not UTF-8": {"kind": "body", "body": b'{"files": [{"path": "\xff"}]}'},
    "nested too deep": body_fault("[" * 100_000),
}  # fmt: skip
REFUSED = {  # for good
    **{kind: {"kind": kind} for kind in ("400", "403", "404_other", "redirect")},
    "403 as html": {"kind": "html", "status": 403},
    "404 as html": {"kind": "html", "status": 404},
    "404 without a code": body_fault({}, status=404),
    "404 with a list": body_fault([], status=404),
    "302 with a body": {"kind": "redirect", "location": "/api/2.0/dbfs/list?path=/Users"},
    "202": body_fault({}, status=202),
}


@pytest.mark.parametrize("kind", [*MENDED, *REFUSED])
def test_what_cannot_be_listed_is_in_its_users_row(clock, kind):
    """A directory, both homes, and the home in one file system."""
    fault = partial(Fault, **(MENDED | REFUSED)[kind])
    with small_server([ANN, BEN, CAL, DAN]) as server:
        server.change(faults=[fault(api="dbfs", path=B), fault(path=f"/Users/{BEN}"),
                              fault(api="workspace", path=f"/Users/{CAL}")])  # fmt: skip
        found = crawl(server, clock)
        assert (server.requests["dbfs", B] == 1) == (kind in REFUSED)
        assert_truth(found[DAN], server.truth(DAN))
    assert (found[ANN].status, found[ANN].file_source) == ("partial", "both")
    assert [failure["path"] for failure in found[ANN].dbfs.failures] == [B]
    assert found[ANN].error.startswith(f"dbfs:{B}: ")
    assert figures(found[ANN]) == (2, 105, 2, 2, 20_000, 2)
    assert (found[BEN].status, found[BEN].file_source, figures(found[BEN])) == ("error", "none", (0,) * 6)
    assert found[BEN].error.startswith(f"dbfs:/Users/{BEN}: ")
    assert found[BEN].error.endswith(" (and 1 more)")
    assert (found[CAL].status, found[CAL].file_source) == ("partial", "dbfs")
    assert figures(found[CAL]) == (4, 128, 4, 0, 0, 0)
    assert clock.now < 1000 + 5 * MINUTE
    assert (clock.waits == []) == (kind in REFUSED)


@pytest.mark.parametrize("kind", MENDED)
def test_what_fails_once_is_tried_again_and_counted_once(clock, kind):
    times = 1 if kind == "slow" else 2
    with small_server() as server:
        server.change(faults=[Fault(**MENDED[kind], api="dbfs", path=path, times=times) for path in (HOME, B)])
        assert_all_true(server, crawl(server, clock))
        assert [server.requests["dbfs", path] for path in (HOME, B)] == [times + 1] * 2


def test_a_directory_too_large_for_the_api_is_named_with_the_way_round(clock):
    with small_server() as server:
        server.change(faults=[Fault("slow", api="dbfs", path=B)])
        error = crawl(server, clock)[ANN].error
    assert error.startswith(f"dbfs:{B}: ")
    assert "dbutils.fs" in error


# What is a listing

NO_LISTINGS = {
    "list": [], "text": "files", "files is null": {"files": None}, "files is an object": {"files": {}},
    "key of the other API": {"objects": []}, "next page only": {"next_page_token": "x"},
    "entry is null": {"files": [None]}, "entry is a text": {"files": [f"{B}/x"]},
    **{f"entry {name}": {"files": [dbfs_file(path, 1)]} for name, path in {
        "outside": "/Users/other/x", "parent": HOME, "sibling with the same prefix": f"{B}b", "empty": "",
        "other scheme": f"s3:{B}/x",
    }.items()},
    **{f"directory {name}": {"files": [dbfs_directory(path)]} for name, path in {"itself": B, "parent": HOME}.items()},
    "a next page": {"files": [dbfs_file(f"{B}/x", 1)], "next_page_token": "x"},
    "none lies directly in it": {"files": [dbfs_file(f"{B}/x/y", 1), dbfs_file(f"{B}/x/z", 1)]},
    "path missing": {"files": [{"is_dir": False, "file_size": 1}]},
    "path is a number": {"files": [{"path": 1, "is_dir": False, "file_size": 1}]},
    "same directory twice": {"files": [dbfs_directory(f"{B}/c")] * 2},
    "file and directory of one name": {"files": [dbfs_directory(f"{B}/c"), dbfs_file(f"{B}/c", 1)]},
    "itself among others": {"files": [dbfs_file(B, 1), dbfs_file(f"{B}/x", 1)]},
    "good one and bad one": {"files": [dbfs_file(f"{B}/x", 1), dbfs_file(f"{HOME}/y", 1)]},
    "no size": {"files": [{"path": f"{B}/x", "is_dir": False}]},
    "is_dir is no truth": {"files": [{"path": f"{B}/x", "is_dir": "no", "file_size": 1}]},
    **{f"size {size!r}": {"files": [dbfs_file(f"{B}/x", size)]} for size in (None, -1, "5", 1.5, True, 2**63)},
}  # fmt: skip
NO_WORKSPACE_LISTINGS = [
    [workspace_object(f"{HOME}/x")], [workspace_object(W, "DIRECTORY")], [workspace_object(W, "REPO")],
    [workspace_object(f"{W}/x")] * 2, [{"object_type": "FILE"}], [workspace_object(f"{W}/x", 7)],
    [workspace_object(f"/Workspace{W}/x")], [None], None, {},
]  # fmt: skip


@pytest.mark.parametrize("name", NO_LISTINGS)
def test_what_is_no_listing_is_not_counted(clock, name):
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps(NO_LISTINGS[name]), api="dbfs", path=B)])
        result = crawl(server, clock)[ANN]
    assert (result.status, [failure["path"] for failure in result.dbfs.failures]) == ("partial", [B])
    assert figures(result) == (2, 105, 2, 2, 20_000, 2)


@pytest.mark.parametrize("entries", NO_WORKSPACE_LISTINGS, ids=lambda entries: json.dumps(entries)[:60])
def test_what_is_no_workspace_listing_is_not_counted(clock, entries):
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps({"objects": entries}), api="workspace", path=W)])
        result = crawl(server, clock)[ANN]
    assert (result.status, [failure["path"] for failure in result.workspace.failures]) == ("partial", [W])
    assert figures(result) == (4, 128, 4, 1, 10_000, 1)


@pytest.mark.parametrize("body", ["{}", '{"files": [], "more": 1}', " {\n}\n"])
def test_a_directory_with_nothing_in_it_is_empty(clock, body):
    with small_server() as server:
        server.change(faults=[Fault("body", body=body, api="dbfs", path=B)])
        result = crawl(server, clock)[ANN]
    assert (result.status, figures(result)[:3]) == ("success", (2, 105, 3))


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
    "a/b": True, "/": True, "x/": True, "sub/x": False, "../x": False, "..": False, ".": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("api", FILE_SYSTEMS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_does_not_condemn_the_others_of_its_listing(clock, api, name):
    folder = B if api == "dbfs" else W
    as_file: Callable[[str], dict] = partial(dbfs_file, size=1) if api == "dbfs" else workspace_object
    as_directory = dbfs_directory if api == "dbfs" else partial(workspace_object, object_type="DIRECTORY")
    for odd, counts in ((as_file, ODD_NAMES[name]), (as_directory, False)):
        listed = [as_file(f"{folder}/plain"), as_directory(f"{folder}/sub"), odd(f"{folder}/{name}")]
        with small_server() as server:
            key = "files" if api == "dbfs" else "objects"
            server.add_tree(api, {f"{folder}/sub": []})
            server.change(faults=[Fault("body", body=json.dumps({key: listed}), api=api, path=folder)])
            result = crawl(server, clock)[ANN]
        assert figures(result)[0 if api == "dbfs" else 3] == (3 if api == "dbfs" else 2) + counts
        assert [at["path"] for at in result.scanned[api].failures] == ([] if counts else [f"{folder}/{name}"])
        assert result.status == ("success" if counts else "partial")


def test_a_name_that_is_no_unicode_is_a_failure_of_that_directory_alone(clock):
    body = json.dumps({"files": [dbfs_directory(f"{B}/\ud800"), dbfs_file(f"{B}/\udfff", 9), dbfs_directory(f"{B}/c")]})
    with small_server() as server:
        server.change(faults=[Fault("body", body=body, api="dbfs", path=B)])
        result = crawl(server, clock)[ANN]
    assert (result.status, len(result.dbfs.failures), figures(result)[:3]) == ("partial", 1, (4, 117, 4))


# Any answer at all

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


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILE_SYSTEMS), STATUSES, (GOOD_LISTING | LISTING).map(json.dumps) | BODIES, HEADERS)
def test_any_answer_is_the_listing_or_an_error(file_system, status, body, headers):
    listing = answered(partial(parse_listing, file_system, "/Users/a"), status, body, headers)
    if isinstance(listing, DatabricksError):
        return
    entries = json.loads(body).get("files" if file_system == "dbfs" else "objects", [])
    counted = [*(entry.path for entry in listing.files), *listing.directories, *listing.odd]
    assert status == 200
    assert sorted(counted) == sorted({entry["path"] for entry in entries})
    assert len(counted) == len(entries)
    assert all(path.startswith("/Users/a/") for path in counted) or listing.is_file and len(entries) == 1
    assert not [path for path in listing.directories if "/" in path.removeprefix("/Users/a/")]
    if file_system == "dbfs":
        assert 0 <= listing.bytes == sum(entry.size for entry in listing.files)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(RESULTS)
def test_a_result_survives_json(result):
    assert UserResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result
