"""Under faults: wires that break, runs that are killed, disks that are full, runs side by side, and a long haul.

What holds in every test: a row with `success` or `empty` is the truth, any other names exactly what is missing from
it, and what was saved is not lost. What needs minutes is marked `soak`; INVENTORY_SOAK_USERS makes the longest shorter.
"""

import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import quote_plus
from zlib import crc32

import pytest

from databricks_user_files_simple import process_user_batch_parallel, scan_users
from databricks_user_list import DatabricksClient, DatabricksConfig, InventoryError
from tests.fake import FakeDatabricks, Fault, make_user_name
from tests.helpers import (
    NAME,
    ROOT,
    SCANNER,
    WORDS,
    FakeClock,
    asked_for,
    hang_when,
    leave_unfinished,
    make_result,
    needs_posix,
    program_with,
    running,
    saved_users,
    set_constants,
    shorter_waits,
    true_csv,
    until,
    write_checkpoint,
    write_users,
)

FILE_SYSTEMS = ("dbfs", "workspace")
KINDS = ("500", "503", "reset", "reset_body", "truncated_json", "empty_429", "html", "hang")
RATES = (0.01, 0.05, 0.2)
SHAPES = {0: "deep", 3: "awkward", 4: "case", 5: "empty", 6: "none"}  # of the default run; the others are `small`
soak = pytest.mark.soak
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace makes chosen system calls fail")


# Helpers


def mixed(kind, rate):
    """Faults of one kind at that rate of the requests, or of all kinds together."""
    kinds = KINDS if kind == "all" else (kind,)
    each = 1 - (1 - rate) ** (1 / len(kinds))
    return [Fault(name, rate=each, seconds=60) for name in kinds]


class Sticky(Fault):
    """Fails for the same paths below the homes every time, at that rate of the paths."""

    def applies(self, api, path, _):
        return api in FILE_SYSTEMS and str(path).startswith("/Users/") and self.hits_path(api, path)

    def hits_path(self, api, path):
        return crc32(f"{api}:{path}".encode()) < self.rate * 2**32


def scan_here(server, clock=None, threads=16, on_tick=lambda: None, host=None):
    """The results of a sequential scan on a clock that nobody waits for."""
    clock = clock or FakeClock()
    config = DatabricksConfig(host or server.url, server.settings.token, "test")
    client = DatabricksClient(config, threads, clock=clock, sleep=clock.sleep)
    before = threading.enumerate()
    try:
        return list(scan_users(server.user_names, config, threads, client=client, on_tick=on_tick))
    finally:
        client.adapter.close()
        for thread in set(threading.enumerate()).difference(before):
            thread.join(10)


def scan_there(spark, server, threads=4, **options):
    """The results of a parallel scan."""
    config = DatabricksConfig(server.url, server.settings.token, "test")
    return list(process_user_batch_parallel(spark, server.user_names, config, threads, **options))


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
    assert sorted(result.username for result in results) == sorted(server.user_names)
    lost = set()
    for result in results:
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


def drop_connections(server):
    """End every connection that is kept open, as a network that goes away does."""
    for connection in list(server.connections):
        server.loop.call_soon_threadsafe(connection.transport.abort)


@pytest.fixture
def impatient(monkeypatch):
    """Requests are given up after 0.1 s."""
    set_constants(monkeypatch, READ_SECONDS=0.1)


@pytest.fixture
def hasty(monkeypatch):
    """After 0.3 s, and waits are a fortieth, on workers too: what the functions refer to goes with them."""
    set_constants(monkeypatch, READ_SECONDS=0.3, RETRIES=shorter_waits(40), FIRST_PROBE=0.3)


def run_hasty(server, login, *words, outage=900.0):
    """The command as a process, with waits a twentieth and time-outs of 0.3 s."""
    environment = {**os.environ, **login(server), "PYTHONDONTWRITEBYTECODE": "1"}
    constants = {"READ_SECONDS": 0.3, "FIRST_PROBE": 0.2, "LONGEST_OUTAGE": outage, "RETRIES": shorter_waits(20)}
    command = [sys.executable, "-c", program_with(SCANNER, **constants), *WORDS, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60,
                          stdin=subprocess.DEVNULL)  # fmt: skip


# The wire


