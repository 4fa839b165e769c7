"""Scanning against a fake workspace over real HTTP: what is counted, and what happens when listings fail.

Where nothing else is said the clock is a fake one: it moves only when the program sleeps.
"""

import csv
import json
import logging
import socket
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from email.utils import formatdate
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import databricks_user_files_simple as inventory
import databricks_user_list
from databricks_user_files_simple import scan_dbfs, scan_user_directory, scan_users, scan_workspace
from databricks_user_list import DatabricksClient, DatabricksConfig, InventoryError
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import SCANNER, set_constants
from tests.strategies import flatten, plain_count, trees

FILE_SYSTEMS = ("dbfs", "workspace")
ANN, BEN = "ann@example.com", "ben@example.com"
HOME = f"/Users/{ANN}"
MINUTE = 60


# Helpers


def config_of(server):
    return DatabricksConfig(server.url, server.settings.token)


def make_client(server, clock, threads=16, jitter=1.0):
    return DatabricksClient(config_of(server), threads, clock=clock, sleep=clock.sleep, jitter=lambda: jitter)


def tick(clock, on_tick):
    """Ends a scan that would go on for ever."""
    assert clock.now < 1000 + 40 * MINUTE, "no end after forty minutes"
    on_tick()


@contextmanager
def ended_threads():
    """Waits for the threads that were started: they use the server."""
    before = threading.enumerate()
    try:
        yield
    finally:
        for thread in set(threading.enumerate()).difference(before):
            thread.join(10)


def scan(server, clock, names=None, threads=16, jitter=1.0, on_tick=lambda: None, **more):
    """User name -> result of a scan on the fake clock."""
    client = make_client(server, clock, threads, jitter)
    with ended_threads():
        results = list(scan_users(names or server.user_names, client.config, threads, client=client,
                                  on_tick=partial(tick, clock, on_tick), **more))  # fmt: skip
    assert len(results) == len({result.username for result in results})
    return {result.username: result for result in results}


def figures(result):
    """What Truth has, as found by a scan."""
    dbfs, workspace = (getattr(result, name) or inventory.FileSystemTotals() for name in FILE_SYSTEMS)
    return (dbfs.files, dbfs.bytes, dbfs.directories, workspace.files, workspace.bytes, workspace.directories,
            dict(dbfs.types), dict(workspace.types))  # fmt: skip


def true_figures(truth):
    dbfs_types = Counter(FILE=truth.dbfs_files, DIRECTORY=max(truth.dbfs_directories - 1, 0))
    return (truth.dbfs_files, truth.dbfs_bytes, truth.dbfs_directories,
            truth.workspace_objects, 10_000 * truth.workspace_objects, truth.workspace_directories,
            dict(+dbfs_types), dict(truth.types))  # fmt: skip


def true_source(truth):
    found = [name for name, files in zip(FILE_SYSTEMS, (truth.dbfs_files, truth.workspace_objects), strict=True)
             if files]  # fmt: skip
    return "both" if len(found) == 2 else [*found, "none"][0]


def assert_truth(result, truth):
    assert figures(result) == true_figures(truth)
    assert (result.file_count, result.total_size) == (truth.file_count, truth.total_size)
    assert result.status == ("success" if truth.file_count else "empty")
    assert result.file_source == true_source(truth)
    assert result.error == ""


def assert_all_true(server, results):
    assert sorted(results) == sorted(server.user_names)
    for name, result in results.items():
        assert_truth(result, server.truth(name))


def listings(server):
    """(file system, path) -> how often it was asked for; without /Users, which is listed to see who has a home."""
    return {key: number for key, number in server.requests.items() if key[0] in FILE_SYSTEMS and key[1] != "/Users"}


def small_server(names=(ANN,), **more):
    """Users with four directories in DBFS (files of 128 bytes in all) and two in the Workspace (two objects)."""
    server = FakeDatabricks(users=list(names), shape="none", **more)
    for name in names:
        home = f"/Users/{name}"
        server.add_tree("dbfs", {
            home: [dbfs_directory(f"{home}/a"), dbfs_file(f"{home}/top", 5), dbfs_directory(f"{home}/b")],
            f"{home}/a": [dbfs_file(f"{home}/a/one", 100)],
            f"{home}/b": [dbfs_file(f"{home}/b/two", 20), dbfs_directory(f"{home}/b/c")],
            f"{home}/b/c": [dbfs_file(f"{home}/b/c/three", 3)],
        })  # fmt: skip
        server.add_tree("workspace", {
            home: [workspace_object(f"{home}/n"), workspace_object(f"{home}/w", "DIRECTORY")],
            f"{home}/w": [workspace_object(f"{home}/w/f", "FILE")],
        })  # fmt: skip
    return server


def wide_server(directories, **more):
    """One user with so many directories in the DBFS home, a file of one byte in each; the last is listed first."""
    server = FakeDatabricks(users=[ANN], shape="none", **more)
    paths = [f"{HOME}/d{number:04}" for number in range(directories)]
    tree = {path: [dbfs_file(f"{path}/f", 1)] for path in paths}
    server.add_tree("dbfs", {HOME: [dbfs_directory(path) for path in paths], **tree})
    return server


class Recorder:
    """In place of a fault: it never applies, and notes when and what was asked for, by the fake clock."""

    of_workers = False

    def __init__(self, clock):
        self.clock = clock
        self.seen = []

    def applies(self, api, path, _):
        if path != "/Users":  # which every run lists first
            self.seen.append((self.clock.now, api, path))
        return False

    def times(self, path, api="dbfs"):
        return [now for now, its_api, its_path in self.seen if (its_api, its_path) == (api, path)]

    def offsets(self, path, api="dbfs"):
        """Seconds from the first request for it to each."""
        times = self.times(path, api)
        return [now - times[0] for now in times]


@pytest.fixture
def recorder(clock):
    return Recorder(clock)


