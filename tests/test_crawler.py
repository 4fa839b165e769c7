"""The crawler: order, retries, pace, outages, faults on the wire; and the functions that people call from Python.

Where nothing else is said the clock is a fake one: it moves only when the program sleeps.
"""

import threading
from collections import Counter
from contextlib import closing, nullcontext
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random

import pytest

from databricks_user_files_simple import next_rate, scan_dbfs, scan_user_directory, scan_users, scan_workspace
from databricks_user_list import InventoryError
from tests import helpers
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file
from tests.helpers import ANN, BEN, HOME, MINUTE, assert_all_true, crawl, make_client, set_constants, small_server


def wide_server(directories, **more):
    """One user with so many directories in the DBFS home, a file of one byte in each; the last is listed first."""
    server = FakeDatabricks(users=[ANN], shape="none", **more)
    paths = [f"{HOME}/d{number:04}" for number in range(directories)]
    server.add_tree("dbfs", {HOME: [*map(dbfs_directory, paths)], **{at: [dbfs_file(f"{at}/f", 1)] for at in paths}})
    return server


@pytest.fixture
def recorder(clock):
    """A fault that never applies, and notes when and what was asked for, by the fake clock."""
    fault = Fault("500")
    fault.seen = []
    fault.applies = lambda api, path, _: fault.seen.append((clock.now, api, path))
    return fault


def test_so_many_requests_are_made_at_a_time_and_no_more(clock):
    """Over as many connections, which are used again."""
    with FakeDatabricks(users=2, shape="bench", directories=30, latency=0.05) as server:
        assert_all_true(server, crawl(server, clock, threads=16))
        assert server.max_in_flight == 16
        assert server.counts.connections <= 16


def test_the_functions_for_one_user_find_the_truth():
    with FakeDatabricks(users=1, shape="small") as server:
        name, config = server.user_names[0], helpers.config_of(server)
        both = scan_user_directory(name, config)
        helpers.assert_truth(both, server.truth(name))
        for scan_one, file_system in ((scan_dbfs, "dbfs"), (scan_workspace, "workspace")):
            server.counts_reset()
            assert scan_one(name, config) == getattr(both, file_system)
            assert {api for api, _ in server.requests} == {"scim", file_system}


def test_a_name_given_twice_is_scanned_once_and_no_name_is_no_request(clock):
    with small_server() as server:
        client = make_client(server, clock)
        assert list(scan_users([], client.config, client=client)) == []
        assert server.total_requests == 0
        assert [result.username for result in scan_users([ANN, ANN], client.config, client=client)] == [ANN]
        assert set(helpers.listings(server).values()) == {1}


def test_a_result_comes_before_the_last_user_is_scanned(clock):
    with FakeDatabricks(users=9, shape="small", shapes={8: "giant"}) as server:
        client = make_client(server, clock)
        with helpers.ended_threads(), closing(scan_users(server.user_names, client.config, client=client)) as results:
            assert next(results).username in server.user_names[:8]
        assert server.total_requests < 3000


def test_where_no_more_threads_are_to_be_had_it_goes_on_with_those_there_are(monkeypatch, caplog):
    start, began = threading.Thread.start, []

    def start_three(thread):
        if sum(other.is_alive() for other in began) == 3:
            raise RuntimeError("can't start new thread")
        began.append(thread)
        start(thread)

    with wide_server(40, latency=0.001) as server:
        monkeypatch.setattr(threading.Thread, "start", start_three)
        [result] = scan_users([ANN], helpers.config_of(server), threads=16)
    assert result.file_count == 40
    assert "can't start new thread: going on with 3 threads" in caplog.text


