"""The scan on real Spark Connect workers: its results are those of the sequential scan, whatever goes wrong.

One Connect server, local[8], serves all tests. Its workers may import nothing of this project. The tests of one scan
use one session from this process, whose workers are warm; the tests of the command start it as a process.
"""

import base64
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_files_simple import process_user_batch_parallel
from databricks_user_list import DatabricksClient, DatabricksConfig, load_databricks_config
from tests.connect_server import standalone_cluster
from tests.fake import TOKEN_URL, FakeDatabricks, Fault
from tests.helpers import (
    NAME,
    ROOT,
    SCANNER,
    WORDS,
    asked_for,
    block_imports,
    free_port,
    hang_when,
    needs_posix,
    running,
    saved_users,
    set_constants,
    true_csv,
    until,
    write_users,
)

PATIENCE = 75  # seconds, with a server that is silent: SPEC has 60
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()  # other interpreters
needs_pyspark = pytest.mark.skipif(find_spec("pyspark") is None, reason="pyspark is not installed")


# Helpers


def config_of(server):
    return DatabricksConfig(server.url, server.settings.token, "test")


def scan(spark, server, names=None, threads=4, **options):
    """The results of process_user_batch_parallel."""
    return list(process_user_batch_parallel(spark, names or server.user_names, config_of(server), threads, **options))


def write_csv(results, names):
    by_name = {result.username: result for result in results}
    assert sorted(by_name) == sorted(names)
    assert len(by_name) == len(results)
    scanner.write_results((by_name[name] for name in names), "in_process.csv", None)
    return Path("in_process.csv").read_bytes()


def listed_twice(server):
    often = {key: number for key, number in server.requests.items() if number > 1 and key[1] not in ("/", "/Users")}
    return {key: number for key, number in often.items() if key[0] not in ("scim", "oidc")}


def log_lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "databricks_user_files"]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records
            if record.name == "databricks_user_files" and record.levelno >= logging.WARNING]  # fmt: skip


@pytest.fixture
def slow():
    """Forty users with about twenty directories each, so slow that a cluster has its part in it."""
    with FakeDatabricks(users=40, shape="small", latency=0.07) as server:
        yield server


@contextmanager
def slow_until(server, condition, latency=0.3):
    """So slow that no run ends before something has happened, and fast afterwards."""
    server.change(latency=latency)

    def hurry():
        with suppress(AssertionError):
            until(condition, 90)
        server.change(latency=0.0)

    thread = threading.Thread(target=hurry)
    thread.start()
    yield
    thread.join()


@pytest.fixture
def early(monkeypatch):
    """The cluster joins at once; its workers are warm."""
    set_constants(monkeypatch, CLUSTER_DELAY=0.0)


@pytest.fixture
def debug(caplog):
    caplog.set_level(logging.DEBUG, "databricks_user_files")
    return caplog


# The results are the truth: tests/test_matrix.py, too


def test_one_giant_user_is_spread_over_the_workers(spark, debug, early):
    """3,000 directories: one user in the mid of twenty."""
    with FakeDatabricks(users=20, shape="empty", shapes={9: "giant"}, latency=0.05) as server:
        results = scan(spark, server)
        assert write_csv(results, server.user_names) == true_csv(server)
        assert listed_twice(server) == {}
        assert len(server.workers) >= 4, server.workers
        assert {worker for worker in server.workers if f":{worker}:" in debug.text}


# Where the code comes from


