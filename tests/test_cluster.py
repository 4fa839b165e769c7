"""The workers of a cluster as further hands: the results are those of this machine alone, whatever goes wrong.

First the rules, and what a worker does, without Spark. Then real workers: one Connect server, local[8], for all tests.
"""

import base64
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing
from math import inf
from pathlib import Path

import pytest
import responses

import databricks_user_files_simple as scanner
from databricks_user_files_simple import process_user_batch_parallel
from databricks_user_list import DatabricksClient, DatabricksConfig, InventoryError
from tests.connect_server import Wire
from tests.fake import FakeDatabricks, Fault

from tests.helpers import (  # isort: skip
    ROOT, SCANNER, WORDS, assert_all_true, block_imports, config_of, find_python, hang_when, log_in, make_client,
    running, set_constants, slow_until, spellings, true_csv, until, workers_help, write_users,
)  # fmt: skip

DBFS, WORKSPACE = "dbfs", "workspace"
LIMITS = {"seconds": 2.0, "grace": 5.0, "connect": 5, "read": 5, "bytes": 8 * 1024**2, "failures": 3}


@pytest.fixture
def many():
    """Twenty users with about twenty directories each."""
    with FakeDatabricks(users=20, shape="small") as server:
        yield server


@pytest.fixture
def few():
    """Five of them."""
    with FakeDatabricks(users=5, shape="small") as server:
        yield server


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """The cluster joins at once."""
    set_constants(monkeypatch, CLUSTER_DELAY=0.0)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "databricks_user_files")
    return caplog


@pytest.fixture
def scanned(log):
    """scanned(session, server, condition, then): the warnings of a scan whose results are the truth; see slow_until."""

    def scan(spark, server, condition=None, then=lambda: None, config=None, threads=4, slow=0.2):
        with slow_until(server, condition or workers_help(server), then, slow):
            results = list(process_user_batch_parallel(spark, server.user_names, config or config_of(server), threads))
        assert len(results) == len(server.user_names)
        assert_all_true(server, {result.username: result for result in results})
        return [record.getMessage() for record in log.records
                if record.name == "databricks_user_files" and record.levelno >= logging.WARNING]  # fmt: skip

    return scan


# The rules of a batch


@pytest.mark.parametrize(("rate", "lent", "batches", "idle", "share"), [
    (inf, 0, 8, 8, inf),  # no limit is known
    (100, 60, 4, 3, 10),  # this process counts as a slot more
    (100, 20, 4, 1, 30),  # more than a worker may reach
    (100, 0, 32, 32, 5),  # more slots than the pace feeds
    (30, 21, 8, 8, 0),  # the rest is better kept here
    (20, 10, 1, 1, 5),
])  # fmt: skip
def test_a_batch_takes_its_share_of_the_pace(rate, lent, batches, idle, share):
    assert scanner.share_of_pace(rate, lent, batches, idle) == share


def test_a_batch_has_its_size():
    sizes = [scanner.size_of_batch(ready, threads=16, idle=8) for ready in (16 + 7, 16 + 8, 16 + 8 * 20, 10_000)]
    assert sizes == [0, 8, 20, 128]  # below 16 + 8, what this process takes next stays here


def test_places_are_spaced_by_the_share_of_their_api():
    places = [(DBFS, "/a"), (DBFS, "/b"), (WORKSPACE, "/c"), (WORKSPACE, "/d")]
    timed = scanner.schedule([scanner.Directory(0, *place) for place in places], {DBFS: 10.0, WORKSPACE: inf}, 0.5)
    assert [(at, one.path) for at, one in timed] == [(0.0, "/c"), (0.0, "/d"), (0.05, "/a"), (0.15, "/b")]


# What a worker does, run here


def fetched(server, places, **limits):
    """The answers for these places (file system and path), all asked for at once."""
    headers = {"Authorization": f"Bearer {server.settings.token}"}
    asked = [(0.0, f"/api/2.0/{name}/list", path) for name, path in places]
    packed = scanner.fetch(server.url, headers, asked, 4, LIMITS | limits)
    return [answer and tuple(answer) for answer in json.loads(zlib.decompress(packed))[1]]


