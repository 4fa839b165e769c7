"""The rules of batches for a cluster: their share of the pace, their size, and what a worker's report counts for."""

import base64
import json
import os
import threading
import zlib

import pytest

from databricks_user_files_simple import (
    UNREADABLE,
    fetch,
    process_user_batch_parallel,
    reach_past_proxy,
    read_report,
    schedule,
    share_of_pace,
    size_of_batch,
    spark_problem,
)
from databricks_user_list import DatabricksConfig
from tests.fake import FakeDatabricks, Fault
from tests.helpers import set_constants

DBFS, WORKSPACE = "dbfs", "workspace"
LIMITS = {"seconds": 2.0, "grace": 5.0, "connect": 5, "read": 5, "bytes": 8 * 1024**2, "failures": 3}


@pytest.mark.parametrize(("rate", "lent", "idle", "share"), [
    (None, 0, 8, None),  # no limit is known
    (100, 0, 4, 20),  # this process counts as a slot more
    (100, 60, 3, 10),
    (100, 0, 32, 5),  # more slots than the pace feeds
    (30, 21, 8, 0),  # the rest is better kept here
    (30, 0, 2, 10),
    (20, 20, 1, 0),
])  # fmt: skip
def test_a_batch_takes_its_share_of_the_pace(rate, lent, idle, share):
    assert share_of_pace(rate, lent, idle) == share


@pytest.mark.parametrize(("ready", "threads", "idle", "size"), [
    (0, 16, 8, 0), (16, 16, 8, 0), (23, 16, 8, 0),  # what this process takes next stays here
    (24, 16, 8, 8), (40, 16, 8, 8), (16 + 8 * 20, 16, 8, 20), (16 + 20, 16, 1, 20), (10_000, 16, 8, 128),
])  # fmt: skip
def test_a_batch_has_its_size(ready, threads, idle, size):
    assert size_of_batch(ready, threads, idle) == size


def test_places_are_spaced_by_the_share_of_their_api():
    places = [(DBFS, "/a"), (DBFS, "/b"), (WORKSPACE, "/c"), (DBFS, "/d"), (WORKSPACE, "/e")]
    assert schedule(places, {DBFS: 10.0, WORKSPACE: None}, 0.5) == [
        (0.0, WORKSPACE, "/c"), (0.0, WORKSPACE, "/e"), (0.05, DBFS, "/a"), (0.15, DBFS, "/b"), (0.25, DBFS, "/d")
    ]  # fmt: skip


# What a worker does, run here


def fetched(server, places, **limits):
    headers = {"Authorization": f"Bearer {server.settings.token}"}
    return read_report(fetch(server.url, headers, places, 4, LIMITS | limits))


def test_a_worker_hands_back_bodies_and_judges_nothing():
    with FakeDatabricks(users=1, shape="bench", directories=3) as server:
        home = f"/Users/{server.user_names[0]}"
        server.change(faults=[Fault("html", path=home, api=DBFS)])
        report = fetched(server, [(0.0, DBFS, home), (0.0, WORKSPACE, home), (0.0, DBFS, "/not/there")])
    statuses = {place: status for place, (status, _) in report.answers.items()}
    assert statuses == {(DBFS, home): 200, (WORKSPACE, home): 200, (DBFS, "/not/there"): 404}
    assert b"html" in base64.b64decode(report.answers[DBFS, home][1])  # a page of a proxy is a body like any other
    assert report.not_asked == set()


def test_a_worker_asks_an_api_nothing_more_that_refuses_or_fails():
    with FakeDatabricks(users=1, shape="small") as server:
        limited = Fault("429", api=DBFS, headers={"Retry-After": "7"})
        server.change(faults=[limited, Fault("500", api=WORKSPACE)])
        places = [(0.0, DBFS, f"/{number}") for number in range(40)]
        places += [(0.0, WORKSPACE, f"/{number}") for number in range(40)]
        report = fetched(server, places)
        assert server.total_requests <= 4 + 3 + 4  # what the threads had under way
    assert set(report.answers.values()) == {(429, "7"), (500, "")}
    assert len(report.not_asked) + len(report.answers) == 80


def test_a_worker_starts_nothing_after_its_time():
    with FakeDatabricks(users=1, shape="small", latency=0.2) as server:
        report = fetched(server, [(0.0, DBFS, f"/{number}") for number in range(40)], seconds=0.3)
        assert server.total_requests <= 8
    assert len(report.not_asked) >= 32


