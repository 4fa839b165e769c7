"""The crawler: order, retries, pace, outages, faults on the wire; and the functions that people call from Python.

Where nothing else is said the clock is a fake one: it moves only when the program sleeps.
"""

import socket
import threading
import time
from collections import Counter
from contextlib import closing
from email.utils import formatdate
from itertools import pairwise
from zlib import crc32

import pytest

import databricks_user_list
from databricks_user_files_simple import scan_dbfs, scan_user_directory, scan_users, scan_workspace
from databricks_user_list import InventoryError
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import (
    ANN,
    BEN,
    FILE_SYSTEMS,
    HOME,
    MINUTE,
    WORDS,
    asked_for,
    assert_all_true,
    assert_truth,
    config_of,
    crawl,
    ended_threads,
    figures,
    free_port,
    listings,
    make_client,
    saved_users,
    set_constants,
    shorter_waits,
    small_server,
    true_csv,
    true_figures,
    until,
    write_users,
)

KINDS = ("500", "503", "reset", "reset_body", "truncated_json", "empty_429", "html", "hang")


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


# What people call


@pytest.mark.parametrize("threads", [1, 16])
def test_so_many_requests_are_made_at_a_time_and_no_more(clock, threads):
    with FakeDatabricks(users=5, shape="bench", directories=20, latency=0.01) as server:
        assert_all_true(server, crawl(server, clock, threads=threads))
        assert server.max_in_flight == threads


@pytest.mark.parametrize("only", FILE_SYSTEMS)
def test_one_file_system_alone_is_scanned_alone(clock, only):
    with FakeDatabricks(users=12) as server:
        results = crawl(server, clock, file_systems=(only,))
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


def test_a_name_given_twice_is_scanned_once_and_no_name_is_no_request(clock):
    with small_server() as server:
        client = make_client(server, clock)
        assert list(scan_users([], client.config, client=client)) == []
        assert server.total_requests == 0
        assert [result.username for result in scan_users([ANN, ANN], client.config, client=client)] == [ANN]
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


# When it is tried again

SCHEDULES = {  # kind: seconds from the first to each further attempt of the first round, and of the second
    "429": [0, 4, 12, 28, 60], "empty_429": [0, 4, 12, 28, 60], "slow": [0, 2],
    **{kind: [0, 2, 6, 14, 30] for kind in ("500", "503", "reset", "truncated", "html")},
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_waits_between_attempts_double_and_there_is_one_more_round(clock, recorder, kind):
    with small_server() as server:
        server.change(faults=[recorder, Fault(kind, api="dbfs", path=HOME)])
        result = crawl(server, clock, file_systems=("dbfs",))[ANN]
        assert server.requests["dbfs", HOME] == 2 * len(SCHEDULES[kind])
    assert recorder.offsets(HOME)[: len(SCHEDULES[kind])] == pytest.approx(SCHEDULES[kind], abs=0.2)
    assert result.status == "error"


@pytest.mark.parametrize("kind", SCHEDULES)
def test_what_ran_out_of_attempts_gets_one_more_round_before_the_row_is_written(clock, kind):
    times = len(SCHEDULES[kind])
    with small_server() as server:
        server.change(faults=[Fault(kind, api="dbfs", path=f"{HOME}/b", times=times)])
        assert_all_true(server, crawl(server, clock))
        assert server.requests["dbfs", f"{HOME}/b"] == times + 1


def test_waits_are_jittered_down_to_the_half(clock, recorder):
    with small_server() as server:
        server.change(faults=[recorder, Fault("500", api="dbfs", path=HOME)])
        crawl(server, clock, file_systems=("dbfs",), jitter=0.0)
    assert recorder.offsets(HOME)[:5] == pytest.approx([0, 1, 3, 7, 15])


RETRY_AFTER = [  # kind, header, seconds to the second attempt
    ("429", "50", 50), ("503", "50", 50), ("empty_429", "50", 50), ("429", "1", 4), ("503", "0", 2),
    ("429", "3600", 120), ("503", "99999999999999999999", 120), ("429", "soon", 4), ("429", "-5", 4), ("500", "50", 2),
    ("429", "Mon, 01 Jan 2001 00:00:00 GMT", 4), ("slow", "50", 50),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "header", "seconds"), RETRY_AFTER)
def test_retry_after_is_a_lower_bound_of_the_wait(clock, recorder, kind, header, seconds):
    with small_server() as server:
        server.change(faults=[recorder, Fault(kind, path=HOME, times=1, headers={"Retry-After": header})])
        assert crawl(server, clock, file_systems=("dbfs",))[ANN].status == "success"
    assert recorder.offsets(HOME) == pytest.approx([0, seconds], abs=0.2)