def test_a_worker_hands_back_bodies_and_judges_nothing():
    with FakeDatabricks(users=1, shape="bench", directories=3) as server:
        home = f"/Users/{server.user_names[0]}"
        server.change(faults=[Fault("html", path=home, api=DBFS)])
        answers = fetched(server, [(DBFS, home), (WORKSPACE, home), (DBFS, "/not/there")])
        cut = fetched(server, [(WORKSPACE, home)], bytes=20)
    assert [status for status, _ in answers] == [200, 200, 404]
    assert b"html" in base64.b64decode(answers[0][1])  # a page of a proxy is a body like any other
    assert cut == [(0, "ValueError: ...the answer is too large for a report")]


def test_a_worker_asks_an_api_nothing_more_that_refuses_or_fails():
    with FakeDatabricks(users=1, shape="small") as server:
        limited = Fault("429", api=DBFS, headers={"Retry-After": "7"})
        server.change(faults=[limited, Fault("500", api=WORKSPACE)])
        answers = fetched(server, [(name, f"/{number}") for name in (DBFS, WORKSPACE) for number in range(40)])
        assert server.total_requests <= 4 + 3 + 4  # what the threads had under way
    assert set(answers) == {(429, "7"), (500, ""), None}


def test_a_worker_starts_nothing_after_its_time_and_waits_for_nothing_that_hangs():
    faults = [Fault("hang", path="/0", seconds=600.0)]
    with FakeDatabricks(users=1, shape="small", latency=0.25, faults=faults) as server:
        answers = fetched(server, [(DBFS, f"/{number}") for number in range(40)], seconds=0.6, grace=0.5, read=600)
        assert server.total_requests <= 1 + 3 * 3
        assert answers.count(None) == 40 - server.total_requests
    assert answers[0] == (0, "no answer")


# Reports


def packed(report):
    return zlib.compress(json.dumps(report).encode())


@pytest.mark.parametrize("report", [
    None, 7, "text", b"", packed([]), packed(["w", [None]])[:-3], zlib.compress(b"no json"), packed({}),
    packed(["w", [["many", ""]]]), packed(["w", [[404]]]), packed(["w", [7]]), packed(["w", 7]), packed(["w", []]),
    packed(["w", [None] * 2]), packed(["w", [[float("inf"), ""]]]), zlib.compress(b"0" * (65 * 1024**2)),
])  # fmt: skip
def test_what_is_no_report_is_refused(report):
    with pytest.raises((ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, zlib.error)):
        scanner.read_report(report, [(0.0, scanner.Directory(0, DBFS, "/a"))])


# What is said where there is no cluster

NOT_AVAILABLE = "Parallel processing not available: "
MISMATCH = "[PYTHON_VERSION_MISMATCH] Python in worker has different version{} than that in driver{} 3.12, PySpark"
NO_REQUESTS = (
    "from the Python worker:\nTraceback (...):\n  File ...\nModuleNotFoundError: No module named 'requests'\n\nJVM"
)