@pytest.fixture
def said():
    """The warnings of the program."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    before = databricks_user_list.log.level
    databricks_user_list.log.addHandler(handler)
    databricks_user_list.log.setLevel(logging.WARNING)
    yield lines
    databricks_user_list.log.removeHandler(handler)
    databricks_user_list.log.setLevel(before)


# What is counted


@pytest.mark.parametrize(("shape", "users"), [
    ("mixed", 16), ("small", 20), ("dbfs", 3), ("workspace", 3), ("giant", 1), ("deep", 1), ("awkward", 1),
    ("empty", 3), ("none", 3), ("case", 3), ("bench", 2),
])  # fmt: skip
def test_a_scan_finds_the_truth_and_lists_no_directory_twice(clock, shape, users):
    with FakeDatabricks(users=users, shape=shape) as server:
        results = scan(server, clock)
        assert_all_true(server, results)
        assert set(listings(server).values()) == {1}
        expected = sum(result.dbfs.directories + result.workspace.directories for result in results.values())
        assert sum(path.startswith("/Users/") for _, path in listings(server)) >= expected
    assert clock.waits == []


def test_one_thread_makes_one_request_at_a_time(clock):
    with FakeDatabricks(users=5, shape="small", latency=0.001) as server:
        assert_all_true(server, scan(server, clock, threads=1))
        assert server.max_in_flight == 1


def test_sixteen_threads_make_sixteen_requests_at_a_time_and_no_more(clock):
    with FakeDatabricks(users=10, shape="small", latency=0.01) as server:
        assert_all_true(server, scan(server, clock, threads=16))
        assert server.max_in_flight == 16


@pytest.mark.parametrize("only", FILE_SYSTEMS)
def test_one_file_system_alone_is_scanned_alone(clock, only):
    with FakeDatabricks(users=12) as server:
        results = scan(server, clock, file_systems=(only,))
        assert {api for api, _ in listings(server)} == {only}
        for name, result in results.items():
            truth = server.truth(name)
            assert list(result.scanned) == [only]
            assert result.file_count == (truth.dbfs_files if only == "dbfs" else truth.workspace_objects)
            assert result.status == ("success" if result.file_count else "empty")


def test_the_functions_for_one_user_find_the_truth():
    with FakeDatabricks(users=1, shape="small") as server:
        name, config = server.user_names[0], config_of(server)
        truth = server.truth(name)
        assert_truth(scan_user_directory(name, config), truth)
        dbfs, workspace = scan_dbfs(name, config), scan_workspace(name, config)
        assert (dbfs.files, dbfs.bytes, dbfs.directories) == true_figures(truth)[:3]
        assert (workspace.files, workspace.bytes, workspace.directories) == true_figures(truth)[3:6]
        assert workspace.types == truth.types


def test_a_name_given_twice_is_scanned_once(clock):
    with small_server() as server:
        config = config_of(server)
        results = list(scan_users([ANN, ANN], config, client=make_client(server, clock)))
        assert [result.username for result in results] == [ANN]
        assert set(listings(server).values()) == {1}


def test_a_result_comes_before_the_last_user_is_scanned(clock):
    with FakeDatabricks(users=30, shape="small", shapes={29: "giant"}) as server:
        client = make_client(server, clock)
        with ended_threads(), closing(scan_users(server.user_names, client.config, client=client)) as results:
            assert next(results).username in server.user_names[:29]
        assert server.total_requests < 3000


def test_where_no_more_threads_are_to_be_had_it_goes_on_with_those_there_are(monkeypatch, caplog):
    start, began = threading.Thread.start, []

    def start_three(thread):
        if len(began) == 3:
            raise RuntimeError("can't start new thread")
        began.append(thread)
        start(thread)

    with FakeDatabricks(users=5, shape="small", latency=0.001) as server:
        monkeypatch.setattr(threading.Thread, "start", start_three)
        results = list(scan_users(server.user_names, config_of(server), threads=16))
        truth = [server.truth(result.username) for result in results]
    assert len(results) == 5
    assert [result.file_count for result in results] == [user.file_count for user in truth]
    assert "can't start new thread: going on with 3 threads" in caplog.text


def test_no_users_are_no_requests(clock):
    with small_server() as server:
        assert list(scan_users([], config_of(server), client=make_client(server, clock))) == []
        assert server.total_requests == 0


# Names: any text without "/" that is neither "." nor ".."


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(trees(st.integers(0, 2**62)), trees(st.sampled_from(["NOTEBOOK", "FILE", "LIBRARY", "DASHBOARD", "NEW", None])))
def test_trees_of_any_names_are_counted_as_a_plain_recursion_counts_them(dbfs, workspace):
    with FakeDatabricks(users=[ANN], shape="none") as server:
        server.add_tree("dbfs", flatten(HOME, dbfs, dbfs_file, dbfs_directory))
        server.add_tree("workspace", flatten(HOME, workspace, workspace_object,
                                             lambda path: workspace_object(path, "DIRECTORY")))  # fmt: skip
        result = scan_user_directory(ANN, config_of(server), threads=2)
        assert (result.dbfs.files, result.dbfs.bytes, result.dbfs.directories) == plain_count(dbfs)
        files, _, directories = plain_count(workspace)
        assert (result.workspace.files, result.workspace.bytes) == (files, files * 10_000)
        assert result.workspace.directories == directories
        assert set(listings(server).values()) == {1}


def test_repos_are_descended_into_and_everything_else_is_a_file(clock):
    types = ["NOTEBOOK", "LIBRARY", "FILE", "DASHBOARD", "SOMETHING_NEW", "MLFLOW_EXPERIMENT", None]
    with FakeDatabricks(users=[ANN], shape="none") as server:
        server.add_tree("workspace", {
            HOME: [workspace_object(f"{HOME}/r", "REPO"),
                   *(workspace_object(f"{HOME}/{number}", name) for number, name in enumerate(types))],
            f"{HOME}/r": [workspace_object(f"{HOME}/r/x")],
        })  # fmt: skip
        found = scan(server, clock)[ANN].workspace
    assert (found.files, found.bytes, found.directories) == (8, 80_000, 2)
    assert found.types == {**dict.fromkeys(types[1:-1], 1), "NOTEBOOK": 2, "REPO": 1, "UNKNOWN": 1}


# A failed listing is never an empty directory


def body_fault(value, **more):
    return {"kind": "body", "body": value if isinstance(value, str) else json.dumps(value), **more}


FAULTS = {
    **{kind: {"kind": kind} for kind in (
        "400", "403", "404_other", "429", "500", "502", "503", "504", "slow", "reset", "reset_body", "truncated",
        "truncated_json", "empty_429", "html", "redirect")},
    "500 that is a 429": {"kind": "500", "message": "REQUEST_LIMIT_EXCEEDED: too many"},
    "403 as html": {"kind": "html", "status": 403},
    "404 as html": {"kind": "html", "status": 404},
    "404 without a code": body_fault({}, status=404),
    "404 with a list": body_fault([], status=404),
    "302 with a body": {"kind": "redirect", "location": "/api/2.0/dbfs/list?path=/Users"},
    "307": {"kind": "redirect", "status": 307, "location": "/api/2.0/dbfs/list?path=/Users"},
    "418": body_fault({"files": []}, status=418),
    "202": body_fault({}, status=202),
    "408": body_fault({}, status=408),
    "598": body_fault({}, status=598),
    "no body": body_fault(""),
    "null": body_fault(None),
    "a list": body_fault([]),
    "a text": body_fault("\"files\""),
    "a number": body_fault(0),
    "an error with 200": body_fault({"error_code": "INTERNAL_ERROR", "message": "oops"}),
    "two documents": body_fault("{}{}"),
    "not UTF-8": {"kind": "body", "body": b'{"files": [{"path": "\xff"}]}'},
    "nested too deep": body_fault("[" * 100_000),
}  # fmt: skip
RETRIED = [kind for kind in FAULTS if kind not in (
    "400", "403", "404_other", "redirect", "403 as html", "404 as html", "404 without a code", "404 with a list",
    "302 with a body", "307", "418", "202")]  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_directory_that_cannot_be_listed_makes_its_user_partial(clock, kind):
    with small_server([ANN, BEN]) as server:
        server.change(faults=[Fault(**FAULTS[kind], api="dbfs", path=f"{HOME}/b")])
        results = scan(server, clock)
        result = results[ANN]
        assert result.status == "partial"
        assert [failure["path"] for failure in result.dbfs.failures] == [f"{HOME}/b"]
        assert f"{HOME}/b" in result.error
        assert figures(result)[:6] == (2, 105, 2, 2, 20_000, 2)
        assert_truth(results[BEN], server.truth(BEN))
    assert clock.now < 1000 + 5 * MINUTE


@pytest.mark.parametrize("kind", FAULTS)
def test_a_home_that_cannot_be_listed_makes_its_user_an_error_and_not_empty(clock, kind):
    with small_server() as server:
        server.change(faults=[Fault(**FAULTS[kind], path=HOME)])
        result = scan(server, clock)[ANN]
    assert (result.status, result.file_count, result.total_size, result.file_source) == ("error", 0, 0, "none")
    assert [failure["path"] for failure in result.dbfs.failures + result.workspace.failures] == [HOME, HOME]
    assert f"dbfs:{HOME}" in result.error
    assert "1 more" in result.error


@pytest.mark.parametrize("kind", FAULTS)
def test_a_home_that_cannot_be_listed_in_one_file_system_makes_its_user_partial(clock, kind):
    with small_server() as server:
        server.change(faults=[Fault(**FAULTS[kind], api="workspace", path=HOME)])
        result = scan(server, clock)[ANN]
    assert (result.status, result.file_source) == ("partial", "dbfs")
    assert figures(result)[:6] == (4, 128, 4, 0, 0, 0)


@pytest.mark.parametrize("path", [HOME, f"{HOME}/b"])
@pytest.mark.parametrize("kind", RETRIED)
def test_what_fails_once_is_tried_again_and_counted_once(clock, kind, path):
    with small_server() as server:
        server.change(faults=[Fault(**FAULTS[kind], api="dbfs", path=path, times=1 if kind == "slow" else 2)])
        assert_all_true(server, scan(server, clock))
        assert server.requests["dbfs", path] == (2 if kind == "slow" else 3)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in RETRIED])
def test_what_no_retry_can_mend_is_asked_for_once(clock, kind):
    with small_server() as server:
        server.change(faults=[Fault(**FAULTS[kind], api="dbfs", path=f"{HOME}/b")])
        scan(server, clock)
        assert server.requests["dbfs", f"{HOME}/b"] == 1
    assert clock.waits == []


def test_a_request_that_is_not_answered_is_tried_again(clock, monkeypatch):
    set_constants(monkeypatch, READ_SECONDS=0.1)
    with small_server() as server:
        server.change(faults=[Fault("hang", seconds=5, api="dbfs", path=f"{HOME}/b", times=2)])
        assert_all_true(server, scan(server, clock))


def test_every_listing_may_fail_now_and_then(clock):
    kinds = ("500", "503", "reset", "truncated", "reset_body", "truncated_json", "html", "empty_429")
    names = [f"user{number}@example.com" for number in range(20)]
    with small_server(names) as server:
        server.change(faults=[Fault(kind, rate=0.03, api=api) for kind in kinds for api in FILE_SYSTEMS])
        assert_all_true(server, scan(server, clock))
        assert server.counts.faults.total() > 5


def test_a_directory_too_large_for_the_api_is_named_with_the_way_round(clock):
    with small_server() as server:
        server.change(faults=[Fault("slow", api="dbfs", path=f"{HOME}/b")])
        error = scan(server, clock)[ANN].error
    assert f"{HOME}/b" in error
    assert "dbutils.fs" in error


def test_the_first_failure_is_named_and_the_others_counted(clock):
    with small_server() as server:
        server.change(faults=[Fault("403", path=f"{HOME}/{name}") for name in ("a", "b", "w")])
        result = scan(server, clock)[ANN]
    assert result.error.startswith(f"dbfs:{HOME}/a: ")
    assert "2 more" in result.error
    assert result.status == "partial"


# When it is tried again

SCHEDULES = {  # kind: seconds from the first to each further attempt of the first round
    "429": [0, 4, 12, 28, 60], "500 that is a 429": [0, 4, 12, 28, 60], "empty_429": [0, 4, 12, 28, 60],
    **{kind: [0, 2, 6, 14, 30] for kind in ("500", "502", "503", "504", "reset", "truncated", "html", "null")},
    "slow": [0, 2],
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_waits_between_attempts_double(clock, recorder, kind):
    with small_server() as server:
        server.change(faults=[recorder, Fault(**FAULTS[kind], api="dbfs", path=HOME)])
        result = scan(server, clock, file_systems=("dbfs",))[ANN]
    expected = SCHEDULES[kind]
    assert recorder.offsets(HOME)[: len(expected)] == pytest.approx(expected, abs=0.2)
    assert result.status == "error"


def test_waits_are_jittered_down_to_the_half(clock, recorder):
    with small_server() as server:
        server.change(faults=[recorder, Fault("500", api="dbfs", path=HOME)])
        scan(server, clock, file_systems=("dbfs",), jitter=0.0)
    assert recorder.offsets(HOME)[:5] == pytest.approx([0, 1, 3, 7, 15])


@pytest.mark.parametrize(("kind", "times"), [("500", 5), ("429", 5), ("slow", 2), ("reset", 5), ("html", 5)])
def test_what_ran_out_of_attempts_gets_one_more_round_before_the_row_is_written(clock, kind, times):
    with small_server() as server:
        server.change(faults=[Fault(kind, api="dbfs", path=f"{HOME}/b", times=times)])
        assert_all_true(server, scan(server, clock))
        assert server.requests["dbfs", f"{HOME}/b"] == times + 1


@pytest.mark.parametrize(("kind", "most"), [("500", 10), ("429", 10), ("slow", 4)])
def test_there_is_no_third_round(clock, kind, most):
    with small_server() as server:
        server.change(faults=[Fault(kind, api="dbfs", path=HOME)])
        scan(server, clock, file_systems=("dbfs",))
        assert server.requests["dbfs", HOME] <= most


RETRY_AFTER = [  # kind, header, seconds to the second attempt
    ("429", "50", 50), ("503", "50", 50), ("empty_429", "50", 50), ("429", "1", 4), ("503", "0", 2),
    ("429", "3600", 120), ("503", "99999999999999999999", 120), ("429", "soon", 4), ("429", "-5", 4), ("500", "50", 2),
    ("429", "Mon, 01 Jan 2001 00:00:00 GMT", 4), ("slow", "50", 50),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "header", "seconds"), RETRY_AFTER)
def test_retry_after_is_a_lower_bound_of_the_wait(clock, recorder, kind, header, seconds):
    with small_server() as server:
        server.change(faults=[recorder, Fault(kind, path=HOME, times=1, headers={"Retry-After": header})])
        assert scan(server, clock, file_systems=("dbfs",))[ANN].status == "success"
    assert recorder.offsets(HOME) == pytest.approx([0, seconds], abs=0.2)


def test_retry_after_may_be_a_date(clock, recorder):
    date = formatdate(time.time() + 60, usegmt=True)
    with small_server() as server:
        server.change(faults=[recorder, Fault("429", path=HOME, times=1, headers={"Retry-After": date})])
        scan(server, clock, file_systems=("dbfs",))
    assert 55 <= recorder.offsets(HOME)[1] <= 61


def test_a_429_uses_up_no_attempt_while_others_of_the_api_succeed(clock):
    with wide_server(1500) as server:
        path = f"{HOME}/d1499"
        server.change(faults=[Fault("429", path=path, times=14)])
        result = scan(server, clock, file_systems=("dbfs",))[ANN]
        assert server.requests["dbfs", path] == 15
    assert (result.status, result.file_count) == ("success", 1500)


def test_any_other_failure_uses_up_attempts_while_others_succeed(clock):
    with wide_server(1500) as server:
        path = f"{HOME}/d1499"
        server.change(faults=[Fault("500", path=path, times=14)])
        assert scan(server, clock, file_systems=("dbfs",))[ANN].status == "partial"
        assert server.requests["dbfs", path] <= 10


@pytest.mark.parametrize("threads", [1, 4])
def test_a_listing_that_waits_holds_up_no_other(clock, recorder, threads):
    with small_server([ANN, BEN]) as server:
        server.change(faults=[recorder, Fault("500", api="dbfs", path=f"{HOME}/b", times=1)])
        assert_all_true(server, scan(server, clock, threads=threads))
    late = {path for now, _, path in recorder.seen if now > 1000}
    assert late == {f"{HOME}/b", f"{HOME}/b/c"}


@pytest.mark.parametrize(("limited", "other"), [FILE_SYSTEMS, FILE_SYSTEMS[::-1]])
def test_a_rate_limited_file_system_does_not_hold_up_the_other(clock, recorder, limited, other):
    with FakeDatabricks(users=6, shape="small") as server:
        home = f"/Users/{server.user_names[0]}"
        server.change(faults=[recorder, Fault("429", api=limited, path=home, times=1, headers={"Retry-After": "100"})])
        assert_all_true(server, scan(server, clock))
        assert {now for now, api, _ in recorder.seen if api == other} == {1000}
    assert clock.now >= 1100


def gaps_of(recorder, after=0):
    """Seconds between requests for directories below the home, from so many of them on."""
    times = [now for now, api, path in recorder.seen if api == "dbfs" and path.startswith(f"{HOME}/")]
    return [later - earlier for earlier, later in pairwise(times[after:])]


def test_a_429_slows_the_requests_down_and_successes_let_them_be_faster_again(clock, recorder):
    with wide_server(600) as server:
        server.change(faults=[recorder, Fault("429", api="dbfs", path=HOME, times=1)])
        assert scan(server, clock, threads=4)[ANN].file_count == 600
    gaps = gaps_of(recorder)
    first, last = sum(gaps[:50]) / 50, sum(gaps[-50:]) / 50
    assert 0.02 <= first <= 0.06
    assert last < first / 2


def test_429s_to_requests_that_left_together_slow_down_once(clock, recorder):
    """Sixteen are in flight when the first of them is answered; each for itself would be 2 requests a second."""
    with wide_server(100, latency=0.05) as server:
        paths = [f"{HOME}/d{number:04}" for number in range(100 - 16, 100)]
        server.change(faults=[recorder, *(Fault("429", path=path, times=1) for path in paths)])
        assert scan(server, clock)[ANN].file_count == 100
    assert gaps_of(recorder, 20)[0] <= 0.06


def test_the_first_rate_is_what_was_just_being_achieved(clock, recorder):
    with wide_server(400) as server:
        server.change(faults=[recorder, Fault("429", path=f"{HOME}/d0200", times=1)])
        assert scan(server, clock, threads=1, on_tick=lambda: clock.sleep(0.005))[ANN].file_count == 400
    assert sum(gaps_of(recorder, 200)[1:51]) / 50 < 0.02


def test_time_that_was_lost_is_not_made_up_for_by_a_burst(clock, recorder):
    lost = []

    def lose_a_minute():
        if len(recorder.seen) > 100 and not lost:
            lost.append(len(gaps_of(recorder)))
            clock.sleep(60)

    with wide_server(200) as server:
        server.change(faults=[recorder, Fault("429", api="dbfs", path=HOME, times=1)])
        assert scan(server, clock, threads=4, on_tick=lose_a_minute)[ANN].file_count == 200
    assert sum(gaps_of(recorder, lost[0] + 2)[:10]) > 0.1


def test_no_request_is_delayed_where_there_is_no_429(clock):
    with wide_server(200) as server:
        scan(server, clock)
    assert clock.waits == []


def test_a_workspace_with_limits_is_scanned_whole(monkeypatch):
    set_constants(monkeypatch, RETRIES=dict.fromkeys(databricks_user_list.RETRIES, (5, 0.1)))
    with wide_server(130, limit=100) as server:
        result = scan_user_directory(ANN, config_of(server))
        assert server.statuses[429] > 0
    assert (result.status, result.file_count) == ("success", 130)


# Outage


@pytest.mark.parametrize("failing", [2, 3, 12, 40])
@pytest.mark.parametrize("kind", ["500", "429", "reset", "slow", "html"])
def test_several_directories_that_always_fail_are_no_outage(clock, failing, kind):
    with wide_server(60) as server:
        paths = [f"{HOME}/d{number:04}" for number in range(failing)]
        server.change(faults=[Fault(kind, path=path) for path in paths])
        result = scan(server, clock)[ANN]
    assert (result.status, result.file_count) == ("partial", 60 - failing)
    assert sorted(failure["path"] for failure in result.dbfs.failures) == paths
    assert clock.now < 1000 + 14 * MINUTE


def test_homes_that_always_fail_are_no_outage(clock):
    names = [f"user{number}@example.com" for number in range(30)]
    with small_server(names) as server:
        server.change(faults=[Fault("500", api="dbfs", path=f"/Users/{name}") for name in names])
        results = scan(server, clock)
    assert {result.status for result in results.values()} == {"partial"}
    assert all(figures(result)[3:6] == (2, 20_000, 2) for result in results.values())


def test_two_directories_that_always_fail_are_no_outage_where_the_root_cannot_be_listed(clock):
    with small_server() as server:
        server.change(faults=[Fault("500", api="dbfs", path=path) for path in (f"{HOME}/a", f"{HOME}/b")]
                      + [Fault("403", path="/")])  # fmt: skip
        result = scan(server, clock)[ANN]
    assert (result.status, len(result.dbfs.failures)) == ("partial", 2)


class Outage:
    """Turns the workspace off after some requests and on again after some time; given to a scan as on_tick."""

    def __init__(self, server, clock, kind, after=30, seconds=None):
        self.server, self.clock, self.kind, self.after, self.seconds = server, clock, kind, after, seconds
        self.began = None
        self.over = False

    def __call__(self):
        if self.began is None and self.server.total_requests >= self.after:
            self.began = self.clock.now
            self.server.change(outage=self.kind)
        elif self.began is not None and self.seconds and not self.over and self.clock.now > self.began + self.seconds:
            self.over = True
            self.server.change(outage=None)


@pytest.mark.parametrize("minutes", [0.5, 5, 13])
@pytest.mark.parametrize("kind", ["503", "close"])
def test_an_outage_in_the_middle_of_a_scan_costs_nothing_but_time(clock, said, kind, minutes):
    with FakeDatabricks(users=8, shape="small") as server:
        outage = Outage(server, clock, kind, seconds=minutes * MINUTE)
        results = scan(server, clock, on_tick=outage)
        assert outage.over
        assert_all_true(server, results)
        assert server.statuses[503] + server.statuses["close"] < 120
    assert clock.now - outage.began < minutes * MINUTE + 3 * MINUTE
    assert any("in a row" in line for line in said)


@pytest.mark.parametrize("kind", ["503", "close"])
def test_an_outage_for_good_ends_the_run_after_fifteen_minutes(clock, kind):
    with FakeDatabricks(users=8, shape="small") as server:
        outage = Outage(server, clock, kind)
        with pytest.raises(InventoryError, match="15 minutes"):
            scan(server, clock, on_tick=outage)
    assert 15 * MINUTE <= clock.now - outage.began < 18 * MINUTE


def test_an_outage_of_one_api_for_good_ends_the_run(clock):
    with FakeDatabricks(users=8, shape="small", faults=[Fault("503", api="dbfs")]) as server:
        with pytest.raises(InventoryError, match="15 minutes"):
            scan(server, clock)
        assert server.counts.api_statuses["dbfs", 503] < 150


@pytest.mark.parametrize(("header", "first"), [(None, 2), ("30", 30)])
def test_an_api_that_is_away_is_asked_for_its_root_ever_more_rarely(clock, recorder, header, first):
    fault = Fault("503", api="dbfs", headers={"Retry-After": header} if header else {})
    with FakeDatabricks(users=20, shape="dbfs") as server:
        fault.applies = lambda api, path, _: api == "dbfs" and path != "/Users"
        server.change(faults=[recorder, fault])
        with pytest.raises(InventoryError, match="15 minutes"):
            scan(server, clock)
    times = [1000, *recorder.times("/")]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:7] == pytest.approx([max(seconds, first) for seconds in (2, 4, 8, 16, 32, 60, 60)], abs=0.1)
    assert 900 <= times[-1] - 1000 <= 961
    assert {path for now, api, path in recorder.seen if api == "dbfs" and now > 1000} == {"/"}


@pytest.mark.parametrize(("failures", "other", "away"), [
    (9, None, False), (10, None, True), (9, "403", False), (9, "slow", False),
])  # fmt: skip
def test_ten_failures_in_a_row_are_an_outage_and_any_answer_ends_the_row(clock, failures, other, away):
    """One thread lists forty directories; of these fail so many in a row, then one is answered, and so on."""
    with wide_server(40) as server:
        asked, answered = [], Fault(other or "500", rate=0)

        def fails(_, path, __):
            if path.startswith(f"{HOME}/") and path not in asked:
                asked.append(path)
                return len(asked) % (failures + 1) > 0
            return False

        failing = Fault("500")
        failing.applies = fails
        if other:
            answered.applies = lambda _, path, __: path in asked[failures :: failures + 1]
        server.change(faults=[failing, answered])
        scan(server, clock, threads=1)
        assert (server.requests["dbfs", "/"] > 0) == away


def test_the_time_of_an_outage_begins_with_its_own_failures(clock):
    """Two of ten minutes each are none of twenty."""
    with FakeDatabricks(users=8, shape="dbfs") as server:
        outages = [Outage(server, clock, "503", 30, 10 * MINUTE)]

        def on_tick():
            outages[-1]()
            if outages[0].over and len(outages) == 1:
                outages.append(Outage(server, clock, "503", server.total_requests + 20, 10 * MINUTE))

        results = scan(server, clock, on_tick=on_tick, file_systems=("dbfs",))
        assert outages[1].over
    assert {result.status for result in results.values()} == {"success"}


def test_a_host_that_refuses_the_first_request_is_an_error_at_once(clock):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config = DatabricksConfig(f"http://127.0.0.1:{port}", "token")
    client = DatabricksClient(config, clock=clock, sleep=clock.sleep, jitter=lambda: 1.0)
    with pytest.raises(InventoryError, match="cannot be reached"):
        list(scan_users([ANN], config, client=client))
    assert clock.waits == []


# What is a listing

B = f"{HOME}/b"
NO_LISTINGS = {
    "list": [], "null": None, "text": "files", "files is null": {"files": None}, "files is an object": {"files": {}},
    "files is a text": {"files": "x"}, "missing key": {"other": []}, "key of the other API": {"objects": []},
    "key in other case": {"Files": []}, "next page only": {"next_page_token": "x"},
    "entry is null": {"files": [None]}, "entry is a text": {"files": [f"{B}/x"]}, "entry is a list": {"files": [[]]},
    **{f"entry {name}": {"files": [dbfs_file(path, 1)]} for name, path in {
        "outside": "/Users/other/x", "parent": HOME, "sibling": f"{HOME}/c", "sibling with the same prefix": f"{B}b",
        "in a sibling with the same prefix": f"{B}b/x", "empty": "", "relative": "x", "other scheme": f"s3:{B}/x",
    }.items()},
    **{f"directory {name}": {"files": [dbfs_directory(path)]} for name, path in {
        "itself": B, "parent": HOME, "root": "/", "sibling": f"{HOME}/a",
    }.items()},
    "a next page": {"files": [dbfs_file(f"{B}/x", 1)], "next_page_token": "x"},
    "none lies directly in it": {"files": [dbfs_file(f"{B}/x/y", 1), dbfs_file(f"{B}/x/z", 1)]},
    "path missing": {"files": [{"is_dir": False, "file_size": 1}]},
    "path is null": {"files": [{"path": None, "is_dir": False, "file_size": 1}]},
    "path is a number": {"files": [{"path": 1, "is_dir": False, "file_size": 1}]},
    "same file twice": {"files": [dbfs_file(f"{B}/x", 1)] * 2},
    "same directory twice": {"files": [dbfs_directory(f"{B}/c")] * 2},
    "file and directory of one name": {"files": [dbfs_directory(f"{B}/c"), dbfs_file(f"{B}/c", 1)]},
    "good one and bad one": {"files": [dbfs_file(f"{B}/x", 1), dbfs_file(f"{HOME}/y", 1)]},
    "no size": {"files": [{"path": f"{B}/x", "is_dir": False}]},
    **{f"size {size!r}": {"files": [dbfs_file(f"{B}/x", size)]} for size in (
        None, -1, "5", 1.5, True, [], float("nan"), float("inf"))},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LISTINGS)
def test_what_is_no_listing_is_not_counted(clock, name):
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps(NO_LISTINGS[name]), api="dbfs", path=B)])
        result = scan(server, clock)[ANN]
    assert (result.status, [failure["path"] for failure in result.dbfs.failures]) == ("partial", [B])
    assert figures(result)[:6] == (2, 105, 2, 2, 20_000, 2)


W = f"{HOME}/w"


@pytest.mark.parametrize("entries", [
    [workspace_object(f"{HOME}/x")], [workspace_object(W, "DIRECTORY")], [workspace_object(W, "REPO")],
    [workspace_object(f"{W}/x")] * 2, [{"object_type": "FILE"}], [workspace_object(f"{W}/x", 7)],
    [workspace_object(f"/Workspace{W}/x")], [workspace_object(f"{W}2/x")], [None], None, {},
], ids=lambda entries: json.dumps(entries)[:60])  # fmt: skip
def test_what_is_no_workspace_listing_is_not_counted(clock, entries):
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps({"objects": entries}), api="workspace", path=W)])
        result = scan(server, clock)[ANN]
    assert (result.status, [failure["path"] for failure in result.workspace.failures]) == ("partial", [W])
    assert figures(result)[:6] == (4, 128, 4, 1, 10_000, 1)


@pytest.mark.parametrize("body", ["{}", '{"files": []}', '{"files": [], "more": 1}', " {\n}\n"])
def test_a_directory_with_nothing_in_it_is_empty(clock, body):
    with small_server() as server:
        server.change(faults=[Fault("body", body=body, api="dbfs", path=B)])
        result = scan(server, clock)[ANN]
    assert result.status == "success"
    assert figures(result)[:3] == (2, 105, 3)


@pytest.mark.parametrize("path", [HOME, f"{HOME}/b"])
def test_a_listed_file_returns_itself_and_counts_once(clock, path):
    with small_server() as server:
        server.change(faults=[Fault("body", body=json.dumps({"files": [dbfs_file(path, 7)]}), api="dbfs", path=path)])
        result = scan(server, clock)[ANN]
        assert server.requests["dbfs", path] == 1
    assert result.status == "success"
    assert figures(result)[:2] == ((1, 7) if path == HOME else (3, 112))


def test_a_listed_workspace_object_returns_itself_and_counts_once(clock):
    with small_server() as server:
        body = json.dumps({"objects": [workspace_object(W, "NOTEBOOK")]})
        server.change(faults=[Fault("body", body=body, api="workspace", path=W)])
        result = scan(server, clock)[ANN]
        assert server.requests["workspace", W] == 1
    assert (result.status, result.workspace.files, result.workspace.bytes) == ("success", 2, 20_000)


# Names with a / in them, and entries without a type

ODD_NAMES = {  # name -> whether it counts as a file, whether as a directory; else it is a failure of its own
    "a/b": (True, False), "/": (True, False), "x/": (True, False), "sub/x": (False, False), "../x": (False, False),
    "..": (False, False), ".": (False, False), "": (False, False),
}  # fmt: skip


@pytest.mark.parametrize("api", FILE_SYSTEMS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_does_not_condemn_the_others_of_its_listing(clock, api, name):
    folder = B if api == "dbfs" else W
    names = ["plain", "sub", name]
    if api == "dbfs":
        as_file, as_directory = partial(dbfs_file, size=1), dbfs_directory
    else:
        as_file, as_directory = workspace_object, partial(workspace_object, object_type="DIRECTORY")
    for is_directory in (False, True):
        listed = [as_file(f"{folder}/plain"), as_directory(f"{folder}/sub")]
        listed.append((as_directory if is_directory else as_file)(f"{folder}/{name}"))
        with small_server() as server:
            key = "files" if api == "dbfs" else "objects"
            server.add_tree(api, {f"{folder}/sub": []})
            server.change(faults=[Fault("body", body=json.dumps({key: listed}), api=api, path=folder)])
            result = scan(server, clock)[ANN]
        counts = ODD_NAMES[name][0] and not is_directory
        before, (files, *_) = {"dbfs": 2, "workspace": 1}[api], figures(result)[0 if api == "dbfs" else 3 :]
        assert files == before + 1 + counts, (names, is_directory)
        assert [at["path"] for at in result.scanned[api].failures] == ([] if counts else [f"{folder}/{name}"])
        assert result.status == ("success" if counts else "partial")


def test_an_entry_without_a_type_may_be_a_folder(clock):
    with small_server() as server:
        server.add_tree("workspace", {
            HOME: [workspace_object(f"{HOME}/folder", None), workspace_object(f"{HOME}/file", None)],
            f"{HOME}/folder": [workspace_object(f"{HOME}/folder/x")],
        })  # fmt: skip
        result = scan(server, clock)[ANN]
    assert (result.status, result.workspace.files, result.workspace.directories) == ("success", 2, 2)
    assert result.workspace.types == {"NOTEBOOK": 1, "UNKNOWN": 1}


def test_a_name_that_is_no_unicode_is_a_failure_of_that_directory_alone(clock):
    body = json.dumps({"files": [dbfs_directory(f"{B}/\ud800"), dbfs_file(f"{B}/\udfff", 9), dbfs_directory(f"{B}/c")]})
    with small_server() as server:
        server.change(faults=[Fault("body", body=body, api="dbfs", path=B)])
        result = scan(server, clock)[ANN]
    assert (result.status, len(result.dbfs.failures)) == ("partial", 1)
    assert figures(result)[:3] == (4, 117, 4)


def test_sizes_beyond_32_bits_add_up_exactly(clock):
    with wide_server(3) as server:
        server.add_tree("dbfs", {f"{HOME}/d0000": [dbfs_file(f"{HOME}/d0000/f", 2**53 + 1)]})
        assert scan(server, clock)[ANN].total_size == 2**53 + 3


# 404


@pytest.mark.parametrize(("api", "path"), [("dbfs", f"{HOME}/b"), ("workspace", f"{HOME}/w")])
@pytest.mark.parametrize("then", ["still listed", "deleted", "its directory deleted", "cannot be told"])
def test_a_directory_that_is_not_found_is_a_failure_unless_it_was_deleted(clock, api, path, then):
    """Its own directory decides, asked once more."""
    with small_server() as server:
        gone = Fault("404", api=api, path=path)
        parent = Fault({"its directory deleted": "404", "cannot be told": "403"}.get(then, "500"), api=api, path=HOME)
        parent.applies = lambda a, p, _: (
            (a, p) == (api, HOME) and gone.hits > 0 and then in ("its directory deleted", "cannot be told")
        )

        def delete():
            if then == "deleted" and gone.hits:
                left = [workspace_object(f"{HOME}/n")] if api == "workspace" else [dbfs_file(f"{HOME}/top", 5)]
                server.add_tree(api, {HOME: left})

        server.change(faults=[gone, parent])
        result = scan(server, clock, on_tick=delete, threads=1)[ANN]
        assert (server.requests[api, path], server.requests[api, HOME]) == (1, 2)
    failures = [failure["path"] for failure in result.scanned[api].failures]
    assert failures == ([path] if then in ("still listed", "cannot be told") else [])
    assert result.status == ("partial" if failures else "success")
    assert figures(result)[:4] == ((2, 105, 2, 2) if api == "dbfs" else (4, 128, 4, 1))


def test_no_home_anywhere_is_empty(clock):
    with FakeDatabricks(users=[ANN], shape="none") as server:
        result = scan(server, clock)[ANN]
    assert (result.status, result.file_source, result.error, figures(result)[:6]) == ("empty", "none", "", (0,) * 6)


def test_a_home_that_users_shows_and_that_is_not_found_is_not_empty(clock):
    with small_server() as server:
        server.change(faults=[Fault("404", path=HOME)])
        assert scan(server, clock)[ANN].status == "error"


# Homes in other letter case


def case_server(homes, users, file_systems=FILE_SYSTEMS):
    """A workspace that has these homes, each with a file of 7 bytes and a notebook."""
    server = FakeDatabricks(users=list(users), shape="none")
    for home in homes:
        if "dbfs" in file_systems:
            server.add_tree("dbfs", {f"/Users/{home}": [dbfs_file(f"/Users/{home}/f", 7)]})
        if "workspace" in file_systems:
            server.add_tree("workspace", {f"/Users/{home}": [workspace_object(f"/Users/{home}/n")]})
    return server


@pytest.mark.parametrize("home", ["Ann@Example.com", "ANN@EXAMPLE.COM", "aNN@example.com"])
@pytest.mark.parametrize("file_systems", [("dbfs",), ("workspace",), FILE_SYSTEMS])
def test_a_home_in_other_letter_case_is_scanned(clock, home, file_systems):
    with case_server([home], [ANN], file_systems) as server:
        result = scan(server, clock)[ANN]
        assert_truth(result, server.truth(ANN, home=home))
        assert result.username == ANN
        assert set(listings(server).values()) == {1}


def test_a_home_that_is_alike_to_two_users_names_is_neithers(clock):
    names = [ANN, "ANN@example.com"]
    with case_server(["Ann@example.com"], names) as server:
        results = scan(server, clock)
    for result in results.values():
        assert (result.status, result.file_count) == ("error", 0)
        assert all(name in result.error for name in [*names, "Ann@example.com"])


def test_of_two_homes_in_other_letter_case_neither_is_chosen(clock):
    homes = ["Ann@example.com", "ANN@example.com"]
    with case_server(homes, [ANN]) as server:
        result = scan(server, clock)[ANN]
    assert (result.status, result.file_count) == ("error", 0)
    assert all(home in result.error for home in homes)


@pytest.mark.parametrize("order", [1, -1])
def test_a_home_that_is_another_asked_for_users_is_not_counted_twice(clock, order):
    names = [ANN, "Ann@example.com"][::order]
    with case_server([ANN], names) as server:
        results = scan(server, clock)
        assert results["Ann@example.com"].status == "empty"
        assert_truth(results[ANN], server.truth(ANN, home=ANN))
        assert set(listings(server).values()) == {1}


def test_two_users_that_differ_in_letter_case_have_a_home_each(clock):
    names = [ANN, "Ann@example.com"]
    with case_server(names, names) as server:
        assert [result.file_count for result in scan(server, clock).values()] == [2, 2]


# Who is no admin


def test_who_is_no_admin_is_warned_once_and_a_home_not_found_is_an_error(clock, said):
    with small_server([ANN, BEN, "cal@example.com"], admin=False, caller=BEN) as server:
        results = scan(server, clock, [ANN, BEN, "dan@example.com"])
        assert_truth(results[BEN], server.truth(BEN))
        assert (results[ANN].status, results["dan@example.com"].status) == ("partial", "error")
        assert figures(results[ANN])[:6] == (4, 128, 4, 0, 0, 0)
        for name in (ANN, "dan@example.com"):
            assert "not found, or not readable with this token" in results[name].error
        assert server.requests["scim", "Me"] == 1
    assert len([line for line in said if "admins" in line]) == 1


@pytest.mark.parametrize("groups", [["admins"], ["users", "admins"]])
def test_who_is_an_admin_is_not_warned_and_a_home_not_found_is_empty(clock, said, groups):
    with FakeDatabricks(users=3, shape="none", groups=groups) as server:
        assert {result.status for result in scan(server, clock).values()} == {"empty"}
    assert [line for line in said if "admins" in line] == []


@pytest.mark.parametrize("kind", ["no groups", "403", "404", "404_other", "400", "503"])
def test_whom_me_does_not_show_as_admin_is_none(clock, said, kind):
    more = {"groups": None} if kind == "no groups" else {"faults": [Fault(kind, path="Me")]}
    with small_server([ANN], **more) as server:
        results = scan(server, clock, [ANN, BEN])
        assert_truth(results[ANN], server.truth(ANN))
    assert results[BEN].error.endswith("not found, or not readable with this token")
    assert len([line for line in said if "admins" in line]) == 1


# DBFS disabled


def test_where_dbfs_is_disabled_rows_are_complete_without_it_and_it_is_said_once(clock, said):
    with FakeDatabricks(users=20, shape="small", dbfs_disabled=True) as server:
        results = scan(server, clock)
        assert sum(number for (api, _), number in listings(server).items() if api == "dbfs") <= 16
        for name, result in results.items():
            truth = server.truth(name)
            assert (result.file_count, result.dbfs, result.error) == (truth.workspace_objects, None, "")
            assert result.status == ("success" if truth.workspace_objects else "empty")
    assert len([line for line in said if "DBFS" in line]) == 1


def test_where_dbfs_is_disabled_and_nothing_else_asked_for_the_run_ends(clock):
    with FakeDatabricks(users=3, shape="small", dbfs_disabled=True) as server:
        with pytest.raises(InventoryError, match="DBFS"):
            scan(server, clock, file_systems=("dbfs",))
        with pytest.raises(InventoryError, match="DBFS"):
            scan_dbfs(server.user_names[0], config_of(server))


def test_dbfs_that_is_disabled_after_it_was_listed_is_a_failure(clock, said):
    message = "Public DBFS root is disabled. Access is denied on path"
    with small_server() as server:
        server.change(faults=[Fault("403", api="dbfs", path=f"{HOME}/b", message=message)])
        result = scan(server, clock)[ANN]
    assert (result.status, result.dbfs.files) == ("partial", 2)
    assert said == []


# A login that is refused


@pytest.mark.parametrize("bad_token", [401, 403])
@pytest.mark.parametrize("after", [0, 1, 2, 40])
def test_a_refused_login_ends_the_run(clock, bad_token, after):
    with FakeDatabricks(users=8, shape="small", bad_token=bad_token, expire_after_requests=after) as server:
        with pytest.raises(InventoryError, match="token"):
            scan(server, clock)
        assert server.statuses[200] + server.statuses[404] == after
    assert clock.waits == []


def test_a_403_for_a_path_does_not_end_the_run(clock):
    with small_server() as server:
        path = f"{HOME}/invalid access token"
        server.add_tree("dbfs", {HOME: [dbfs_directory(path), dbfs_file(f"{HOME}/x", 1)]})
        server.change(faults=[Fault("403", path=path, message=f"You may not list {path}")])
        assert scan(server, clock)[ANN].status == "partial"


def test_a_command_whose_login_ends_keeps_what_it_has_and_resumes(tmp_path, command, login):
    with FakeDatabricks(users=10, shape="small", bad_token=401, expire_after_requests=60) as server:
        (tmp_path / "users.txt").write_text("\n".join(server.user_names), encoding="utf-8")
        words = (SCANNER, "--users-file", "users.txt", "-o", "out.csv", "--threads", "2")
        stopped = command(*words, env=login(server))
        assert stopped.code == 2, stopped
        assert "token" in stopped.err
        assert server.settings.token not in stopped.err
        assert not (tmp_path / "out.csv").exists()
        assert (tmp_path / ".checkpoint_progress.json").exists()
        server.change(expire_after_requests=None)
        resumed = command(*words, "--resume", env=login(server))
        assert resumed.code == 0, resumed
        with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
            rows = {row["username"]: row for row in csv.DictReader(file)}
        assert list(rows) == server.user_names
        for name, row in rows.items():
            truth = server.truth(name)
            assert (int(row["file_count"]), int(row["total_size"])) == (truth.file_count, truth.total_size)