def test_retry_after_may_be_a_date(clock, recorder):
    date = formatdate(time.time() + 60, usegmt=True)
    with small_server() as server:
        server.change(faults=[recorder, Fault("429", path=HOME, times=1, headers={"Retry-After": date})])
        crawl(server, clock, file_systems=("dbfs",))
    assert 55 <= recorder.offsets(HOME)[1] <= 61


def test_a_429_uses_up_no_attempt_while_others_of_the_api_succeed(clock):
    with wide_server(600) as server:
        path = f"{HOME}/d0599"
        server.change(faults=[Fault("429", path=path, times=14)])
        result = crawl(server, clock, file_systems=("dbfs",))[ANN]
        assert server.requests["dbfs", path] == 15
    assert (result.status, result.file_count) == ("success", 600)


def test_any_other_failure_uses_up_attempts_while_others_succeed(clock):
    with wide_server(600) as server:
        path = f"{HOME}/d0599"
        server.change(faults=[Fault("500", path=path, times=14)])
        assert crawl(server, clock, file_systems=("dbfs",))[ANN].status == "partial"
        assert server.requests["dbfs", path] <= 10


@pytest.mark.parametrize("threads", [1, 4])
def test_a_listing_that_waits_holds_up_no_other(clock, recorder, threads):
    with small_server([ANN, BEN]) as server:
        server.change(faults=[recorder, Fault("500", api="dbfs", path=f"{HOME}/b", times=1)])
        assert_all_true(server, crawl(server, clock, threads=threads))
    late = {path for now, _, path in recorder.seen if now > 1000}
    assert late == {f"{HOME}/b", f"{HOME}/b/c"}


@pytest.mark.parametrize(("limited", "other"), [FILE_SYSTEMS, FILE_SYSTEMS[::-1]])
def test_a_rate_limited_file_system_does_not_hold_up_the_other(clock, recorder, limited, other):
    with FakeDatabricks(users=6, shape="small") as server:
        home = f"/Users/{server.user_names[0]}"
        server.change(faults=[recorder, Fault("429", api=limited, path=home, times=1, headers={"Retry-After": "100"})])
        assert_all_true(server, crawl(server, clock))
        assert {now for now, api, _ in recorder.seen if api == other} == {1000}
    assert clock.now >= 1100


def gaps_of(recorder, after=0):
    """Seconds between requests for directories below the home, from so many of them on."""
    times = [now for now, api, path in recorder.seen if api == "dbfs" and path.startswith(f"{HOME}/")]
    return [later - earlier for earlier, later in pairwise(times[after:])]


def test_a_429_slows_the_requests_down_and_successes_let_them_be_faster_again(clock, recorder):
    with wide_server(600) as server:
        server.change(faults=[recorder, Fault("429", api="dbfs", path=HOME, times=1)])
        assert crawl(server, clock, threads=4)[ANN].file_count == 600
    gaps = gaps_of(recorder)
    first, last = sum(gaps[:50]) / 50, sum(gaps[-50:]) / 50
    assert 0.02 <= first <= 0.06
    assert last < first / 2


def test_429s_to_requests_that_left_together_slow_down_once(clock, recorder):
    """Sixteen are in flight when the first of them is answered; each for itself would be 2 requests a second."""
    with wide_server(40, latency=0.02) as server:
        paths = [f"{HOME}/d{number:04}" for number in range(40 - 16, 40)]
        server.change(faults=[recorder, *(Fault("429", path=path, times=1) for path in paths)])
        assert crawl(server, clock)[ANN].file_count == 40
    assert gaps_of(recorder, 20)[0] <= 0.06


def test_the_first_rate_is_what_was_just_being_achieved(clock, recorder):
    with wide_server(400) as server:
        server.change(faults=[recorder, Fault("429", path=f"{HOME}/d0200", times=1)])
        assert crawl(server, clock, threads=1, on_tick=lambda: clock.sleep(0.005))[ANN].file_count == 400
    assert sum(gaps_of(recorder, 200)[1:51]) / 50 < 0.02


def test_time_that_was_lost_is_not_made_up_for_by_a_burst(clock, recorder):
    lost = []

    def lose_a_minute():
        if len(recorder.seen) > 100 and not lost:
            lost.append(len(gaps_of(recorder)))
            clock.sleep(60)

    with wide_server(200) as server:
        server.change(faults=[recorder, Fault("429", api="dbfs", path=HOME, times=1)])
        assert crawl(server, clock, threads=4, on_tick=lose_a_minute)[ANN].file_count == 200
    assert sum(gaps_of(recorder, lost[0] + 2)[:10]) > 0.1