@pytest.mark.parametrize(("kind", "rate"), [
    pytest.param(kind, rate, marks=() if rate == 0.2 or kind == "all" else soak)
    for kind in (*KINDS, "all") for rate in RATES
])  # fmt: skip
def test_faults_on_the_wire_cost_no_file(impatient, kind, rate):
    with FakeDatabricks(users=9, seed=7, shape="small", shapes={3: "awkward", 4: "case", 5: "none"}) as server:
        server.change(faults=mixed(kind, rate))
        assert assert_honest(server, scan_here(server)) == set()
        assert server.counts.faults


@pytest.mark.parametrize("kind", ["500", "html", "all"])
def test_of_directories_that_never_answer_exactly_those_are_missing(impatient, kind):
    """A tenth of the paths fails at every attempt; each row says so, and counts all the rest."""
    with FakeDatabricks(users=12, seed=5, shape="small", shapes={3: "awkward", 4: "case"}) as server:
        kinds = ("500", "reset", "html", "truncated_json") if kind == "all" else (kind,)
        sticky = [Sticky(name, rate=0.1 * (number + 1) / len(kinds)) for number, name in enumerate(kinds)]
        server.change(faults=sticky)
        results = scan_here(server)
        lost = assert_honest(server, results)
        assert lost == {key for key in server.requests if key[0] in FILE_SYSTEMS and key[1] != "/Users"
                        and sticky[-1].applies(*key, None)}  # fmt: skip
        assert len(lost) > 10
    assert {result.status for result in results} >= {"partial", "success"}


def test_through_faults_the_command_writes_the_truth(server, login):
    server.change(faults=mixed("all", 0.2))
    done = run_hasty(server, login)
    assert done.returncode == 0, done.stderr
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(server.counts.faults) == set(KINDS)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


@soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["small", "giant", "deep", "awkward", "case", "dbfs"])
def test_faults_on_the_wire_with_other_trees_and_seeds(impatient, shape, seed):
    users = {"giant": 1, "deep": 2, "awkward": 4}.get(shape, 40)
    for rate in RATES:
        for kind in (*KINDS, "all"):
            with FakeDatabricks(users=users, seed=seed, shape=shape, faults=mixed(kind, rate)) as server:
                assert assert_honest(server, scan_here(server, threads=(1, 4, 16, 32)[seed % 4])) == set()
        with FakeDatabricks(users=users, seed=seed, shape=shape, faults=[Sticky("500", rate=rate)]) as server:
            assert_honest(server, scan_here(server))


@soak
def test_faults_on_the_wire_of_workers_cost_no_file(spark, hasty):
    """Of all kinds but 429, which is a matter of pace."""
    with FakeDatabricks(users=12, shape="small", shapes={3: "awkward", 5: "none"}, latency=0.07) as server:
        server.change(faults=[fault for fault in mixed("all", 0.2) if fault.kind != "empty_429"])
        assert assert_honest(server, scan_there(spark, server)) == set()
        assert server.workers
        assert len(server.counts.faults) == len(KINDS) - 1


@soak
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_faults_on_the_wire_of_workers_one_by_one(spark, hasty, kind, rate):
    users = 3 if kind in ("empty_429", "all") else 24  # the pace slows down with 429s, as it should
    for seed in (1, 2):
        shapes = {17: "deep", 1: "case"}
        with FakeDatabricks(users=users, seed=seed, shapes=shapes, latency=0.05, faults=mixed(kind, rate)) as server:
            assert assert_honest(server, scan_there(spark, server)) == set()


@soak
def test_of_directories_that_never_answer_workers_miss_exactly_those(spark, hasty):
    sticky = Sticky("500", rate=0.05)
    with FakeDatabricks(users=12, seed=5, shape="small", faults=[sticky], latency=0.07) as server:
        lost = assert_honest(server, scan_there(spark, server))
        assert lost == {key for key in server.requests if sticky.applies(*key, None)}
        assert server.workers
        assert len(lost) > 5


# Names that do not resolve, and a service that is away


class Between:
    """Given to a scan as on_tick: begin() after so many requests, end() so many seconds later."""

    def __init__(self, server, clock, begin, end, after=40, seconds=60.0):
        self.server, self.clock, self.begin, self.end = server, clock, begin, end
        self.after, self.seconds, self.began, self.over = after, seconds, None, False

    def __call__(self):
        if self.began is None and self.server.total_requests >= self.after:
            self.began = self.clock()
            self.begin()
        elif self.began is not None and not self.over and self.clock() > self.began + self.seconds:
            self.over = True
            self.end()