def test_a_worker_waits_for_nothing_that_hangs():
    with FakeDatabricks(users=1, shape="small", faults=[Fault("hang", path="/slow")]) as server:
        report = fetched(server, [(0.0, DBFS, "/slow"), (0.0, DBFS, "/x")], grace=0.3, seconds=0.1, read=3)
    assert list(report.answers) == [(DBFS, "/x")]


def test_a_worker_hands_back_no_more_than_a_report_may_have():
    with FakeDatabricks(users=1, shape="bench", directories=3) as server:
        home = f"/Users/{server.user_names[0]}"
        report = fetched(server, [(0.0, DBFS, home)], bytes=20)
    status, text = report.answers[DBFS, home]
    assert (status, "too large" in text) == (0, True)


# Reports


def packed(report):
    return zlib.compress(json.dumps(report).encode())


REPORT = {"worker": "w:1", "python": "3.12.1", "not_asked": [], "answers": []}


def test_a_place_that_is_there_twice_does_not_count():
    answers = [[DBFS, "/a", 200, "e30="], [DBFS, "/b", 200, "e30="], [DBFS, "/a", 200, "e30="]]
    report = read_report(packed(REPORT | {"answers": answers}))
    assert report.answers == {(DBFS, "/a"): (0, "answered twice"), (DBFS, "/b"): (200, "e30=")}


@pytest.mark.parametrize("report", [
    None, 7, "text", b"", b"abc", packed([]), packed(None), packed(REPORT)[:-3], zlib.compress(b"no json"), packed({}),
    packed(REPORT | {"answers": [[DBFS, "/a", "many", ""]]}), packed(REPORT | {"answers": [[DBFS, ["/a"], 200, ""]]}),
    packed(REPORT | {"answers": [7]}), packed(REPORT | {"answers": "all"}), packed(REPORT | {"not_asked": [7]}),
    packed(REPORT | {"answers": [[DBFS, "/a", float("inf"), ""]]}), zlib.compress(b"0" * (65 * 1024**2)),
])  # fmt: skip
def test_what_is_no_report_is_refused(report):
    with pytest.raises(UNREADABLE):
        read_report(report)


# What goes wrong with Spark

NO_REQUESTS = """An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "worker.py", line 1, in main
    func = read_udfs(pickleSer, infile)
ModuleNotFoundError: No module named 'requests'

JVM stacktrace: ...
"""


@pytest.mark.parametrize(("text", "cause"), [
    (NO_REQUESTS, "ModuleNotFoundError: No module named 'requests'"),
    ("Connection refused", "Connection refused"),
    ("x.SparkException: first\nCaused by: java.net.UnknownHostException: spark", "Caused by: java.net.Unknown"),
    ("bad url sc://h/;token=dapi123456789", "bad url sc://h/;token=***"),
])  # fmt: skip
def test_the_last_cause_is_told_without_secrets(text, cause):
    told = spark_problem(RuntimeError(text))
    assert told.startswith(f"Parallel processing not available: {cause}")
    assert "dapi" not in told


@pytest.mark.parametrize("before", [{}, {"no_proxy": "a.example.com"}, {"no_grpc_proxy": "b", "no_proxy": "a"}])
def test_grpc_reaches_this_machine_past_a_proxy(monkeypatch, before):
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    reach_past_proxy()
    names = os.environ["no_grpc_proxy"].split(",")
    assert {"localhost", "127.0.0.1"} <= set(names)
    assert [name for name in names if name in ("a", "b", "a.example.com")] == list(before.values())[:1]
    monkeypatch.setenv("no_grpc_proxy", "")


def test_a_machine_that_has_no_thread_for_a_cluster_goes_on_alone(monkeypatch, caplog):
    start, began = threading.Thread.start, []

    def start_three(thread):
        if len(began) == 3:
            raise RuntimeError("can't start new thread")
        began.append(thread)
        start(thread)

    set_constants(monkeypatch, CLUSTER_DELAY=0.0)
    with FakeDatabricks(users=5, shape="small", latency=0.001) as server:
        monkeypatch.setattr(threading.Thread, "start", start_three)
        config = DatabricksConfig(server.url, server.settings.token)
        results = list(process_user_batch_parallel(None, server.user_names, config, 16))
        truth = [server.truth(result.username).file_count for result in results]
    assert [result.file_count for result in results] == truth
    assert "not available: can't start new thread" in caplog.text