def test_no_request_is_delayed_where_there_is_no_429(clock):
    with wide_server(200) as server:
        crawl(server, clock)
    assert clock.waits == []


def test_a_workspace_with_limits_is_scanned_whole(monkeypatch):
    set_constants(monkeypatch, RETRIES=dict.fromkeys(databricks_user_list.RETRIES, (5, 0.1)))
    with wide_server(130, limit=100) as server:
        result = scan_user_directory(ANN, config_of(server))
        assert server.statuses[429] > 0
    assert (result.status, result.file_count) == ("success", 130)


# Outage


@pytest.mark.parametrize(
    ("kind", "failing"), [("500", 2), ("500", 40), ("429", 12), ("reset", 12), ("slow", 12), ("html", 12)]
)
def test_several_directories_that_always_fail_are_no_outage(clock, failing, kind):
    with wide_server(60) as server:
        paths = [f"{HOME}/d{number:04}" for number in range(failing)]
        server.change(faults=[Fault(kind, path=path) for path in paths])
        result = crawl(server, clock)[ANN]
    assert (result.status, result.file_count) == ("partial", 60 - failing)
    assert sorted(failure["path"] for failure in result.dbfs.failures) == paths
    assert clock.now < 1000 + 14 * MINUTE


def test_homes_that_always_fail_are_no_outage(clock):
    names = [f"user{number}@example.com" for number in range(30)]
    with small_server(names) as server:
        server.change(faults=[Fault("500", api="dbfs", path=f"/Users/{name}") for name in names])
        results = crawl(server, clock)
    assert {result.status for result in results.values()} == {"partial"}
    assert all(figures(result)[3:6] == (2, 20_000, 2) for result in results.values())


def test_two_directories_that_always_fail_are_no_outage_where_the_root_cannot_be_listed(clock):
    with small_server() as server:
        server.change(faults=[Fault("500", api="dbfs", path=path) for path in (f"{HOME}/a", f"{HOME}/b")]
                      + [Fault("403", path="/")])  # fmt: skip
        result = crawl(server, clock)[ANN]
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


@pytest.mark.parametrize(("kind", "minutes"), [("503", 0.5), ("close", 5), ("503", 13)])
def test_an_outage_in_the_middle_of_a_scan_costs_nothing_but_time(clock, caplog, kind, minutes):
    with FakeDatabricks(users=8, shape="small") as server:
        outage = Outage(server, clock, kind, seconds=minutes * MINUTE)
        results = crawl(server, clock, on_tick=outage)
        assert outage.over
        assert_all_true(server, results)
        assert server.statuses[503] + server.statuses["close"] < 120
    assert clock.now - outage.began < minutes * MINUTE + 3 * MINUTE
    assert "in a row" in caplog.text


@pytest.mark.parametrize("kind", ["503", "close"])
def test_an_outage_for_good_ends_the_run_after_fifteen_minutes(clock, kind):
    with FakeDatabricks(users=8, shape="small") as server:
        outage = Outage(server, clock, kind)
        with pytest.raises(InventoryError, match="15 minutes"):
            crawl(server, clock, on_tick=outage)
    assert 15 * MINUTE <= clock.now - outage.began < 18 * MINUTE


def test_an_outage_of_one_api_for_good_ends_the_run(clock):
    with FakeDatabricks(users=8, shape="small", faults=[Fault("503", api="dbfs")]) as server:
        with pytest.raises(InventoryError, match="15 minutes"):
            crawl(server, clock)
        assert server.counts.api_statuses["dbfs", 503] < 150


@pytest.mark.parametrize(("header", "first"), [(None, 2), ("30", 30)])
def test_an_api_that_is_away_is_asked_for_its_root_ever_more_rarely(clock, recorder, header, first):
    fault = Fault("503", api="dbfs", headers={"Retry-After": header} if header else {})
    with FakeDatabricks(users=20, shape="dbfs") as server:
        fault.applies = lambda api, path, _: api == "dbfs" and path != "/Users"
        server.change(faults=[recorder, fault])
        with pytest.raises(InventoryError, match="15 minutes"):
            crawl(server, clock)
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
        crawl(server, clock, threads=1)
        assert (server.requests["dbfs", "/"] > 0) == away