class Resolver:
    """socket.getaddrinfo that can be told to fail as it does where no name server answers."""

    def __init__(self):
        self.real, self.broken, self.failed = socket.getaddrinfo, False, 0

    def __call__(self, *words, **more):
        if self.broken:
            self.failed += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self.real(*words, **more)


@pytest.mark.parametrize("seconds", [5, 60, 600])
def test_names_that_do_not_resolve_for_a_while_cost_nothing_but_time(clock, monkeypatch, seconds):
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with FakeDatabricks(users=8, shape="small") as server:
        watch = Between(server, clock, partial(setattr, resolver, "broken", True),
                        partial(setattr, resolver, "broken", False), seconds=seconds)  # fmt: skip

        def on_tick():
            watch()
            if resolver.broken:  # connections that are open need no name
                drop_connections(server)

        results = scan_here(server, clock, on_tick=on_tick, host=f"http://localhost:{server.port}")
        assert assert_honest(server, results) == set()
    assert watch.over
    assert resolver.failed > 3


@pytest.mark.parametrize("kind", ["close", pytest.param("503", marks=soak)])
def test_a_service_that_stays_away_ends_the_command_and_resume_goes_on(server, login, kind):
    gone = threading.Thread(target=lambda: (until(lambda: len(saved_users()) >= 2), server.change(outage=kind)))
    gone.start()
    done = run_hasty(server, login, outage=2.0)
    gone.join()
    assert done.returncode == 2, done.stderr
    assert "no success for" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out.csv").exists()
    saved = saved_users()
    assert len(saved) >= 2
    server.change(outage=None)
    server.counts_reset()
    assert run_hasty(server, login, "--resume").returncode == 0
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server)


def test_a_service_that_stays_away_ends_a_parallel_scan(spark, hasty, monkeypatch):
    set_constants(monkeypatch, LONGEST_OUTAGE=1.5, CLUSTER_DELAY=0.0)
    with FakeDatabricks(users=100, shape="small", latency=0.1) as server:
        results, config = [], DatabricksConfig(server.url, server.settings.token, "test")
        at_it = partial(until, lambda: results and server.workers.total() > 20, 90)
        gone = threading.Thread(target=lambda: (at_it(), server.change(outage="close")))
        gone.start()
        with pytest.raises(InventoryError, match="no success for"):
            for result in process_user_batch_parallel(spark, server.user_names, config, 4):
                results.append(result)
        gone.join()
        assert len(results) < 100
        server.change(outage=None)
        for result in results:
            assert result.file_count == server.truth(result.username).file_count
            assert result.status in ("success", "empty")


@soak
@pytest.mark.parametrize("kind", ["close", "503"])
@pytest.mark.parametrize("minutes", [1, 5, 12])
def test_a_service_that_is_away_for_minutes_of_a_parallel_scan(spark, hasty, kind, minutes):
    """On a clock that runs thirty times as fast."""
    with FakeDatabricks(users=20, shape="small", latency=0.07) as server:
        config = DatabricksConfig(server.url, server.settings.token, "test")

        def clock():
            return 30 * time.monotonic()

        client = DatabricksClient(config, clock=clock, sleep=lambda seconds: time.sleep(seconds / 30))
        watch = Between(server, clock, partial(server.change, outage=kind), partial(server.change, outage=None),
                        after=100, seconds=60 * minutes)  # fmt: skip
        results = scan_there(spark, server, client=client, on_tick=watch)
        assert watch.over
        assert assert_honest(server, results) == set()


# Workers that break

HAUNTED = """
import os, signal, socket, sys
def haunt(event, words):
    if event == "socket.getaddrinfo" and os.path.exists({names!r}):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if event == "http.client.send" and os.path.exists({deadly!r}):
        with open({deadly!r}, "rb") as file:
            if file.read() in words[1]:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(haunt)
"""


@pytest.fixture
def haunted(connect_server, tmp_path):
    """A session, a file while which exists its workers resolve no name, and one with the request that kills them."""
    folder = tmp_path / "haunted"
    folder.mkdir()
    names, deadly = tmp_path / "names", tmp_path / "deadly"
    (folder / "sitecustomize.py").write_text(HAUNTED.format(names=str(names), deadly=str(deadly)), encoding="utf-8")
    with connect_server.workers(site=folder):
        session = connect_server.session()
        yield session, names, deadly
        session.stop()