@pytest.mark.parametrize(("text", "told"), [
    (NO_REQUESTS, NOT_AVAILABLE + "ModuleNotFoundError: No module named 'requests'"),
    ("x.SparkException: first\nCaused by: java.net.UnknownHostException: spark", NOT_AVAILABLE + "Caused by: java.net"),
    ("bad url sc://h/;token=dapi123456789", NOT_AVAILABLE + "bad url sc://h/;token=***"),
    ('<...\n details = "failed: last error: UNKNOWN: refused"\n debug = "x"', NOT_AVAILABLE + "refused"),
    ("details: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", NOT_AVAILABLE + "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
    (MISMATCH.format(": 3.9", ":"), "Python version mismatch: client 3.12, cluster 3.9. "),
    (MISMATCH.format(" (3, 11)", ""), "Python version mismatch: client 3.12, cluster 3.11. "),  # pyspark 3.5
])  # fmt: skip
def test_what_spark_says_is_told_as_a_sentence(text, told):
    sentence = scanner.spark_problem(RuntimeError(text))
    assert (sentence.startswith(told), "dapi" in sentence) == (True, False), sentence


@pytest.fixture
def run_here(few, log, monkeypatch, capsys):
    """run_here(condition, *words): what the command in this process has said; its results are the truth."""

    def run(condition, *words):
        logging.getLogger("databricks_user_files").addHandler(log.handler)  # commands let nothing through to others
        log_in(monkeypatch, few)
        write_users(few.user_names)
        with slow_until(few, condition, slow=1.0):
            assert scanner.main([*WORDS, *words]) == 0
        assert Path("out.csv").read_bytes() == true_csv(few)
        return capsys.readouterr().err

    return run


def cluster(state):
    return {"c": {"state": state, "state_message": "Inactive for 60 minutes."}}


BY_ID, BY_URL = ("--cluster-id", "c"), ("--spark-remote", "sc://localhost:1")


@pytest.mark.parametrize(("words", "without", "clusters", "texts"), [
    (BY_ID, "", cluster("TERMINATED"), ["c is TERMINATED Inactive for 60 minutes.; start it"]),
    (BY_ID, "", cluster("PENDING"), ["cluster c is PENDING", "start it"]),
    (BY_ID, "", {}, ["400 INVALID_PARAMETER_VALUE: Cluster c does not exist"]),
    (BY_URL, "", {}, ["Connection refused"]),
    (("--spark-remote", "sc://localhost@example.com/;x=y"), "", {}, ["in clear; put use_ssl=true into"]),
    (("--spark-remote", "sc://127.0.0.1.nip.io"), "", {}, ["in clear"]),
    (BY_ID, "pyspark.sql.connect.client.core", {}, ["pyspark", "pip install"]),
    (BY_URL, "pyspark.sql.connect.client.core", {}, ["pyspark", "pip install"]),
])  # fmt: skip
def test_a_command_without_a_cluster_warns_once_and_goes_on(
    few, run_here, log, monkeypatch, words, without, clusters, texts
):
    set_constants(monkeypatch, SPARK_RETRIES=1)
    few.change(clusters=clusters)
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    err = run_here(lambda: "not available" in log.text, *words)
    [warning] = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert ([text for text in [NOT_AVAILABLE, *texts] if text not in warning], len(warning) <= 200) == ([], True)
    assert "no directory was listed by the cluster: Parallel" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [BY_ID, BY_URL, ()], ids=" ".join)
def test_no_parallel_wins(few, run_here, monkeypatch, words):
    """Nothing of Spark is touched: pyspark cannot even be imported, and nothing is said about it."""
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setenv("SPARK_REMOTE", "local[2]")
    err = run_here(lambda: True, "--no-parallel", *words)
    assert ("sequential" in err, "warning" in err, "SPARK_REMOTE" in err) == (True, False, False)
    assert not any(api == "clusters" for api, _ in few.requests)


@pytest.mark.parametrize("text", ["local[2]", "localhost:15002"])
def test_nothing_starts_a_server(run_here, monkeypatch, capsys, text):
    assert scanner.main(["ann", "--spark-remote", text]) == 2
    assert "--spark-remote: start a server and give its sc:// URL" in capsys.readouterr().err
    monkeypatch.setenv("SPARK_REMOTE", text)
    err = run_here(lambda: True)
    assert ("SPARK_REMOTE is no sc:// URL" in err, "sequential" in err, "warning" in err) == (True, True, False)


def test_without_pyspark_all_else_works(small, command, login, tmp_path):
    environment = {**login(small), "PYTHONPATH": str(block_imports(tmp_path / "blocked", "pyspark"))}
    write_users(small.user_names)
    done = command(SCANNER, *WORDS, env=environment)
    assert (done.code, "warning" in done.err) == (0, False), done
    assert Path("out.csv").read_bytes() == true_csv(small)