def test_workers_cannot_import_this_project(connect_server):
    """What the other tests show, that code goes by value, they show because of this."""
    for name in ("databricks_user_files_simple", "tqdm"):
        done = subprocess.run(
            [connect_server.python, "-c", f"import {name}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=connect_server.folder,
        )
        assert "ModuleNotFoundError" in done.stderr


# Faults: the directories go out again, and what fails for good is said

FAULTS = [Fault(kind, rate=0.03) for kind in ("500", "503", "reset", "truncated", "html", "empty_429")]


def test_through_faults_the_results_are_the_truth(spark, slow, hasty, debug, early):
    slow.change(faults=FAULTS)
    results = scan(spark, slow)
    assert write_csv(results, slow.user_names) == true_csv(slow)
    assert set(slow.counts.faults) >= {"500", "503", "html"}
    assert slow.workers
    assert warnings_of(debug) == []


def test_an_outage_in_mid_run_is_waited_for(spark, hasty, debug, early):
    with FakeDatabricks(users=20, shape="small", latency=0.05) as server:
        over = threading.Timer(4, server.change, kwargs={"outage": None})

        def begin():
            until(lambda: server.workers.total() > 40)
            server.change(outage="503")
            over.start()

        thread = threading.Thread(target=begin)
        thread.start()
        results = scan(spark, server)
        thread.join()
        over.cancel()
        assert server.settings.outage is None, "it was over before"
        assert write_csv(results, server.user_names) == true_csv(server)
    assert warnings_of(debug)


def test_a_login_that_is_refused_in_mid_run_stops_it(spark, slow, early):
    gate = Fault("401")
    gate.applies = lambda *_: slow.workers.total() > 40
    slow.change(faults=[gate])
    with pytest.raises(databricks_user_list.InventoryError, match="token"):
        scan(spark, slow)


# Reports that are none, or false: their directories are listed here


def rewritten(change):
    """A false report: change(report, bodies) has what was reported, and the bodies of its answers."""

    def rewrite(packed):
        report = json.loads(zlib.decompress(packed))
        bodies = [base64.b64decode(text) for *_, text in report["answers"]]
        change(report, bodies)
        for answer, body in zip(report["answers"], bodies, strict=True):
            answer[3] = base64.b64encode(body).decode()
        return zlib.compress(json.dumps(report).encode())

    return rewrite


def drop(report, bodies):
    report["answers"], bodies[:] = report["answers"][1:], bodies[1:]


def double(report, bodies):
    report["answers"] += [list(report["answers"][0])]
    bodies += bodies[:1]


def cut(report, bodies):
    bodies[0] = bodies[0][:-1]


def swap(report, bodies):
    """Each body is told to be of another directory of the batch; of {} alone nobody can tell that it is not."""
    told = [index for index, body in enumerate(bodies) if body != b"{}"]
    for index, body in zip(told, [bodies[index] for index in [*told[1:], *told[:1]]], strict=True):
        bodies[index] = body


def of_others(report, bodies):
    """Answers of directories that this batch did not have."""
    for answer in report["answers"]:
        answer[1] += "/x"


def no_json(report, bodies):
    bodies[:] = [b"<html>" for _ in bodies]


def all_left(report, bodies):
    """Answers and not asked, both."""
    report["not_asked"] = [answer[:2] for answer in report["answers"]]


FALSE_REPORTS = {  # kind -> what it makes of a report, and whether that still reads as one
    "none": (lambda packed: None, False),
    "number": (lambda packed: 0, False),
    "nothing": (lambda packed: packed[:0], False),
    "half": (lambda packed: packed[: len(packed) // 2], False),
    "text": (lambda packed: "report", False),
    "a list": (lambda packed: zlib.compress(b"[]"), False),
    "no fields": (lambda packed: zlib.compress(b"{}"), False),
    **{change.__name__: (rewritten(change), True)
       for change in (drop, double, cut, swap, of_others, no_json, all_left)},
}  # fmt: skip


def change_reports(monkeypatch, change):
    """Makes change(packed) of what batches bring, the probe's reports left as they are."""
    from pyspark.sql.connect.dataframe import DataFrame

    collect = DataFrame.collect

    def changed(frame):
        rows = collect(frame)
        return [(change(rows[0][0]),)] if len(rows) == 1 else rows

    monkeypatch.setattr(DataFrame, "collect", changed)


@pytest.mark.parametrize("kind", FALSE_REPORTS)
def test_a_false_report_makes_no_row_wrong(spark, slow, debug, monkeypatch, early, kind):
    """Every third one."""
    change, reads = FALSE_REPORTS[kind]
    seen, numbers = [], itertools.count()

    def sometimes(packed):
        if next(numbers) % 3:
            return packed
        seen.append(packed)
        return change(packed)

    change_reports(monkeypatch, sometimes)
    with slow_until(slow, lambda: len(seen) > 1):
        results = scan(spark, slow)
    assert write_csv(results, slow.user_names) == true_csv(slow)
    unreadable = [line for line in warnings_of(debug) if "cannot be read" in line]
    assert seen
    assert len(unreadable) == (0 if reads else len(seen))


def test_where_every_report_is_none_the_cluster_is_left_alone(spark, slow, debug, monkeypatch, early):
    change_reports(monkeypatch, lambda packed: packed[:-1])
    with slow_until(slow, lambda: "left alone" in debug.text):
        results = scan(spark, slow)
    assert write_csv(results, slow.user_names) == true_csv(slow)
    assert warnings_of(debug)[-1].startswith("The cluster is left alone, 3 batches in a row failed: ")


# A login by databricks-sdk, which no worker has


@pytest.fixture
def oauth(monkeypatch):
    """oauth(server): a login with client id and secret, asked for tokens as often as there is need."""
    pytest.importorskip("databricks.sdk.core")
    set_constants(monkeypatch, HELD_SECONDS=0.01, FAILED_SECONDS=0.01)

    def login(server):
        server.change(clients={"the-client": "the-secret"}, token="dapi-nobody-has-this")
        variables = {"HOST": server.url, "CLIENT_ID": "the-client", "CLIENT_SECRET": "the-secret"}
        for name, value in variables.items():
            monkeypatch.setenv(f"DATABRICKS_{name}", value)
        return load_databricks_config()

    return login


def in_mid_run(server, action):
    """Do something when workers have made 40 requests; join() the thread that does."""

    def wait():
        until(lambda: server.workers.total() > 40)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_tokens_that_die_young_are_renewed_for_the_workers(spark, debug, oauth, early):
    """Renewed every second, as databricks-sdk does so 40 s early, and dead after four."""
    settings = {"token_lifetime": 41.0, "token_dies_early": 37.0}
    with FakeDatabricks(users=12, shape="bench", directories=30, latency=0.1, **settings) as server:
        results = list(process_user_batch_parallel(spark, server.user_names, oauth(server), 2))
        assert write_csv(results, server.user_names) == true_csv(server)
        assert server.requests["oidc", TOKEN_URL] >= 3
        assert server.workers


@pytest.mark.parametrize("endpoint_fails", [False, True])
def test_tokens_that_are_revoked_in_mid_run(spark, hasty, debug, oauth, endpoint_fails, early):
    """The workers hand their directories back; without a new token the run waits, as in an outage."""
    with FakeDatabricks(users=20, shape="small", latency=0.05) as server:
        config, fault = oauth(server), Fault("500", path=TOKEN_URL, times=3)

        def revoke():
            server.change(faults=[fault] if endpoint_fails else [])
            server.revoke()

        thread = in_mid_run(server, revoke)
        results = list(process_user_batch_parallel(spark, server.user_names, config, 4))
        thread.join()
        assert write_csv(results, server.user_names) == true_csv(server)
        assert server.statuses[401]
        assert fault.hits == (3 if endpoint_fails else 0)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_tokens_of_a_minute_in_a_run_of_three(connect_server, command, mode):
    pytest.importorskip("databricks.sdk.core")
    login = {"clients": {"the-client": "the-secret"}, "token": "dapi-nobody-has-this", "token_lifetime": 60.0}
    with FakeDatabricks(users=60, shape="bench", directories=120, latency=0.2, **login) as server:
        write_users(server.user_names)
        began = time.monotonic()
        done = command(SCANNER, "--users-file", "users.txt", "-o", "out.csv",
                       *(["--threads", "8"] if mode == "sequential" else ["--threads", "1"]), timeout=500, env={
                           "DATABRICKS_HOST": server.url, "DATABRICKS_CLIENT_ID": "the-client",
                           "DATABRICKS_CLIENT_SECRET": "the-secret",
                           "SPARK_REMOTE": connect_server.remote if mode == "parallel" else ""})  # fmt: skip
        seconds, tokens = time.monotonic() - began, server.requests["oidc", TOKEN_URL]
        print(f"{mode}: {server.total_requests} requests in {seconds:.0f} s, {tokens} tokens, {server.statuses}")
        assert done.code == 0, done
        assert "warning" not in done.err, done
        assert Path("out.csv").read_bytes() == true_csv(server)
        assert listed_twice(server) == {}
        assert seconds > 170
        assert tokens >= 6
        assert server.statuses[401] == 0


def test_a_login_that_is_taken_away_in_mid_run_stops_it(spark, oauth, early):
    with FakeDatabricks(users=20, shape="small", latency=0.05) as server:
        config = oauth(server)
        thread = in_mid_run(server, lambda: (server.change(clients={}), server.revoke()))
        with pytest.raises(databricks_user_list.InventoryError, match="invalid_client") as caught:
            list(process_user_batch_parallel(spark, server.user_names, config, 4))
        thread.join()
        assert "the-secret" not in str(caught.value)


# Killed and interrupted


@needs_posix
def test_workers_killed_in_mid_scan_cost_nothing(spark):
    with FakeDatabricks(users=60, shape="small", latency=0.05) as server:
        killed = []

        def kill():
            server.change(latency=2.0)
            time.sleep(1)  # of the next answers, which none of them is to see
            killed.extend(server.workers)
            for worker in killed:
                os.kill(int(worker), signal.SIGKILL)
            server.change(latency=0.0)

        thread = in_mid_run(server, kill)
        results = scan(spark, server)
        thread.join()
        assert killed
        assert write_csv(results, server.user_names) == true_csv(server)


def resumed(server, command, login, remote, saved):
    """The rest of a run: the truth, and nothing of those who were saved is listed again."""
    until(lambda: server.in_flight == 0, 60)
    server.change(faults=[], latency=0.005)
    server.counts_reset()
    done = command(SCANNER, *WORDS, "--resume", "--spark-remote", remote, env=login(server), timeout=120)
    assert done.code == 0, done
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert not Path(NAME).exists()


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_killed_or_interrupted_it_goes_on_with_resume(connect_server, command, login, number):
    with FakeDatabricks(users=30, shape="small", latency=0.1) as server:
        write_users(server.user_names)
        gate = hang_when(server, lambda: server.workers.total() > 40 and len(saved_users()) >= 5)
        gate.seconds = 600.0
        with running(server, login, *WORDS, "--spark-remote", connect_server.remote) as process:
            until(lambda: process.poll() is not None or gate.hits >= 8, 120)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)  # no thread is waited for: a request has 90 s
        saved = saved_users()
        assert len(saved) >= 5
        assert not Path("out.csv").exists()
        if number == signal.SIGINT:
            assert process.returncode == 130, err
            assert "--resume" in err
            assert "Traceback" not in err, err
        server.change(faults=[])
        for connection in list(server.connections):
            server.loop.call_soon_threadsafe(connection.transport.abort)
        resumed(server, command, login, connect_server.remote, saved)


@needs_posix
def test_interrupting_leaves_the_users_own_queries_alone(spark, monkeypatch, early, tmp_path):
    """Of the session of a notebook: the batches are cancelled by their tag, a query of the user's goes on."""
    from pyspark.sql.connect.functions import udf

    set_constants(monkeypatch, GRACE_SECONDS=600.0, OVERDUE_SECONDS=600.0)  # of itself no batch ends
    answers, go_on = [], tmp_path / "go_on"

    def wait(_, path=str(go_on)):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.02)
        return "done"

    query = threading.Thread(
        target=lambda: answers.extend(spark.range(0, 1, 1, 1).select(udf(wait, "string")("id")).collect())
    )
    query.start()
    with FakeDatabricks(users=60, shape="small", latency=0.1) as server:
        gate = hang_when(server, lambda: server.workers.total() > 40)
        gate.seconds = 600.0
        results = process_user_batch_parallel(spark, server.user_names, config_of(server), 4)
        with pytest.raises(KeyboardInterrupt), closing(results), interrupted_when(lambda: all_hangs(server, gate)):
            for _ in results:
                pass
        until(lambda: not workers_that_wait(server), 60)  # the threads of this process wait on
    assert query.is_alive()
    go_on.touch()
    query.join()
    assert [row[0] for row in answers] == ["done"]


def workers_that_wait(server):
    """The workers whose requests have no answer yet."""
    requests = [connection.request for connection in list(server.connections)]
    return {request.worker for request in requests if request and request.worker}


def all_hangs(server, gate):
    """Whether no answer is under way, and no query of ours on its way to the server."""
    queries = [thread for thread in threading.enumerate() if "run_query" in thread.name]
    return gate.hits == server.in_flight and 0 < len(queries) <= len(workers_that_wait(server))


@contextmanager
def interrupted_when(condition):
    """A KeyboardInterrupt of what stands in it, once the condition is true."""

    def interrupt():
        try:
            until(condition, 120)
        finally:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@needs_posix
def test_a_connect_server_that_is_killed_and_stays_away(connect_servers, tmp_path, login):
    """The rest is scanned from here; nobody waits long for a server that is gone, nor at the end for its farewell."""
    folder = tmp_path / "connect"
    folder.mkdir()
    with connect_servers(folder, "local[4]") as connect, FakeDatabricks(users=30, shape="small") as server:
        write_users(server.user_names)
        server.change(latency=0.3)
        with running(server, login, *WORDS, "--spark-remote", connect.remote) as process:
            until(lambda: process.poll() is not None or server.workers.total() > 40, 90)
            connect.kill()
            said = next(line for line in process.stderr if line.startswith("warning: "))
            server.change(latency=0.0)
            _, err = process.communicate(timeout=60)  # pyspark itself looks for its server for minutes
        assert process.returncode == 0, err
        assert "left alone" in said
        assert Path("out.csv").read_bytes() == true_csv(server)
    assert "Traceback" not in err, err
    assert "RETRIES_EXCEEDED" not in said + err, err


# Warnings


def assert_warned(server, done, *texts):
    """It went on without a cluster after one warning that has these texts, and its results are right."""
    assert done.code == 0, done
    found = [line for line in done.err.splitlines() if line.startswith("warning: ") and texts[0] in line]
    assert len(found) == 1, done
    assert [text for text in texts if text not in found[0]] == [], found
    assert server.workers == {}
    assert "Traceback" not in done.err
    assert Path("out.csv").read_bytes() == true_csv(server)


CLUSTERS = {
    "terminated": ({"state": "TERMINATED", "state_message": "Inactive for 60 minutes."},
                   ["TERMINATED", "Inactive for 60 minutes", "Start it"]),
    "error": ({"state": "ERROR", "state_message": "No capacity."}, ["ERROR", "No capacity"]),
    "unknown": (None, ["does not exist"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CLUSTERS)
def test_a_cluster_that_does_not_run(slow, command, login, case):
    shown, texts = CLUSTERS[case]
    slow.change(clusters={"0123-456789-abc": shown})
    write_users(slow.user_names)
    done = command(SCANNER, *WORDS, "--cluster-id", "0123-456789-abc", env=login(slow))
    assert_warned(slow, done, "Parallel processing not available", "0123-456789-abc", *texts)


STATES = {  # what clusters/get shows in turn, seconds waited, what is raised
    "running": (["RUNNING"], 0, None), "resizing": (["RESIZING"], 0, None),
    "starts": (["PENDING", "PENDING", "RUNNING"], 20, None), "restarts": (["RESTARTING", "RUNNING"], 10, None),
    "fails": (["PENDING", "TERMINATED"], 10, "TERMINATED"), "never": (["PENDING"], 600, "PENDING"),
    "terminating": (["TERMINATING"], 0, "TERMINATING"), "unknown state": (["UNKNOWN"], 0, "UNKNOWN"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_waiting_for_a_cluster(small, clock, caplog, case):
    states, seconds, raised = STATES[case]
    caplog.set_level(logging.INFO, "databricks_user_files")
    small.change(clusters={"c": [{"state": state, "state_message": f"about {state}"} for state in states]})
    client = DatabricksClient(config_of(small), clock=clock, sleep=clock.sleep)
    if raised:
        with pytest.raises(scanner.SparkUnavailable, match=f"Parallel processing not available.*{raised}"):
            scanner.wait_for_cluster(client, "c")
    else:
        scanner.wait_for_cluster(client, "c")
    assert abs(sum(clock.waits) - seconds) <= 10 * (seconds > 0)
    progress = [line for line in log_lines(caplog) if "about" in line]
    assert len(progress) >= sum(state in ("PENDING", "RESTARTING") for state in states)


@pytest.mark.parametrize("word", ["--cluster-id", "--spark-remote"])
def test_without_pyspark_it_says_so_and_goes_on(slow, command, login, tmp_path, word):
    blocked = block_imports(tmp_path / "blocked", "pyspark")
    slow.change(clusters={"c": {"state": "RUNNING"}})
    write_users(slow.user_names)
    environment = {**login(slow), "PYTHONPATH": str(blocked)}
    done = command(SCANNER, *WORDS, word, "c" if word == "--cluster-id" else "sc://localhost:1", env=environment)
    assert_warned(slow, done, "Parallel processing not available", "pyspark", "pip install")


def test_without_pyspark_all_else_works(small, command, login, tmp_path):
    environment = {**login(small), "PYTHONPATH": str(block_imports(tmp_path / "blocked", "pyspark"))}
    write_users(small.user_names)
    assert command(SCANNER, "--help", env=environment).code == 0
    done = command(SCANNER, *WORDS, env=environment)
    assert done.code == 0, done
    assert "warning" not in done.err
    assert Path("out.csv").read_bytes() == true_csv(small)


def test_no_parallel_wins(small, command, login, tmp_path):
    """Nothing of Spark is touched: pyspark cannot even be imported, and nothing is said about it."""
    blocked = block_imports(tmp_path / "blocked", "pyspark")
    write_users(small.user_names)
    for words, remote in ((("--cluster-id", "c"), ""), (("--spark-remote", "sc://localhost:1"), ""), ((), "local[2]")):
        environment = {**login(small), "PYTHONPATH": str(blocked), **({"SPARK_REMOTE": remote} if remote else {})}
        done = command(SCANNER, *WORDS, "--no-parallel", *words, env=environment)
        assert done.code == 0, done
        assert "sequential" in done.err
        assert "warning" not in done.err
        assert Path("out.csv").read_bytes() == true_csv(small)
        assert not any(api == "clusters" for api, _ in small.requests)


@pytest.mark.soak
@needs_pyspark
def test_a_server_that_cannot_be_reached(slow, login):
    write_users(slow.user_names)
    with running(slow, login, *WORDS, "--spark-remote", f"sc://127.0.0.1:{free_port()}") as process:
        until(lambda: process.poll() is not None or Path("out.csv").exists(), PATIENCE)
        _, err = process.communicate(timeout=5)
    assert process.returncode == 0, err
    assert Path("out.csv").read_bytes() == true_csv(slow)
    assert "Parallel processing not available" in err
    assert "RETRIES_EXCEEDED" not in err, err


WALLED = """
import errno, sys
def refuse(event, words):
    if event == "socket.connect" and words[1][1:2] == ({port},):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
sys.addaudithook(refuse)
"""


def test_workers_that_cannot_reach_the_workspace(connect_server, slow, debug, tmp_path, early):
    folder = tmp_path / "walled"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WALLED.format(port=slow.port), encoding="utf-8")
    with connect_server.workers(site=folder):
        session = connect_server.session()
        with slow_until(slow, lambda: "not available" in debug.text):
            results = scan(session, slow)
        session.stop()
    assert write_csv(results, slow.user_names) == true_csv(slow)
    warned = [line for line in warnings_of(debug) if "Parallel processing not available" in line]
    assert len(warned) == 1, warned
    assert slow.url in warned[0]
    assert "network" in warned[0]


def test_workers_that_the_workspace_refuses(spark, slow, debug, early):
    """As an IP access list does that has this machine, and not the cluster."""
    slow.change(faults=[Fault("403", of_workers=True, message="Source IP address is blocked")])
    with slow_until(slow, lambda: "not available" in debug.text):
        results = scan(spark, slow)
    assert write_csv(results, slow.user_names) == true_csv(slow)
    assert warnings_of(debug)


def other_python():
    """An interpreter of another minor version, or None. It needs no packages: a mismatched worker runs nothing."""
    installed = sorted(PYENV.glob("versions/3.1[0-9].*/bin/python"))
    for path in [*installed, *map(shutil.which, ("python3.10", "python3.12"))]:
        if path and python_version(path) not in ("", f"3.{sys.version_info.minor}"):
            return str(path)
    return None


def python_version(path):
    code = "import sys; print('3.%d' % sys.version_info.minor)"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_workers_of_another_python_version(connect_server, slow, debug, early):
    """With two real interpreters."""
    if (python := other_python()) is None:
        pytest.skip("there is no other Python 3 on this machine")
    with connect_server.workers(python):
        session = connect_server.session()
        with slow_until(slow, lambda: "mismatch" in debug.text):
            results = scan(session, slow)
        session.stop()
    assert write_csv(results, slow.user_names) == true_csv(slow)
    client, cluster = f"3.{sys.version_info.minor}", python_version(python)
    warned = [line for line in warnings_of(debug) if "Python version mismatch" in line]
    assert len(warned) == 1, warnings_of(debug)
    assert f"client {client}, cluster {cluster}." in warned[0]
    assert slow.workers == {}


def test_python_versions_are_read_from_the_error():
    text = ("(org.apache.spark.api.python.PythonException) pyspark.errors.exceptions.base.PySparkRuntimeError: "
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: {} than that in driver: 3.12, "
            "PySpark cannot run with different minor versions.")  # fmt: skip
    for found in ("3.11", "3.9"):
        message = scanner.spark_problem(RuntimeError(text.format(found)))
        assert message.startswith(f"Python version mismatch: client 3.12, cluster {found}. ")


# The connection as Databricks wants it

URLS = [
    ("https://adb-1.2.azuredatabricks.net", "sc://adb-1.2.azuredatabricks.net:443/;use_ssl=true"),
    ("https://dbc-1.cloud.databricks.com", "sc://dbc-1.cloud.databricks.com:443/;use_ssl=true"),
    ("https://localhost:8443", "sc://localhost:8443/;use_ssl=true"),
    ("https://[::1]:8443", "sc://[::1]:8443/;use_ssl=true"),
    ("https://[::1]", "sc://[::1]:443/;use_ssl=true"),
]


@pytest.mark.parametrize(("host", "url"), URLS)
def test_the_url_of_a_cluster(host, url):
    assert scanner.connect_url(host) == url


@needs_pyspark
@pytest.mark.parametrize(("host", "url"), URLS)
def test_pyspark_reads_the_url_as_meant(host, url):
    from pyspark.sql.connect.client.core import DefaultChannelBuilder

    builder = DefaultChannelBuilder(scanner.connect_url(host))
    assert builder.secure
    assert builder.endpoint == url[len("sc://") : url.index("/;")]
    assert builder.metadata() == []


class Endpoint:
    """One TLS port with a certificate of its own: REST goes to the fake workspace, gRPC to a Connect server.

    It keeps the metadata of every gRPC call: (method, {name: [values]}).
    """

    def __init__(self, folder, rest_port, connect_port):
        self.certificate, self.calls, self.rest_port = make_certificate(folder), [], rest_port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, folder / "key.pem")
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.start_grpc(connect_port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def start_grpc(self, connect_port):
        """A gRPC server that takes note of the metadata and forwards bytes as they are."""
        import grpc

        endpoint, self.upstream = self, grpc.insecure_channel(f"127.0.0.1:{connect_port}")

        class Forward(grpc.GenericRpcHandler):
            def service(self, details):
                metadata = {}
                for name, value in details.invocation_metadata:
                    metadata.setdefault(name, []).append(value)
                endpoint.calls.append((details.method.rpartition("/")[2], metadata))
                return endpoint.handler(details.method)

        self.grpc = grpc.server(futures.ThreadPoolExecutor(64), [Forward()])
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()

    def handler(self, method):
        import grpc

        name = method.rpartition("/")[2]
        if name in ("ExecutePlan", "ReattachExecute"):
            call = self.upstream.unary_stream(method)
            return grpc.unary_stream_rpc_method_handler(lambda request, context: forwarded(call, request, context))
        if name == "AddArtifacts":
            call = self.upstream.stream_unary(method)
            return grpc.stream_unary_rpc_method_handler(lambda request, context: call(request))
        call = self.upstream.unary_unary(method)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: call(request))

    def accept(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(plain,), daemon=True).start()

    def serve(self, plain):
        """One connection, forwarded according to the protocol that was agreed on."""
        import selectors

        try:
            with self.context.wrap_socket(plain, server_side=True) as client:
                port = self.grpc_port if client.selected_alpn_protocol() == "h2" else self.rest_port
                with socket.create_connection(("127.0.0.1", port)) as upstream, selectors.DefaultSelector() as ready:
                    ready.register(client, selectors.EVENT_READ, upstream)
                    ready.register(upstream, selectors.EVENT_READ, client)
                    while True:
                        for key, _ in ready.select():
                            data = key.fileobj.recv(65536)
                            while key.fileobj is client and client.pending():
                                data += client.recv(65536)
                            if not data:
                                return
                            key.data.sendall(data)
        except OSError:  # the other side went away
            pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        self.grpc.stop(0).wait()
        self.upstream.close()


def forwarded(call, request, context):
    """A stream of answers, or the error that it ends with."""
    import grpc

    try:
        yield from call(request)
    except grpc.RpcError as error:
        context.set_trailing_metadata(error.trailing_metadata() or ())
        context.abort(error.code(), error.details())


def make_certificate(folder):
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate with openssl, which is not there")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", names, "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
                   check=True, capture_output=True)  # fmt: skip
    return folder / "certificate.pem"


@pytest.fixture
def endpoint(connect_server, slow, tmp_path):
    place = Endpoint(tmp_path, slow.port, connect_server.port)
    yield place
    place.close()


def test_a_run_on_a_cluster_sends_its_login_over_tls_with_every_call(connect_server, slow, endpoint, command, login):
    slow.change(clusters={"0123-456789-abc": [{"state": "RUNNING"}]}, workspace_ids=("111",))
    write_users(slow.user_names)
    certificate = str(endpoint.certificate)
    environment = {
        **login(slow),
        "DATABRICKS_HOST": f"{endpoint.url}/?o=111",
        "REQUESTS_CA_BUNDLE": certificate,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": certificate,
    }
    workers, enough = connect_server.workers(REQUESTS_CA_BUNDLE=certificate), lambda: slow.workers.total() > 40
    with workers, slow_until(slow, enough):
        done = command(SCANNER, *WORDS, "--cluster-id", "0123-456789-abc", "--debug", env=environment, timeout=120)
    assert done.code == 0, done
    assert "warning" not in done.err, done
    assert slow.workers
    assert Path("out.csv").read_bytes() == true_csv(slow)
    methods = Counter(method for method, _ in endpoint.calls)
    assert methods["ExecutePlan"] > 3
    wanted = {"authorization": [f"Bearer {slow.settings.token}"], "x-databricks-cluster-id": ["0123-456789-abc"],
              "x-databricks-workspace-id": ["111"]}  # fmt: skip
    wrong = [(method, metadata) for method, metadata in endpoint.calls if metadata.items() < wanted.items()
             or any(metadata.get(name) != value for name, value in wanted.items())]  # fmt: skip
    assert wrong == []


CHANGING_LOGIN = """
import sys
sys.path.insert(0, {root!r})
import databricks_user_files_simple as scanner
import databricks_user_list
tokens = ["first-token"]
config = databricks_user_list.DatabricksConfig({url!r}, "", renew=lambda refused: tokens[-1])
session = scanner.connect_cluster(config, "0123-456789-abc")
print(session.range(3).count())
tokens.append("second-token")
print(session.range(4).count())
"""


def test_the_login_of_the_moment_goes_with_every_call(endpoint):
    """In a process of its own: gRPC reads the certificates once."""
    environment = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(endpoint.certificate)}
    text = CHANGING_LOGIN.format(root=str(ROOT), url=endpoint.url)
    done = subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["3", "4"], done.stderr
    calls = [(method, *metadata["authorization"]) for method, metadata in endpoint.calls]
    tokens = [token for method, token in calls if method == "ExecutePlan"]  # the last of them is of the session's end
    assert tokens[:2] == ["Bearer first-token", "Bearer second-token"]
    late = calls[calls.index(("ExecutePlan", "Bearer second-token")) :]
    old = {method for method, token in late if token == "Bearer first-token"}
    assert old <= {"ReleaseExecute"}  # of the first query, sent when nobody waits for it


# No token where others can read


def spellings(token):
    """The token, and what it is within base64 at any position."""
    encoded = [base64.b64encode(b"x" * shift + token.encode()).decode()[4:-4] for shift in range(3)]
    return [token, *encoded]


def test_the_token_is_nowhere_on_the_server(spark, connect_server, monkeypatch, early):
    from pyspark.sql.connect.dataframe import DataFrame

    token, plans, collect = "dapi0123456789secret9876543210", [], DataFrame.collect

    def explain_and_collect(frame):
        plans.append(frame._explain_string(extended=True))
        return collect(frame)

    monkeypatch.setattr(DataFrame, "collect", explain_and_collect)
    with FakeDatabricks(users=12, shape="small", token=token, latency=0.07) as server:
        results = scan(spark, server)
        assert write_csv(results, server.user_names) == true_csv(server)
        assert server.workers
    assert len(plans) >= 2
    assert all("Physical Plan" in plan for plan in plans)
    texts = {
        **connect_server.texts(),
        "explain": "\n".join(plans),
        "configuration": str([tuple(row) for row in spark.sql("SET -v").collect()]),
    }
    assert any("SparkListenerJobEnd" in text for text in texts.values()), list(texts)
    assert [name for name, text in texts.items() if any(spelling in text for spelling in spellings(token))] == []


# Rates


@pytest.mark.soak
def test_at_a_limit_the_workers_share_the_pace(spark, debug):
    """About 20 s at 30 requests/s for each API: all is found, and few requests are refused."""
    with FakeDatabricks(users=20, shape="bench", directories=60, latency=0.02, limit=30) as server:
        began = time.monotonic()
        results = scan(spark, server, threads=16)
        seconds = time.monotonic() - began
        assert write_csv(results, server.user_names) == true_csv(server)
        refused = server.statuses[429]
        print(f"{server.total_requests} requests, {refused} of them refused, {seconds:.1f} s")
    assert {result.status for result in results} == {"success"}
    assert refused <= 0.1 * server.total_requests, f"{refused} of {server.total_requests}"
    assert seconds < 1.6 * 600 / 30, f"{seconds:.0f} s"


# A cluster of several machines, all of them this one


@pytest.mark.soak
def test_on_a_master_and_two_workers(connect_servers, tmp_path, command, login):
    folder = tmp_path / "cluster"
    folder.mkdir()
    with standalone_cluster(folder) as url, connect_servers(folder, url) as connect, FakeDatabricks(
            users=60, latency=0.01) as server:  # fmt: skip
        until(lambda: connect.texts()["console"].count("Registered executor") == 2, 60)
        write_users(server.user_names)
        done = command(SCANNER, *WORDS, "--spark-remote", connect.remote, "--debug", env=login(server), timeout=120)
        assert done.code == 0, done
        assert "warning" not in done.err
        assert Path("out.csv").read_bytes() == true_csv(server)
        assert len(server.workers) > 1
    executors = list(folder.glob("work*/app-*/*/stderr"))
    assert len({path.parts[-4] for path in executors}) == 2, executors