@pytest.mark.parametrize(("limit", "most", "told"), [(64, 31, True), (20, 1, True), (256, 64, False), (-1, 64, False)])
def test_threads_are_as_many_as_file_descriptors_allow(monkeypatch, clock, caplog, limit, most, told):
    """Those left, less 32; -1 is no limit."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    with wide_server(50, latency=0.02) as server:
        assert crawl(server, clock, threads=64)[ANN].file_count == 50
        assert server.max_in_flight <= most
    assert ("ulimit -n" in caplog.text) == told


@pytest.mark.parametrize(("kind", "header", "jitter", "offsets"), [  # those of the first round's attempts, in seconds
    ("429", "1", 1.0, [0, 4, 12, 28, 60]), ("429", "50", 1.0, [0, 50, 100, 150, 200]), ("slow", "", 1.0, [0, 2]),
    ("slow", "50", 1.0, [0, 50]), ("503", "10", 1.0, [0, 10, 20, 30, 46]), ("500", "50", 1.0, [0, 2, 6, 14, 30]),
    ("html", "", 1.0, [0, 2, 6, 14, 30]), ("500", "", 0.0, [0, 1, 3, 7, 15]),
])  # fmt: skip
def test_the_waits_between_attempts_double_and_there_is_one_more_round(clock, recorder, kind, header, jitter, offsets):
    """Before the row is written: what is listed in the second round is in it. A tenth failure may begin an outage."""
    b, attempts, headers = f"{HOME}/b", len(offsets), {"Retry-After": header} if header else {}
    with small_server() as server:
        for times, status in ((attempts, "success"), (2 * attempts - 1, "success"), (None, "partial")):
            server.change(faults=[recorder, Fault(kind, api="dbfs", path=b, times=times, headers=headers)])
            recorder.seen.clear()
            server.counts_reset()
            assert crawl(server, clock, file_systems=("dbfs",), jitter=jitter)[ANN].status == status
            more = server.requests["dbfs", b] - (times or 2 * attempts)
            assert more == 1 or (more == 0 and times is None)
            asked_at = [now for now, api, path in recorder.seen if (api, path) == ("dbfs", b)]
            assert [now - asked_at[0] for now in asked_at[:attempts]] == pytest.approx(offsets, abs=0.2)
            least = 0 if kind == "500" else float(header or 0)  # which asks for nothing; also before the second round
            assert all(after - before >= least for before, after in pairwise(asked_at))


@pytest.mark.parametrize(("kind", "status", "asked"), [("429", "success", 15), ("500", "partial", 10)])
def test_a_429_uses_up_no_attempt_while_others_of_the_api_succeed(clock, kind, status, asked):
    """They do so for 80 seconds."""
    with wide_server(200) as server:
        path = f"{HOME}/d0199"
        server.change(faults=[Fault(kind, path=path, times=14)])
        found = crawl(server, clock, threads=1, file_systems=("dbfs",), on_tick=lambda: clock.sleep(0.4))
        assert found[ANN].status == status
        assert server.requests["dbfs", path] == asked


@pytest.mark.parametrize(("threads", "open_users"), [(1, 2), (4, 2), (16, 1)])
def test_a_listing_that_waits_holds_up_no_other_of_the_users_that_may_be_open(
    clock, recorder, monkeypatch, threads, open_users
):
    set_constants(monkeypatch, OPEN_USERS=open_users)
    with small_server([ANN, BEN]) as server:
        server.change(faults=[recorder, Fault("500", api="dbfs", path=f"{HOME}/b", times=1)])
        assert_all_true(server, crawl(server, clock, threads=threads))
    late = {path for now, _, path in recorder.seen if now > 1000 and BEN not in path}
    assert late == {f"{HOME}/b", f"{HOME}/b/c"}
    assert {now for now, _, path in recorder.seen if BEN in path} == {1000 if open_users == 2 else 1002}


@pytest.mark.parametrize(("limited", "other"), [("dbfs", "workspace"), ("workspace", "dbfs")])
def test_a_rate_limited_file_system_does_not_hold_up_the_other(clock, recorder, limited, other):
    with FakeDatabricks(users=3, shape="small") as server:
        home = f"/Users/{server.user_names[0]}"
        server.change(faults=[recorder, Fault("429", api=limited, path=home, times=1, headers={"Retry-After": "100"})])
        assert_all_true(server, crawl(server, clock))
        assert {now for now, api, _ in recorder.seen if api == other} == {1000}
    assert clock.now >= 1100


@pytest.mark.parametrize(("rate", "limited", "achieved", "row", "quiet", "low", "high"), [
    (inf, False, 100.0, 9, inf, inf, inf),  # no delay before the first 429
    (inf, True, 0.0, 0, 0, 20, 20),  # 50 ms apart
    (inf, True, 45.0, 9, 0, 45, 45),  # less where more was just being achieved
    (20.0, True, 100.0, 1, 0, 18.1, 18.2),  # an eleventh less: every second answer is one
    (20.0, True, 100.0, 0, 0, 18.6, 18.7),  # a fifteenth less, where 429s come one after the other
    (20.0, True, 100.0, 90, 0, 19.8, 19.8),  # hardly less, after so many successes
    (1.05, True, 0.0, 0, 0, 1, 1),  # never more than 1 s apart
    (20.0, False, 0.0, 1, 5, 20.01, 20.01),
    (20.0, False, 0.0, 110, 6, 20.15, 20.15),  # a limit that has been far away for a while
    (400.0, False, 300.0, 900, 6, 400.15, 400.15),
    (400.0, False, 300.0, 900, 0, 400.1, 400.1),  # at high rates slower, for the sake of windows of time
    (60.0, False, 30.0, 90, 9, 60, 60),  # grows only while it is what limits
    (999.99, False, 900.0, 1, 0, inf, inf),  # eased to no delay at all
])  # fmt: skip
def test_the_rate_follows_the_answers(rate, limited, achieved, row, quiet, low, high):
    assert low <= next_rate(rate, limited, achieved, row, quiet) <= high


@pytest.mark.parametrize("rate", [1, 10, 60])
def test_a_rate_is_the_most_there_are_of_each_api_from_the_first_user_on(clock, recorder, rate):
    """Whatever is answered: first 429s. Time that is lost is not made up for by a burst: here a minute."""
    with wide_server({1: 40, 10: 160, 60: 400}[rate]) as server:
        server.change(faults=[recorder, rule("429", lambda *_: 1002 < clock.now < 1012)])
        lose = iter([60])
        result = crawl(server, clock, rate=rate, on_tick=lambda: clock.now > 1020 and clock.sleep(next(lose, 0)))[ANN]
    times = [now for now, api, path in recorder.seen if api == "dbfs" and path != "/Users"]
    assert all(sum(first <= now < first + 10 for now in times) <= 10 * rate + 1 for first in times)
    assert sum(now < 1002 for now in times) >= 0.9 * 2 * rate
    assert (result.status, next(lose, None)) == ("success", None)


TOLD = "Waiting until the service is back"


def rule(kind, applies):
    """A fault with a rule of its own, by API and path; /Users is left out as often as every run lists it first."""
    fault, seen = Fault(kind, body="[]"), Counter()

    def counted(api, path, _):
        seen[api, path] += 1
        return (path != "/Users" or seen[api, path] > 2) and applies(api, path)

    fault.applies = counted
    return fault


def of_dbfs(kind, while_true=lambda: True):
    return rule(kind, lambda api, path: api == "dbfs" and while_true())


@pytest.mark.parametrize(("kind", "failing", "each"), [
    ("500", 40, 12), ("html", 12, 12), ("429", 12, 25), ("slow", 12, 4), ("body", 40, 10),
    ("403", 300, 1), ("redirect", 40, 1),
])  # fmt: skip
def test_directories_that_are_never_listed_are_their_own_fault(clock, caplog, kind, failing, each):
    """Nothing is said, and hardly more asked than where a single one fails.

    Nobody needs to be able to list /, and whether the service is there a refusal tells as well.
    """
    with wide_server(failing + 20) as server:
        both = [f"{HOME}/d{number:04}" for number in range(failing + 20)]
        paths, good = both[:failing], both[failing:]
        again = rule("403", lambda api, path: kind == "500" and path in good and server.requests[api, path] > 1)
        server.change(faults=[rule(kind, lambda _, path: path in paths), Fault("403", path="/"), again])
        result = crawl(server, clock)[ANN]
        assert sum(server.requests["dbfs", path] for path in paths) <= each * failing + 16  # under way at a pause
        assert max(server.requests["dbfs", path] for path in good) <= 1 + 6
    assert (result.status, result.file_count) == ("partial", 20)
    assert sorted(failure["path"] for failure in result.dbfs.failures) == paths
    assert TOLD not in caplog.text
    assert clock.now < 1000 + 7 * MINUTE


def test_directories_of_one_user_that_fail_are_no_outage_of_the_others(clock, caplog):
    others = [f"user{number}@example.com" for number in range(40)]
    with small_server([ANN, *others]) as server:
        server.add_tree("dbfs", {HOME: [dbfs_directory(f"{HOME}/d{number:04}") for number in range(60)]})
        server.change(faults=[rule("500", lambda _, path: path.startswith(f"{HOME}/d"))])
        results = crawl(server, clock)
        assert sum(number for (_, path), number in server.requests.items() if f"{HOME}/d" in str(path)) <= 60 * 12
    assert Counter(result.status for result in results.values()) == {"success": 40, "partial": 1}
    assert TOLD not in caplog.text
    assert clock.now < 1000 + 3 * MINUTE


@pytest.mark.parametrize(("kind", "minutes"), [("503", [13]), ("reset", [5]), ("503", [10, 10])])
def test_an_outage_in_the_middle_of_a_scan_costs_nothing_but_time(clock, caplog, kind, minutes):
    """After each thirty listings all fail for so many minutes; two of ten minutes are none of twenty."""
    left, ended = list(minutes), [clock.now]

    def fails(*_):
        listed = sum(server.requests.values()) - sum(server.counts.faults.values())
        if left and clock.now >= ended[-1] and listed > 30 * len(ended):
            ended.append(clock.now + left.pop(0) * MINUTE)
        return clock.now < ended[-1]

    with FakeDatabricks(users=12, shape="small") as server:
        server.change(faults=[rule(kind, fails)])
        assert_all_true(server, crawl(server, clock))
        assert 20 <= sum(server.counts.faults.values()) < 300
    assert caplog.text.count(TOLD) >= len(minutes)
    assert sum(minutes) <= (clock.now - 1000) / MINUTE < sum(minutes) + 3 * len(minutes)


@pytest.mark.parametrize(("directories", "threads", "good", "seconds"), [
    (200, 1, 0, 5 * MINUTE), (200, 1, 1 / 3, 40),  # one good node of three
    (0, 1, 0, 2 * MINUTE), (0, 16, 0, 2 * MINUTE), (3, 16, 0, 2 * MINUTE),
])  # fmt: skip
def test_a_service_that_is_away_costs_nothing_however_many_directories_are_left(
    clock, caplog, directories, threads, good, seconds
):
    """The tenth failure, with which the pause begins, may be the last attempt of one."""
    random, ended = Random(2).random, clock.now + seconds
    with wide_server(directories) as server:
        is_begun = lambda: directories < 200 or server.requests["dbfs", f"{HOME}/d0150"]  # noqa: E731
        server.change(faults=[of_dbfs("503", lambda: is_begun() and clock.now < ended and random() >= good)])
        result = crawl(server, clock, threads=threads, file_systems=("dbfs",))[ANN]
    assert (result.error, result.file_count) == ("", directories)
    assert TOLD in caplog.text


@pytest.mark.parametrize(("header", "first"), [(None, 2), ("30", 30)])
@pytest.mark.parametrize("listed", [0, 5])
def test_an_api_that_is_away_is_asked_one_question_ever_more_rarely(clock, recorder, caplog, header, first, listed):
    """For the directory that was listed last; where none was, for /Users. That it waits is said once."""
    with wide_server(60) as server:
        away = of_dbfs("503", lambda: server.requests["dbfs", f"{HOME}/d0055"] or not listed)
        away.headers = {"Retry-After": header} if header else {}
        server.add_user(BEN)
        server.change(faults=[recorder, away])
        with pytest.raises(InventoryError, match="15 minutes"):
            crawl(server, clock, [ANN, *(f"user{number}@example.com" for number in range(12))], threads=1)
        asked = f"{HOME}/d0056" if listed else "/Users"
    times = [now for now, api, path in recorder.seen if (api, path) == ("dbfs", asked)][1 if listed else 2 :]
    gaps = [after - before for before, after in pairwise(times)]
    assert not listed or times[0] - 1000 == pytest.approx(max(2, first), abs=0.1)
    doubled = {2: [4, 8, 16, 32, 60, 60], 30: [32, 60, 60]}[first]
    assert gaps[: len(doubled)] == pytest.approx(doubled, abs=0.3)
    assert 900 <= times[-1] - times[0] + first <= 991
    assert {path for now, api, path in recorder.seen if api == "dbfs" and now >= times[0]} == {asked}
    assert caplog.text.count(TOLD) == 1


@pytest.mark.parametrize(("kind", "failures", "other", "away"), [
    ("500", 9, None, False), ("500", 10, None, True), ("500", 9, "403", False), ("500", 9, "slow", False),
    ("500", 9, "body", True), ("body", 10, None, False),  # JSON that is no listing is neither failure nor answer
    ("403", 9, None, False), ("403", 10, None, True), ("403", 9, "500", True), ("404", 10, None, False),
])  # fmt: skip
def test_ten_in_a_row_make_an_api_pause(clock, kind, failures, other, away):
    """One thread lists forty directories; of these fail so many in a row, then one is answered, and so on."""
    with wide_server(40) as server:
        asked = []

        def fails(_, path):
            if path.startswith(f"{HOME}/") and path not in asked:
                asked.append(path)
                return len(asked) % (failures + 1) > 0
            return False

        others = rule(other or "500", lambda _, path: other and path in asked[failures :: failures + 1])
        server.change(faults=[rule(kind, fails), others])
        crawl(server, clock, threads=1, file_systems=("dbfs",))
        again = server.requests["dbfs", HOME] - (kind == "404") > 1  # asked, for it was listed last
        assert again == away


@pytest.mark.parametrize(("kind", "left"), [("403", 150), ("400", 99), ("redirect", 99), ("404_other", 99), ("403", 9)])
def test_a_login_that_is_refused_everything_in_mid_run_ends_it(clock, kind, left):
    with wide_server(200) as server:
        server.change(faults=[of_dbfs(kind, lambda: server.requests["dbfs", f"{HOME}/d{left:04}"])])
        with pytest.raises(InventoryError, match=r"dbfs:/Users.* was listed before and is refused now .*: look at VPN"):
            crawl(server, clock, threads=1 if left == 9 else 16)
        assert server.counts.faults[kind] <= 150  # late answers from before end rows


@pytest.mark.parametrize(
    ("question", "listings_of_users", "is_row"), [("403", 3, False), ("", 3, True), ("403 403", 2, True)]
)
def test_a_login_that_may_list_no_home_has_a_row_for_each(clock, question, listings_of_users, is_row):
    """Unless /Users, which it could list, is refused as well then; where that never was listed, nobody can tell."""
    names = [f"user{number}@example.com" for number in range(14)]
    with small_server(names) as server:
        users = Fault("403", api="dbfs", path="/Users")
        users.when = lambda: question and server.requests["dbfs", "/Users"] > 2 or " " in question
        homes = rule("403", lambda api, path: api == "dbfs" and path != "/Users")
        server.change(faults=[users, homes])
        with nullcontext() if is_row else pytest.raises(InventoryError, match="refused now"):
            assert {result.status for result in crawl(server, clock, threads=1).values()} == {"partial"}
        assert server.requests["dbfs", "/Users"] == listings_of_users


KINDS = ("500", "503", "reset", "reset_body", "truncated_json", "empty_429", "html", "hang")


@pytest.mark.parametrize("kind", ["all", *(pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS)])
@pytest.mark.parametrize("shape", ["small", pytest.param("giant", marks=pytest.mark.soak)])
def test_faults_on_the_wire_cost_no_file(clock, monkeypatch, shape, kind):
    set_constants(monkeypatch, READ_SECONDS=0.1)
    kinds = KINDS if kind == "all" else (kind,)
    with FakeDatabricks(users=6, seed=7, shape=shape, shapes={5: "none"}) as server:
        server.change(faults=[Fault(name, rate=0.2 / len(kinds), seconds=60) for name in kinds])
        assert_all_true(server, crawl(server, clock))
        assert server.counts.faults


@pytest.mark.parametrize(("ending", "told"), [
    (Fault("401"), "token"), (Fault("body", status=403, body="Error 403 Invalid access token."), "token"),
    (Fault("503"), "no success for"),
])  # fmt: skip
def test_a_run_that_is_refused_or_left_alone_keeps_what_it_has_and_resumes(server, scan, monkeypatch, ending, told):
    set_constants(monkeypatch, RETRIES=helpers.shorter_waits(100), FIRST_QUESTION=0.02, LONGEST_OUTAGE=0.1)
    ending.applies = lambda *_: len(helpers.saved_users()) >= 2
    server.change(faults=[ending])
    done = scan(server, *helpers.WORDS)
    assert (done.code, Path("out.csv").exists()) == (2, False), done
    assert told in done.err
    assert "--resume" in done.err
    assert len(saved := helpers.saved_users()) >= 2
    server.change(faults=[])
    assert scan(server, *helpers.WORDS, "--resume").code == 0
    assert [helpers.asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == helpers.true_csv(server)


LISTED, OF_ITS_OWN, UNCLEAR = "404, though listed", "404, and of its directory: ", "different entries"


@pytest.mark.parametrize(("answers", "left", "lost", "why"), [  # in turn, the last one for good; the home has `left`
    ({"/a": "404", "/b": "404"}, "a", "/a", LISTED),
    ({"/a": "404", "/b": "404"}, "", "", ""),  # both were deleted
    ({"/a": "404", "/b": "404", "": "ok 404"}, "ab", "", ""),  # and all else, too
    ({"/a": "404", "/b": "404", "": "ok 403"}, "ab", "/a /b", OF_ITS_OWN + "403"),
    ({"/a": "404", "/b": "404", "": "ok 500"}, "ab", "/a /b", OF_ITS_OWN + "500"),
    ({"/b": "404", "": "ok 404 ok"}, "ab", "/b", LISTED),  # two 404s that pass are no deletion
    ({"/b/c": "404", "/b": "ok 404 ok"}, "ab", "/b", LISTED),
    ({"/b/c": "404", "/b": "ok 404"}, "a", "", ""),
    ({"/b": "404", "": "ok 500 500 500 500 500 404 ok"}, "ab", "/b", LISTED),
    ({"/a": "404"}, "aab", "/a", UNCLEAR), ({"/a": "404"}, "bcc", "/c", UNCLEAR),  # different entries of one name
])  # fmt: skip
def test_directories_that_are_not_found_are_failures_unless_they_were_deleted(clock, answers, left, lost, why):
    """Their own directory decides, asked once more."""

    def applies(kind, api, path):
        words = answers.get(path.removeprefix(HOME), "ok").split()
        return api == "dbfs" and words[min(server.requests[api, path], len(words)) - 1] == kind

    def have(names):
        directories = [dbfs_directory(f"{HOME}/{name}") | {"modification_time": at} for at, name in enumerate(names)]
        server.add_tree("dbfs", {HOME: [dbfs_file(f"{HOME}/top", 5), *directories], f"{HOME}/z": []})

    with small_server(faults=[rule(kind, partial(applies, kind)) for kind in ("403", "404", "500")]) as server:
        have("abz")
        result = crawl(server, clock, on_tick=lambda: server.statuses[404] and have(f"{left}z"), threads=1)[ANN]
    assert sorted(failure["path"] for failure in result.dbfs.failures) == [HOME + path for path in lost.split()]
    assert all(failure["error"].startswith(why) for failure in result.dbfs.failures)
    assert result.status == ("partial" if lost else "success")