@pytest.fixture
def silent(monkeypatch):
    """The URL of a server that accepts and never answers, for which nobody waits long."""
    pytest.importorskip("pyspark.sql.connect.client.core")
    set_constants(monkeypatch, SPARK_START_SECONDS=0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"sc://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_leaves_no_thread(run_here, log, silent):
    threads, environment = threading.active_count(), set(os.environ)
    assert "no answer within 0 s" in run_here(lambda: "not available" in log.text, "--spark-remote", silent)
    until(lambda: threading.active_count() <= threads)
    assert set(os.environ) - environment == {"DATABRICKS_HOST", "DATABRICKS_TOKEN"}


def test_a_session_that_comes_when_nobody_waits_any_more_is_closed(few, log, silent):
    over = threading.Event()
    cluster = scanner.Cluster(build_channel=lambda: over.wait(60) and scanner.build_channel(silent))
    with slow_until(few, lambda: "not available" in log.text, slow=1.0):
        list(scanner.scan_users(few.user_names, config_of(few), cluster=cluster))
    over.set()
    until(lambda: cluster.spark and cluster.spark.client.is_closed)


def test_grpc_reaches_this_machine_past_a_proxy():
    pytest.importorskip("pyspark.sql.connect.client.core")
    for url, past in (("sc://localhost", True), ("sc://127.0.0.1:15002/;x=y", True), ("sc://a.b/;token=a", False)):
        assert (("grpc.enable_http_proxy", 0) in scanner.build_channel(url)._channel_options) == past


@responses.activate
@pytest.mark.parametrize(("state", "host", "endpoint"), [
    ("RUNNING", "https://adb-1.2.azuredatabricks.net", "adb-1.2.azuredatabricks.net:443"),
    ("RESIZING", "https://localhost:8443", "localhost:8443"),
    ("RUNNING", "https://[::1]", "[::1]:443"),
])  # fmt: skip
def test_a_cluster_is_told_the_login_of_the_moment_with_every_call(state, host, endpoint):
    pytest.importorskip("pyspark.sql.connect.client.core")
    responses.get(f"{host}/api/2.1/clusters/get", json={"state": state})
    tokens = ["first"]
    config = DatabricksConfig(host, "", "test", lambda refused: tokens[-1], "111")
    builder = scanner.connect_cluster(config, "0123-456789-abc")
    assert (builder.secure, builder.endpoint) == (True, endpoint)
    tokens.append("second")
    assert dict(builder.metadata()) == {
        "x-databricks-cluster-id": "0123-456789-abc",
        "x-databricks-workspace-id": "111",
        "authorization": "Bearer second",
    }


# Workers without Spark


def test_through_faults_the_results_are_the_truth(workers, small, hasty, scanned, monkeypatch):
    set_constants(monkeypatch, FIRST_RATE=500.0)  # a 429 is none of a limit
    kinds = ("500", "503", "reset", "truncated", "html", "empty_429")
    refused = Fault("403", path="/")  # which says nothing about anybody's home
    small.change(faults=[refused, *(Fault(kind, rate=0.03) for kind in kinds)])
    assert scanned(workers, small) == []
    assert set(small.counts.faults) >= {"500", "503", "html"}


def test_an_outage_in_mid_run_is_waited_for(workers, small, hasty, scanned, log):
    def outage():
        small.change(outage="503")
        until(lambda: "until the service is back" in log.text, 120)
        small.change(outage=None)

    scanned(workers, small, then=outage)


@pytest.mark.parametrize("fault", [Fault("401"), Fault("403", error_code="403", message="JWT has expired")])
def test_a_login_that_is_refused_in_mid_run_stops_it(workers, small, scanned, fault):
    with pytest.raises(InventoryError, match="token"):
        scanned(workers, small, then=lambda: small.change(faults=[fault]))


@pytest.mark.parametrize(("kind", "text"), [("403", "(403)"), ("reset", "(Connection"), ("html", "(the answer")])
def test_workers_that_do_not_reach_the_workspace(workers, small, scanned, log, monkeypatch, kind, text):
    """An IP access list that has this machine and not the cluster; a network without a way out."""
    set_constants(monkeypatch, CLUSTER_DELAY=0.4)  # something was listed here
    small.change(faults=[Fault(kind, of_workers=True)])
    [warning] = scanned(workers, small, lambda: "not available" in log.text)
    assert warning.startswith(f"{NOT_AVAILABLE}workers cannot reach {small.url} {text}")


def test_a_late_batch_is_listed_here_and_its_report_counts_for_nothing(workers, small, scanned, log, monkeypatch):
    log.set_level(logging.DEBUG, "databricks_user_files")
    set_constants(monkeypatch, OVERDUE_SECONDS=0.2)
    late = threading.Event()
    workers.change = lambda report: late.wait(60) and report
    scanned(workers, small, lambda: "failed: no report came in time" in log.text, late.set)
    numbers = [number for (_, path), number in small.requests.items() if path != "/Users"]
    assert sorted(numbers)[-2] == 2  # but for the one that was the probe's


def test_a_probe_for_which_a_run_does_not_wait_is_cancelled(workers, small, scanned, monkeypatch):
    cancelled = []
    monkeypatch.setattr(workers, "interruptTag", cancelled.append)
    small.change(faults=[Fault("hang", seconds=600.0, of_workers=True)])
    assert scanned(workers, small, lambda: workers_that_wait(small)) == []
    assert cancelled


def queries():
    """The threads that wait for Spark."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("inventory-")]


def test_what_waits_for_a_caller_who_is_away_is_not_late(workers, small, clock, caplog):
    """Ten minutes pass after each result; by then the probe, and every batch, has its answer."""
    client, found = make_client(small, clock, 2), {}
    small.change(latency=0.02)
    for result in process_user_batch_parallel(workers, small.user_names, client.config, 2, client=client):
        found[result.username] = result
        until(lambda: not queries())
        clock.now += 600
    assert_all_true(small, found)
    assert sum(number > 1 for (_, path), number in small.requests.items() if path != "/Users") <= 1  # the probe's
    assert "goes on alone" not in caplog.text


def falsified(change):
    """A false report: change(answers) gives other ones."""

    def falsify(report):
        who, answers = json.loads(zlib.decompress(report))
        return packed([who, change(answers)])

    return falsify


def swap(answers):
    """Each body is told to be of another directory of the batch; of {} alone nobody can tell that it is not."""
    told = [answer for answer in answers if answer and base64.b64encode(b"{}").decode() != answer[1]]
    others = iter([*told[1:], *told[:1]])
    return [next(others) if answer in told else answer for answer in answers]


UNREADABLE = [
    lambda report: report[: len(report) // 2], lambda report: None,
    falsified(lambda answers: answers[1:]), falsified(lambda answers: [*answers, answers[0]]),
]  # fmt: skip
FALSE = [*UNREADABLE, falsified(swap), falsified(lambda answers: [None] * len(answers))]


def test_false_reports_make_no_row_wrong(workers, many, scanned, log, monkeypatch):
    """Every other one is false, in one way after the other."""
    log.set_level(logging.DEBUG, "databricks_user_files")
    set_constants(monkeypatch, LARGEST_BATCH=8, OVERDUE_SECONDS=600.0, LOST_BATCHES=1000)
    seen, numbers = [], itertools.count()

    def sometimes(report):
        if next(numbers) % 2:
            return report
        seen.append(FALSE[len(seen) % len(FALSE)])
        return seen[-1](report)

    workers.change = sometimes
    assert scanned(workers, many, lambda: len(seen) > len(FALSE)) == []
    unreadable = re.findall(r"directories failed: (?:cut short|a bytes-like object|zip)", log.text)
    assert len(unreadable) == sum(change in UNREADABLE for change in seen)


@pytest.mark.parametrize("kind", ["hang", "reset", "body"])
def test_workers_that_lose_the_network_in_mid_run_are_left_alone(workers, small, scanned, log, monkeypatch, kind):
    """Most of a batch is not even asked for then."""
    set_constants(monkeypatch, GRACE_SECONDS=0.2, BATCH_SECONDS=0.3, FIRST_BATCH_SECONDS=0.3)
    repeated = json.dumps({key: [{"path": small.settings.token, "file_size": 1}] for key in ("files", "objects")})
    fault = Fault(kind, body=repeated, seconds=600.0, of_workers=True, when=lambda: small.workers.total() > 40)
    small.change(faults=[fault])
    [warning] = scanned(workers, small, lambda: "left alone" in log.text)
    assert warning.startswith("The cluster is left alone, 4 batches in a row failed: nothing was listed: ")
    assert small.settings.token not in warning


def test_fewer_batches_that_fail_in_a_row_than_there_are_slots_may_be_one_broken_worker(workers, many, scanned):
    reports = itertools.count()
    workers.change = lambda report: None if next(reports) < 3 else report
    assert scanned(workers, many) == []


@pytest.mark.parametrize("kind", ["403", "404"])
def test_a_refusal_is_an_answer_and_no_sign_of_a_lost_cluster(workers, many, scanned, log, monkeypatch, kind):
    """As where much is deleted during the scan, or not readable: here the workers alone are told so."""
    set_constants(monkeypatch, LARGEST_BATCH=8)
    many.change(faults=[fault := Fault(kind, of_workers=True, when=lambda: workers.probed)])
    assert scanned(workers, many, lambda: fault.hits >= 40 or "left alone" in log.text, threads=16) == []


def test_names_without_a_home_cost_no_worker_a_request_and_the_cluster_stays(workers, scanned):
    names = [f"ghost{number}" for number in range(24)]
    with FakeDatabricks(users=[*names, "ann"], shape="none", shapes={24: "bench"}, directories=160) as server:
        assert scanned(workers, server) == []
        assert {server.requests["workspace", f"/Users/{name}"] for name in names} == {1}


def test_requests_of_workers_are_counted_and_a_429_of_theirs_waits(workers, many, monkeypatch):
    """As long as it says. And all hands together never make more requests at a time than there may be."""
    set_constants(monkeypatch, FIRST_RATE=500.0, MOST_IN_FLIGHT=8)
    at = {}
    asked = Fault("500")
    asked.applies = lambda api, path, _: path != "/Users" and at.setdefault((api, path), []).append(time.monotonic())
    when = {"of_workers": True, "times": 1, "when": lambda: workers.probed}
    many.change(faults=[asked, Fault("429", headers={"Retry-After": "2"}, **when)])
    many.change(latency=0.1)
    client = DatabricksClient(config_of(many), 4)
    with slow_until(many, workers_help(many)):
        assert len(list(process_user_batch_parallel(workers, many.user_names, client.config, 4, client=client))) == 20
    [(first, second)] = [times for times in at.values() if len(times) == 2]
    assert second - first >= 2.0
    assert client.statistics["requests"] == many.total_requests - workers.slots  # the probe's
    assert client.statistics["rate_limited"] == 1
    assert many.max_in_flight <= 8


def test_each_batch_leaves_with_the_token_of_the_moment(workers, small, scanned):
    tokens = ["first"]
    small.issued.update({"first": float("inf"), "second": float("inf")})
    config = DatabricksConfig(small.url, "", "test", renew=lambda refused: tokens[-1])

    def renew():
        tokens.append("second")
        until(lambda: "Bearer second" in {request.authorization for request in requests_of_workers(small)}, 60)

    scanned(workers, small, then=renew, config=config)


# Real workers


def requests_of_workers(server):
    """Those that have no answer yet."""
    requests = [connection.request for connection in list(server.connections)]
    return [request for request in requests if request and request.worker]


def workers_that_wait(server):
    return {request.worker for request in requests_of_workers(server)}


def test_one_giant_user_is_spread_over_the_workers(spark, scanned):
    with FakeDatabricks(users=1, shape="bench", directories=1000) as server:
        scanned(spark, server, lambda: sum(number > 5 for number in server.workers.values()) >= 4, slow=0.5)
        more = {path for (_, path), number in server.requests.items() if number > 1}
        assert len(more - {"/Users"}) <= 1  # the probe's


def test_interrupting_leaves_the_users_own_queries_alone(spark, monkeypatch, tmp_path):
    """Of the session of a notebook: the batches are cancelled by their tag, a query of the user's goes on."""
    from pyspark.sql.connect.functions import udf

    set_constants(monkeypatch, GRACE_SECONDS=600.0, OVERDUE_SECONDS=600.0)  # of itself no batch ends
    answers, go_on = [], tmp_path / "go_on"

    def wait(_, path=str(go_on)):
        while not __import__("os").path.exists(path):
            __import__("time").sleep(0.02)
        return "done"

    frame = spark.range(0, 1, 1, 1).select(udf(wait, "string")("id"))
    query = threading.Thread(target=lambda: answers.extend(frame.collect()))
    query.start()
    with FakeDatabricks(users=60, shape="small", latency=0.1) as server:
        gate = hang_when(server, workers_help(server))
        gate.seconds = 600.0

        def all_hangs():
            """No answer is under way, and no query of ours on its way to the server."""
            return gate.hits == server.in_flight and 0 < len(queries()) <= len(workers_that_wait(server))

        def interrupt():
            try:
                until(all_hangs, 180)
            finally:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        results = process_user_batch_parallel(spark, server.user_names, config_of(server), 4)
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt), closing(results):
            for _ in results:
                pass
        thread.join()
        until(lambda: not workers_that_wait(server), 60)  # the threads of this process wait on
    assert query.is_alive()
    go_on.touch()
    query.join()
    assert [row[0] for row in answers] == ["done"]