@soak
def test_workers_that_resolve_no_name_for_a_while_and_a_directory_that_kills_them(haunted, hasty):
    """First the one, which this process does not notice; then the other, which it lists itself in the end."""
    session, names, deadly = haunted
    with FakeDatabricks(users=12, shape="small", latency=0.07) as server:
        watch = Between(server, time.monotonic, names.touch, names.unlink, seconds=3.0)
        server_at_localhost = DatabricksConfig(f"http://localhost:{server.port}", server.settings.token, "test")
        results = list(process_user_batch_parallel(session, server.user_names, server_at_localhost, 4, on_tick=watch))
        assert watch.began
        names.unlink(missing_ok=True)
        lost = assert_honest(server, results)
        assert bool(lost) == any(result.status in ("partial", "error") for result in results)
        path = next(path for api, path in server.requests if api == "dbfs" and path.count("/") == 4)
        deadly.write_bytes(f"dbfs/list?path={quote_plus(path)} ".encode())
        server.counts_reset()
        began = time.monotonic()
        results = scan_there(session, server)
        assert assert_honest(server, results) == set()
        assert server.requests["dbfs", path] == 1  # nobody but this process got as far as asking
        assert time.monotonic() - began < 60


# Killed


def kill_at_random_moments(server, login, kills, longest, generator, *words):
    """Runs and kills, each run going on where the last one was killed; a run that ends is followed by a new one.

    Returns how many of the kills came while results were saved, and how many runs ended.
    """
    saved, late, ended, killed = [], 0, 0, 0
    while killed < kills:
        with running(server, login, *WORDS, *words, "--resume") as process:
            if generator.random() < 0.8:
                process.stderr.readline()  # the interpreter has started
            try:
                _, err = process.communicate(timeout=generator.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                _, err = process.communicate()
        if process.returncode == 0:
            assert Path("out.csv").read_bytes() == true_csv(server)
            assert not Path(NAME).exists()
            ended, saved = ended + 1, []
        else:
            assert process.returncode == -signal.SIGKILL, err
            killed += 1
            saved = assert_saved(server, saved)
            late += bool(saved)
        for path in Path().glob("*.csv*"):
            path.unlink()
    return late, ended


def assert_saved(server, before):
    """What was saved before is still there, each user once and with the true numbers; returns what is there now."""
    if Path("out.csv").exists():  # the moment was after the end
        assert Path("out.csv").read_bytes() == true_csv(server)
        return lines_of_users() if Path(NAME).exists() else []
    lines = lines_of_users()
    assert lines[: len(before)] == before
    names = [json.loads(line)["username"] for line in lines]
    assert len(set(names)) == len(names)
    for name, line in zip(names, lines, strict=True):
        scanned = [json.loads(line)[name] for name in FILE_SYSTEMS]
        truth = server.truth(name)
        sums = [sum(totals[key] for totals in scanned) for key in ("files", "bytes")]
        assert sums == [truth.file_count, truth.total_size]
    return lines


def lines_of_users():
    data = Path(NAME).read_bytes() if Path(NAME).exists() else b""
    lines = [line.rstrip(b",") for line in data.split(b"\n") if line.startswith(b'{"username"')]
    return [line for line in lines if line.endswith(b"}}")]


@needs_posix
def test_killed_at_random_moments_no_user_is_lost_or_doubled(server, login):
    server.change(latency=0.01)
    late, _ = kill_at_random_moments(server, login, 6, 1.0, random.Random(3))
    assert late >= 2


@soak
@needs_posix
def test_killed_at_200_random_moments(server, login):
    server.change(latency=0.01)
    late, ended = kill_at_random_moments(server, login, 200, 1.2, random.Random(4))
    print(f"200 kills, {late} of them with users saved; {ended} runs ended")
    assert late > 50
    assert ended > 10


@soak
@needs_posix
def test_killed_at_random_moments_of_a_parallel_run(connect_server, login):
    """Fewer, because each run starts its own workers."""
    with FakeDatabricks(users=30, shape="small", latency=0.05) as server:
        write_users(server.user_names)
        late, ended = kill_at_random_moments(
            server, login, 30, 20.0, random.Random(5), "--spark-remote", connect_server.remote
        )
        print(f"30 kills, {late} of them with users saved; {ended} runs ended")
        assert late > 5


def strace(*injected):
    """The words before a command that spoil system calls on the checkpoint and the CSV, or any rename."""
    names = () if injected[0].startswith("rename") else (NAME, "out.csv")  # -P knows no target
    paths = [str(path) for name in names for path in (name, Path(name).absolute())]
    return ("strace", "-qq", "-o", "trace", *(word for path in paths for word in ("-P", path)),
            *(word for rule in injected for word in ("-e", f"inject={rule}")))  # fmt: skip


def run_under(prefix, server, login, *words):
    with running(server, login, *WORDS, *words, prefix=prefix) as process:
        _, err = process.communicate(timeout=30)
    Path("trace").unlink(missing_ok=True)
    return process.returncode, err


def run_spoiled(rule, server, login, *words):
    """Exit code, messages, and whether the rule was ever applied."""
    with running(server, login, *WORDS, *words, prefix=strace(rule)) as process:
        _, err = process.communicate(timeout=30)
    spoiled = "(INJECTED)" in Path("trace").read_text(encoding="utf-8", errors="replace")
    Path("trace").unlink()
    return process.returncode, err, spoiled


OPERATIONS = ("openat", "flock", "write", "ftruncate", "fsync", "read", "close", "unlink", "rename")


def resume_after(server, login, saved):
    """The rest of a run that was spoiled: nobody who was saved is scanned again, and the CSV is the truth."""
    server.counts_reset()
    code, err = run_under((), server, login, "--resume")
    assert code == 0, err
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
@needs_strace
@soak
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_before_any_operation_on_its_files(server, login, operation):
    """From the first to the last of that operation, of a first run and of a resumed one."""
    for words in ((), ("--resume",)):
        for number in range(1, 1000):
            Path("out.csv").unlink(missing_ok=True)
            if words:
                leave_unfinished(server, login, 3)
            saved = saved_users()
            code, err = run_under(strace(f"{operation}:signal=KILL:when={number}"), server, login, *words)
            if code == 0:
                Path(NAME).unlink(missing_ok=True)
                break
            assert code == -signal.SIGKILL, err
            if Path("out.csv").exists():
                assert Path("out.csv").read_bytes() == true_csv(server)
            else:
                assert saved_users()[: len(saved)] == saved
            resume_after(server, login, saved_users())
        print(f"{operation} {' '.join(words)}: killed before each of {number - 1}")
        assert number > 1 or operation == "read"


# Stopped

STOPPABLE = (
    sys.executable,
    "-c",
    "import os, signal, sys; signals = signal.SIGHUP, signal.SIGINT, signal.SIGTERM; "
    "[signal.signal(number, signal.SIG_DFL) for number in signals]; os.execvp(sys.argv[1], sys.argv[1:])",
)


@needs_posix
@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=soak)])
def test_terminated_at_random_moments_it_ends_at_once(server, login, kills):
    """From when the first line is said, so that the interpreter has started."""
    server.change(latency=0.02)
    generator, codes = random.Random(6), Counter()
    while sum(codes.values()) < kills:
        with running(server, login, prefix=STOPPABLE) as process:  # the tests may run under nohup
            first = process.stderr.readline()
            if generator.random() < 0.3:
                until(Path("out.csv").exists)  # the end, too
            time.sleep(generator.choice([0.0, 0.01, generator.uniform(0.0, 0.9)]))
            began = time.monotonic()
            process.send_signal(generator.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT]))
            _, err = process.communicate(timeout=20)
        assert first.startswith("Workspace")
        assert time.monotonic() - began < 2, err
        assert "Traceback" not in err
        assert "Error" not in err
        codes[process.returncode] += 1
        if not Path("out.csv").exists():
            assert process.returncode == 130
            code, err = run_under((), server, login, "--resume")
            assert code == 0, err
        assert Path("out.csv").read_bytes() == true_csv(server)
        Path("out.csv").unlink()
    assert set(codes) <= {0, 130}
    assert kills < 10 or min(codes[0], codes[130]) > kills / 10