def test_the_time_of_an_outage_begins_with_its_own_failures(clock):
    """Two of ten minutes each are none of twenty."""
    with FakeDatabricks(users=8, shape="dbfs") as server:
        outages = [Outage(server, clock, "503", 30, 10 * MINUTE)]

        def on_tick():
            outages[-1]()
            if outages[0].over and len(outages) == 1:
                outages.append(Outage(server, clock, "503", server.total_requests + 20, 10 * MINUTE))

        results = crawl(server, clock, on_tick=on_tick, file_systems=("dbfs",))
        assert outages[1].over
    assert {result.status for result in results.values()} == {"success"}


def test_a_host_that_refuses_the_first_request_is_an_error_at_once(clock):
    with small_server() as server, pytest.raises(InventoryError, match="cannot be reached"):
        crawl(server, clock, host=f"http://127.0.0.1:{free_port()}")
    assert clock.waits == []


# The wire


class Sticky(Fault):
    """Fails for the same paths below the homes every time, at that rate of the paths."""

    def applies(self, api, path, _):
        return api in FILE_SYSTEMS and str(path).startswith("/Users/") and self.hits_path(api, path)

    def hits_path(self, api, path):
        return crc32(f"{api}:{path}".encode()) < self.rate * 2**32


def tally_without(server, name, file_system, failed):
    """Files, bytes and directories of a home without these directories, and which of them it really has."""
    home = server.workspace.home_name(server.user_names.index(name))
    children, sums, found = server.workspace.children_function(file_system, home), [0, 0, 0], set()
    if f"/Users/{name}" in failed:  # where nobody can tell whether there is one, too
        return sums, {f"/Users/{name}"}
    waiting = [""] if children else []
    while waiting:
        relative = waiting.pop()
        if f"/Users/{home}{relative}" in failed:
            found.add(f"/Users/{home}{relative}")
            continue
        sums[2] += 1
        for entry in children(relative):
            if entry.type in ("DIRECTORY", "REPO"):
                waiting.append(f"{relative}/{entry.name}")
            elif f"/Users/{home}{relative}/{entry.name}" in failed:  # without a type it is listed, too
                found.add(f"/Users/{home}{relative}/{entry.name}")
            else:
                sums[0] += 1
                sums[1] += entry.size if file_system == "dbfs" else 10_000
    return sums, found


def assert_honest(server, results):
    """Every user once, and every row true but for the directories it names; returns those, (file system, path)."""
    assert sorted(results) == sorted(server.user_names)
    lost = set()
    for result in results.values():
        statuses = Counter()
        for name, totals in result.scanned.items():
            failed = [failure["path"] for failure in totals.failures]
            expected, found = tally_without(server, result.username, name, failed)
            assert [totals.files, totals.bytes, totals.directories] == expected, result
            assert sorted(failed) == sorted(found), result
            statuses.update(directories=totals.directories, failures=len(failed))
            lost.update((name, path) for path in failed)
        bad = "partial" if statuses["directories"] else "error"
        truth = server.truth(result.username)
        assert result.status == (bad if statuses["failures"] else "success" if truth.file_count else "empty")
    return lost


@pytest.fixture
def impatient(monkeypatch):
    """Requests are given up after 0.1 s."""
    set_constants(monkeypatch, READ_SECONDS=0.1)


def mixed(kind, rate):
    """Faults of one kind at that rate of the requests, or of all kinds together."""
    kinds = KINDS if kind == "all" else (kind,)
    return [Fault(name, rate=rate / len(kinds), seconds=60) for name in kinds]


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_faults_on_the_wire_cost_no_file(impatient, clock, kind):
    with FakeDatabricks(users=6, seed=7, shape="small", shapes={3: "awkward", 4: "case", 5: "none"}) as server:
        server.change(faults=mixed(kind, 0.2))
        assert assert_honest(server, crawl(server, clock)) == set()
        assert server.counts.faults


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["small", "giant", "deep", "awkward", "case", "dbfs"])
def test_faults_on_the_wire_with_other_trees_and_seeds(impatient, clock, shape, seed):
    users = {"giant": 1, "deep": 2, "awkward": 4}.get(shape, 40)
    for rate in (0.01, 0.05, 0.2):
        for kind in (*KINDS, "all"):
            with FakeDatabricks(users=users, seed=seed, shape=shape, faults=mixed(kind, rate)) as server:
                assert assert_honest(server, crawl(server, clock, threads=(1, 4, 32)[seed])) == set()
        with FakeDatabricks(users=users, seed=seed, shape=shape, faults=[Sticky("500", rate=rate)]) as server:
            assert_honest(server, crawl(server, clock))