def test_a_connect_server_that_is_lost_and_stays_away(connect_server, login):
    """The rest is scanned from here, and at the end nobody waits long for a server that is gone."""
    server = FakeDatabricks(users=8, shape="bench", directories=150, slow=0.5)
    with server, closing(Wire(connect_server.port)) as wire:
        write_users(server.user_names)
        with running(server, login, *WORDS, "--spark-remote", f"sc://127.0.0.1:{wire.port}") as process:
            until(lambda: process.poll() is not None or workers_help(server)(), 180)
            wire.close()
            server.change(slow=1.0)
            said = next(line for line in process.stderr if line.startswith("warning: "))
            server.hurry()
            _, err = process.communicate(timeout=60)  # pyspark itself looks for its server for minutes
        assert process.returncode == 0, err
        assert "left alone" in said
        assert Path("out.csv").read_bytes() == true_csv(server)
    assert "Traceback" not in err, err
    assert "RETRIES_EXCEEDED" not in said + err, err


GUEST = """
import os, sys
sys.path.insert(0, {root!r})
from pyspark.sql import SparkSession
from databricks_user_files_simple import user_files
theirs = SparkSession.builder.remote("local[1]").getOrCreate()
before = dict(os.environ)
assert user_files({words!r}) == 0
assert theirs.range(3).count() == 3, "it was ended"
assert SparkSession.getActiveSession() is theirs
assert dict(os.environ) == before
"""