@needs_posix
@pytest.mark.skipif(not shutil.which("setsid"), reason="setsid gives the process its terminal")
@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_terminal_that_is_closed(server, login, ignored):
    """With its bar drawn: the run ends as if interrupted; where hang-ups are ignored it goes on to its end."""
    import fcntl
    import pty
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    trap = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh") if ignored else ()
    environment = {**os.environ, **login(server), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["setsid", "-c", *STOPPABLE, *trap, sys.executable, str(ROOT / SCANNER), *WORDS]
    gate = hang_when(server, lambda: not ignored and len(saved_users()) >= 2)
    with subprocess.Popen(command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        drawn = b""
        while b" users" not in drawn:
            drawn += os.read(main, 65536)
        until(lambda: gate.hits >= 4 if not ignored else len(saved_users()) >= 2)
        os.close(main)
        code = process.wait(20)
    assert code == (0 if ignored else 130)
    server.change(faults=[])
    if not ignored:
        assert len(saved_users()) >= 2
        resume_after(server, login, saved_users())
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
@pytest.mark.parametrize("reader", ["head -1", pytest.param("true", marks=soak)])
def test_a_reader_of_stdout_that_goes_away(login, reader):
    """The checkpoint stays while the CSV did not get through: 3,000 rows are more than a pipe holds."""
    with FakeDatabricks(users=3000, shape="none", file_systems=("dbfs",)) as server:
        write_users(server.user_names)
        script = f"'{sys.executable}' '{ROOT / SCANNER}' --users-file users.txt --dbfs-only --threads 32"
        environment = {**os.environ, **login(server), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            ["bash", "-c", f"{script} | {reader}; echo ${{PIPESTATUS[0]}} >&2"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr.endswith("\n2\n"), done.stderr
        assert "stdout cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert "--resume" in done.stderr
        server.counts_reset()
        again = subprocess.run(
            ["bash", "-c", f"{script} --resume"], env=environment, capture_output=True, timeout=60, check=False
        )
        assert again.returncode == 0, again
        assert again.stdout.decode() == true_csv(server).decode()
        assert not [path for _, path in server.requests if str(path).startswith("/Users/")]


@needs_posix
def test_a_stdout_that_was_closed_is_found_out_before_the_scan(server, login):
    with running(server, login, "--users-file", "users.txt", prefix=("sh", "-c", 'exec "$@" >&-', "sh")) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "stdout" in err
    assert "--output" in err
    assert not [path for _, path in server.requests if str(path).startswith("/Users/")]
    code, err = run_under(("sh", "-c", 'exec "$@" >&- 2>&-', "sh"), server, login)
    assert (code, err) == (0, "")
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_log_that_cannot_be_written_stops_nothing(server, login):
    code, _ = run_under(("sh", "-c", 'exec "$@" 2>/dev/full', "sh"), server, login)
    assert code == 0
    assert Path("out.csv").read_bytes() == true_csv(server)


# Disks


@needs_posix
@pytest.mark.parametrize("words", [("-o", "disk/out.csv"), ("-o", "out.csv", "--details", "disk/details.jsonl")],
                         ids=["csv", "details"])  # fmt: skip
def test_a_disk_that_is_full_when_the_output_is_written(command, login, small_disk, words):
    """The checkpoint is elsewhere and keeps all; after room was made nothing is scanned again."""
    small_disk("size=8k")
    with FakeDatabricks(users=300, shape="empty") as server:
        write_users(server.user_names)
        words = ("--users-file", "users.txt", *words)
        done = command(SCANNER, *words, env=login(server))
        assert done.code == 2, done
        assert f"{words[-1]} cannot be written: No space left on device" in done.err
        assert "300 of 300 users saved in" in done.err
        assert "--resume" in done.err
        assert "Traceback" not in done.err
        assert os.listdir("disk") == []
        assert not Path("out.csv").exists()
        small_disk("size=10m")
        server.counts_reset()
        done = command(SCANNER, *words, "--resume", env=login(server))
        assert done.code == 0, done
        assert not [path for _, path in server.requests if str(path).startswith("/Users/")]
        assert Path(words[3]).read_bytes() == true_csv(server)


@needs_posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_stdout_that_is_full(server, login):
    words = ("--users-file", "users.txt")
    with running(server, login, *words, prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh")) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2, err
    assert "stdout cannot be written" in err
    assert "10 of 10 users saved in" in err
    resume_after(server, login, server.user_names)


@needs_posix
@pytest.mark.parametrize("length", [0, 1, 137, 300, 2000])
def test_a_file_size_limit_cuts_the_checkpoint_anywhere(server, login, length):
    """In its first line, too; when the limit is gone the run goes on."""
    prefix = (
        sys.executable,
        "-c",
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, "
        f"({length}, {length})); os.execv(sys.argv[1], sys.argv[1:])",
    )
    code, err = run_under(prefix, server, login)
    assert code == 2, err
    assert "File too large" in err
    assert "--checkpoint" in err
    saved = saved_users()
    assert not Path("out.csv").exists()
    code, err = run_under(prefix, server, login, "--resume")
    assert code == 2, err
    assert saved_users()[: len(saved)] == saved
    resume_after(server, login, saved_users())


ERRORS = {"openat": "EACCES", "write": "ENOSPC", "ftruncate": "EIO", "fsync": "EIO", "unlink": "EACCES",
          "rename": "EACCES", "read": "EIO"}  # fmt: skip


@needs_posix
@needs_strace
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("operation", [name if name == "unlink" else pytest.param(name, marks=soak)
                                       for name in ERRORS])  # fmt: skip
def test_an_operation_on_its_files_that_fails_is_said_and_costs_nothing(server, login, operation, resume):
    for number in range(1, 1000):
        Path("out.csv").unlink(missing_ok=True)
        if resume:
            leave_unfinished(server, login, 3)
        saved = saved_users()
        rule = f"{operation}:error={ERRORS[operation]}:when={number}"
        code, err, spoiled = run_spoiled(rule, server, login, *resume)
        assert code in (0, 2), err
        assert "Traceback" not in err
        assert "--debug" not in err, err
        if code == 2:
            assert any(word in err for word in ("--checkpoint", "--output", "out.csv", "delete")), err
            assert not saved or saved_users()[: len(saved)] == saved
            resume_after(server, login, saved_users())
        else:
            assert Path("out.csv").read_bytes() == true_csv(server)
            Path(NAME).unlink(missing_ok=True)
        if not spoiled:
            break
    print(f"{operation} {' '.join(resume)}: each of {number - 1} failed")
    assert number > 1


@needs_posix
@pytest.mark.skipif(not shutil.which("chattr"), reason="root ignores permissions, but not chattr +i")
def test_a_folder_that_is_closed_in_mid_run(server, command, login, tmp_path):
    """The CSV is elsewhere: it is written, and the checkpoint that cannot be removed is named."""
    folder = tmp_path / "closed"
    folder.mkdir()
    gate = hang_when(server, lambda: len(saved_users("closed/c.json")) >= 2)
    try:
        with running(server, login, *WORDS, "--checkpoint", "closed/c.json") as process:
            until(lambda: gate.hits >= 4)
            if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
                pytest.skip("chattr +i does not work here")
            server.change(faults=[])
            drop_connections(server)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "closed/c.json cannot be removed" in err
        assert Path("out.csv").read_bytes() == true_csv(server)
    finally:
        subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)


# Clocks


SHIFTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    static long calls;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += (calls++ % 2 ? -1 : 1) * 86400 * 30;
    return result;
}
"""


@needs_posix
@pytest.mark.skipif(not shutil.which("cc") or sys.platform != "linux", reason="a C compiler shifts the clock")
def test_a_clock_that_is_set_back_and_forth_changes_nothing(server, login, tmp_path):
    """By a month at every look, in the process itself; with waits of retries and for Retry-After."""
    (tmp_path / "shifted.c").write_text(SHIFTED, encoding="utf-8")
    library = tmp_path / "shifted.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "shifted.c", "-ldl"], check=True)
    server.change(faults=[Fault("500", times=2, api="dbfs"), Fault("503", times=2, api="workspace",
                                                                   headers={"Retry-After": "1"})])  # fmt: skip
    began = time.monotonic()
    with running(server, login, LD_PRELOAD=str(library)) as process:
        until(lambda: len(saved_users()) >= 2)
        process.kill()
        process.communicate()
    saved = saved_users()
    with running(server, login, *WORDS, "--resume", LD_PRELOAD=str(library)) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"to scan: {10 - len(saved)} user" in err
    assert time.monotonic() - began < 15
    assert Path("out.csv").read_bytes() == true_csv(server)


# Side by side, and what people do to files meanwhile


@needs_posix
def test_of_many_runs_at_once_one_goes_on_and_none_loses_anything(server, login):
    server.change(latency=0.02)
    with ExitStack() as stack:
        runs = [stack.enter_context(running(server, login, *WORDS, "--resume")) for _ in range(5)]
        ends = [(process.communicate(timeout=30)[1], process.returncode) for process in runs]
    assert {code for _, code in ends} <= {0, 2}
    assert [code for _, code in ends].count(0) >= 1
    assert all("another run is using" in err for err, code in ends if code == 2)
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


@needs_posix
def test_what_took_the_place_of_a_checkpoint_in_mid_run_is_not_removed(server, login):
    gate = hang_when(server, lambda: len(saved_users()) >= 2)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        os.unlink(NAME)
        Path(NAME).write_text("mine")
        server.change(faults=[])
        drop_connections(server)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert Path(NAME).read_text() == "mine"


@needs_posix
def test_a_users_file_that_changes_in_mid_run_is_that_of_the_start(server, login):
    gate = hang_when(server, lambda: len(saved_users()) >= 2)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        write_users(["nobody@example.com"])
        server.change(faults=[])
        drop_connections(server)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert Path("out.csv").read_bytes() == true_csv(server)


@soak
@pytest.mark.parametrize("kind", ["users", "one line", "header", "zeros"])
def test_a_checkpoint_of_200_megabytes(server, command, login, kind):
    size = 200 * 10**6
    users = [make_result(number) for number in range(4)]
    write_users([result.username for result in users])
    head, line, *lines = write_checkpoint(Path(NAME), users, server.url).split(b"\n")
    if kind == "users":
        more = [line.replace(b"user0@", b"old%d@" % number) for number in range(size // len(line))]
        Path(NAME).write_bytes(b"\n".join([head, *more, line, *lines]))
    elif kind == "one line":
        Path(NAME).write_bytes(b"\n".join([head, line + b"x" * size, *lines]))
    else:
        Path(NAME).write_bytes((b"\0" if kind == "zeros" else b"x") * size)
    began = time.monotonic()
    done = command(SCANNER, *WORDS, "--resume", env=login(server), timeout=120)
    print(f"{kind}: exit {done.code} after {time.monotonic() - began:.1f} s")
    assert done.code == (0 if kind == "users" else 2), done
    assert "Traceback" not in done.err


# A long haul


def figures_of(pid):
    """Resident memory in MB, open files, threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])


@soak
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads what Linux tells about processes")
def test_a_long_haul_takes_no_more_memory_files_or_threads_in_the_end_than_at_the_start(login):
    """50,000 users with 40 directories each, 2 million requests, unless INVENTORY_SOAK_USERS says otherwise."""
    users = int(os.environ.get("INVENTORY_SOAK_USERS", "50000"))
    words = ["--users", users, "--shape", "bench", "--directories", 40, "--files-per-directory", 2, "--no-count-paths"]
    words += ["--truth", Path("truth").absolute()]
    command = [sys.executable, "-m", "tests.fake", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as fake:
        try:
            url, token = fake.stdout.readline().split()
            write_users(map(make_user_name, range(users)))
            began, seen = time.monotonic(), []
            with open("log", "w", encoding="utf-8") as log:
                process = subprocess.Popen(
                    [sys.executable, str(ROOT / SCANNER), "--users-file", "users.txt", "-o", "out.csv"], stderr=log,
                    env={**os.environ, "DATABRICKS_HOST": url, "DATABRICKS_TOKEN": token})  # fmt: skip
            while process.poll() is None:
                time.sleep(1)
                if process.poll() is None:
                    seen.append(figures_of(process.pid))
        finally:
            fake.terminate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, Path("log").read_text(encoding="utf-8")
    rows = [row.split(",")[:3] for row in Path("out.csv").read_text(encoding="utf-8").splitlines()]
    assert rows == [row.split(",") for row in Path("truth").read_text(encoding="utf-8").splitlines()]
    early, late = seen[len(seen) // 10], seen[-max(len(seen) // 10, 2)]
    print(f"{users:,} users in {seconds:.0f} s; memory, files, threads after a tenth {early}, nine tenths {late}, "
          f"most {tuple(map(max, zip(*seen, strict=True)))}")  # fmt: skip
    assert late[0] - early[0] < 10 + users / 1000, "memory"  # some 500 bytes of each user: its place in the checkpoint
    assert late[1] <= early[1] + 2, "files"
    assert late[2] <= early[2] + 1, "threads"