def test_of_directories_that_never_answer_exactly_those_are_missing(impatient, clock):
    """A tenth of the paths fails at every attempt; each row says so, and counts all the rest."""
    with FakeDatabricks(users=12, seed=5, shape="small", shapes={3: "awkward", 4: "case"}) as server:
        kinds = ("500", "reset", "html", "truncated_json")
        sticky = [Sticky(name, rate=0.1 * (number + 1) / len(kinds)) for number, name in enumerate(kinds)]
        server.change(faults=sticky)
        results = crawl(server, clock)
        lost = assert_honest(server, results)
        assert lost == {key for key in listings(server) if sticky[-1].applies(*key, None)}
        assert len(lost) > 10
    assert {result.status for result in results.values()} >= {"partial", "success"}


def test_names_that_do_not_resolve_for_a_while_cost_nothing_but_time(clock, monkeypatch):
    real, began, failed = socket.getaddrinfo, [], []

    def resolve(*words, **more):
        if broken():
            failed.append(words)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(*words, **more)

    def broken():
        return began and clock.now < began[0] + MINUTE

    def on_tick():
        if not began and server.total_requests >= 40:
            began.append(clock.now)
        if broken():  # connections that are open need no name
            server.drop_connections()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with FakeDatabricks(users=8, shape="small") as server:
        assert_all_true(server, crawl(server, clock, on_tick=on_tick, host=f"http://localhost:{server.port}"))
    assert len(failed) > 3


def test_a_service_that_stays_away_ends_the_command_and_resume_goes_on(server, scan, monkeypatch):
    waits = {"FIRST_PROBE": 0.2, "LONGEST_OUTAGE": 2.0, "RETRIES": shorter_waits(20)}
    set_constants(monkeypatch, READ_SECONDS=0.3, **waits)
    gone = threading.Thread(target=lambda: (until(lambda: len(saved_users()) >= 2), server.change(outage="close")))
    gone.start()
    done = scan(server, *WORDS)
    gone.join()
    assert done.code == 2, done
    assert "no success for" in done.err
    assert "--resume" in done.err
    saved = saved_users()
    assert len(saved) >= 2
    server.change(outage=None)
    assert scan(server, *WORDS, "--resume").code == 0
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    with open("out.csv", "rb") as file:
        assert file.read() == true_csv(server)


# A login that ends


@pytest.mark.parametrize(("bad_token", "after"), [(401, 0), (403, 1), (401, 2), (403, 40)])
def test_a_refused_login_ends_the_run(clock, bad_token, after):
    with FakeDatabricks(users=8, shape="small", bad_token=bad_token, expire_after_requests=after) as server:
        with pytest.raises(InventoryError, match="token"):
            crawl(server, clock)
        assert server.statuses[200] + server.statuses[404] == after
    assert clock.waits == []


def test_a_403_for_a_path_does_not_end_the_run(clock):
    with small_server() as server:
        path = f"{HOME}/invalid access token"
        server.add_tree("dbfs", {HOME: [dbfs_directory(path), dbfs_file(f"{HOME}/x", 1)]})
        server.change(faults=[Fault("403", path=path, message=f"You may not list {path}")])
        assert crawl(server, clock)[ANN].status == "partial"


def test_a_command_whose_login_ends_keeps_what_it_has_and_resumes(scan):
    with FakeDatabricks(users=10, shape="small", bad_token=401, expire_after_requests=60) as server:
        write_users(server.user_names)
        stopped = scan(server, *WORDS)
        assert stopped.code == 2, stopped
        assert "token" in stopped.err
        assert server.settings.token not in stopped.err
        saved = saved_users()
        server.change(expire_after_requests=None)
        assert scan(server, *WORDS, "--resume").code == 0
        assert saved
        assert [asked_for(server, name) for name in saved] == [0] * len(saved)
        with open("out.csv", "rb") as file:
            assert file.read() == true_csv(server)


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
        result = crawl(server, clock, on_tick=delete, threads=1)[ANN]
        assert (server.requests[api, path], server.requests[api, HOME]) == (1, 2)
    failures = [failure["path"] for failure in result.scanned[api].failures]
    assert failures == ([path] if then in ("still listed", "cannot be told") else [])
    assert result.status == ("partial" if failures else "success")
    assert figures(result)[:4] == ((2, 105, 2, 2) if api == "dbfs" else (4, 128, 4, 1))