def test_the_callers_own_session_survives_a_scan_with_another_server(connect_server, many, login):
    write_users(many.user_names)
    text = GUEST.format(root=str(ROOT), words=[*WORDS, "--spark-remote", connect_server.remote])
    environment = {**os.environ, **login(many), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-c", text]
    with slow_until(many, workers_help(many), slow=0.5):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("out.csv").read_bytes() == true_csv(many)


def test_workers_of_another_python_version(connect_server, many, scanned, log):
    """With two real interpreters. The other needs no packages: a mismatched worker runs nothing."""
    own = f"3.{sys.version_info.minor}"
    others = {version: find_python(version) for version in ("3.10", "3.12", "3.13") if version != own}
    version = next(filter(others.get, others), None)
    if version is None:
        pytest.skip("there is no other Python 3 on this machine")
    with connect_server.workers(others[version]):
        session = connect_server.session()
        [warning] = scanned(session, many, lambda: "mismatch" in log.text, slow=0.5)
        session.stop()
    assert f"Python version mismatch: client {own}, cluster {version}." in warning
    assert many.workers == {}


def test_the_token_is_nowhere_on_the_server(spark, many, connect_server, scanned, monkeypatch):
    from pyspark.sql.connect.dataframe import DataFrame

    token, plans, collect = "dapi0123456789secret9876543210", [], DataFrame.collect

    def explain_and_collect(frame):
        plans.append(frame._explain_string(extended=True))
        return collect(frame)

    monkeypatch.setattr(DataFrame, "collect", explain_and_collect)
    many.change(token=token)
    scanned(spark, many, slow=0.5)
    assert len(plans) >= 2
    assert all("Physical Plan" in plan for plan in plans)
    configuration = str([tuple(row) for row in spark.sql("SET -v").collect()])
    texts = {**connect_server.texts(), "explain": "\n".join(plans), "configuration": configuration}
    assert any("SparkListenerJobEnd" in text for text in texts.values()), list(texts)
    assert [name for name, text in texts.items() if any(spelling in text for spelling in spellings(token))] == []
