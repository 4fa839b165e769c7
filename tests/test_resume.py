"""Ended at any moment, in any way, a run goes on where it was: what was in flight is lost, nothing else."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fake import FakeDatabricks, Fault, Folder, World
from tests.helpers import (
    NAME,
    ROOT,
    SCANNER,
    asked_for,
    hang_when,
    listings,
    needs_posix,
    read_file_rows,
    rows_of,
    run_and_kill,
    running,
    saved_users,
    set_constants,
    true_csv,
    until,
    write_users,
)

WITH_WORKERS = f"""
import pathlib, sys, tempfile
sys.path.insert(0, {str(ROOT)!r})
import databricks_user_files_simple as scanner
from tests.workers import Workers
scanner.CLUSTER_DELAY = 0.0
sys.exit(scanner.user_files(sys.argv[3:], spark=Workers(pathlib.Path(tempfile.mkdtemp(dir=".")), 2)))
"""
WORDS = ("--users-file", "users.txt", "-o", "out.csv", "--threads", "4", "--resume")


def giant_world(directories, small):
    """One user with so many directories, and so many with few."""
    names = ["giant@example.com", *(f"user{number}@example.com" for number in range(small))]
    return World(names, shape="small", shapes={0: "bench"}, directories=directories, files_per_directory=2)


def goes_to_its_end(server, login, words, most=0, prefix=()):
    """The last of some runs: its rows are right, and all asked for 1.15 times the directories and `most` at most."""
    with running(server, login, *words, prefix=prefix) as process:
        _, err = process.communicate(timeout=300)
    assert (process.returncode, Path("out.csv").read_bytes()) == (0, true_csv(server)), err
    assert "--files" not in words or read_file_rows() == server.world.file_rows()
    left = {name for name in os.listdir() if not name.startswith("tmp")}
    assert left == {"users.txt", "out.csv", "home", *words[len(WORDS) + 1 :]}
    truths = map(server.truth, server.user_names)
    directories = sum(truth.dbfs.directories + truth.workspace.directories for truth in truths)
    asked = sum(listings(server).values())
    print(f"{asked / directories:.3f} times the directories")
    assert asked <= 1.15 * directories + most
    return err


# Killed and interrupted


@needs_posix
@pytest.mark.parametrize("more", [(), ("--files", "files.csv")], ids=["rows", "files"])
def test_killed_in_a_giant_it_goes_on(login, more):
    """Twice; what was listed is not asked for again, but for what was in flight."""
    with FakeDatabricks(giant_world(120, 2), latency=0.004) as server:
        write_users(server.user_names)
        for requests in (50, 50):
            last = server.total_requests + requests
            run_and_kill(server, login, lambda last=last: server.total_requests > last, *WORDS, *more)
        err = goes_to_its_end(server, login, (*WORDS, *more))
    assert re.search(r"kept from the checkpoint: .*\d users? in progress, \d+ directories listed; to scan: ", err), err


@needs_posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_it_ends_at_once_and_says_how_to_go_on(server, scan, login, name):
    gate = hang_when(server, lambda: len(saved_users()) >= 2)
    with running(server, login, *WORDS) as process:
        until(lambda: gate.hits >= 4)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=20)  # what hangs would last a minute
    assert process.returncode == 130, err
    assert "Traceback" not in err
    saved = saved_users()
    error, last_line = err.splitlines()[-2:]
    assert error == "interrupted"
    told = (
        rf"{len(saved)} of 10 users saved in {re.escape(NAME)}(, \d+ users? in progress, \d+ director(y|ies) listed)?"
    )
    assert re.fullmatch(f"{told}; the same command with --resume goes on", last_line)
    assert not Path("out.csv").exists()
    assert len(json.loads(Path(NAME).read_bytes())["results"]) == len(saved) >= 2
    server.change(faults=[])
    assert scan(server, *WORDS).code == 0
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_a_hangup_that_is_ignored_stays_ignored(server, login):
    with running(server, login, *WORDS, prefix=("sh", "-c", 'trap "" HUP; exec "$@"', "sh")) as process:
        until(saved_users)
        server.change(latency=0.03)
        assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_an_interrupt_ends_a_run_whose_messages_nobody_reads(server, login):
    """As those that go to a pager, or to a log whose reader has stopped."""
    gate = hang_when(server, saved_users)
    os.mkfifo("messages")
    reader, filler = os.open("messages", os.O_RDONLY | os.O_NONBLOCK), os.open("messages", os.O_WRONLY | os.O_NONBLOCK)
    with open("messages", "wb") as messages, suppress(BlockingIOError):
        process = subprocess.Popen([sys.executable, "-B", ROOT / SCANNER, *WORDS], env={**os.environ, **login(server)},
                                   stderr=messages)  # fmt: skip
        until(lambda: process.poll() is not None or gate.hits)
        while True:
            os.write(filler, b"x")
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(10) == 130
    finally:
        process.kill()
        os.close(filler)
        os.close(reader)


@needs_posix
@pytest.mark.soak
@pytest.mark.parametrize("prefix", [(), (sys.executable, "-c", WITH_WORKERS)], ids=["alone", "with workers"])
@pytest.mark.parametrize("more", [(), ("--files", "files.csv")], ids=["rows", "files"])
@pytest.mark.parametrize("small", [30, 0])
def test_ended_at_25_random_moments(login, small, more, prefix):
    with FakeDatabricks(giant_world(3000, small), latency=0.02) as server:
        write_users(server.user_names)
        words, generator = (*WORDS, *more), random.Random(small + len(more))
        for number in range(25):
            with running(server, login, *words, prefix=prefix) as process:
                process.stderr.readline()  # else one might still be on its way into Python
                before = server.total_requests
                until(lambda p=process, before=before: p.poll() is not None or server.total_requests > before)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(generator.uniform(0.0, 0.8))
                process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                _, err = process.communicate(timeout=20)
            assert not Path("out.csv").exists(), f"it ended before the kill of number {number}"
            assert prefix or "Traceback" not in err
        goes_to_its_end(server, login, words, 25 * len(server.user_names), prefix)


# Stopped at a directory, as by a login that is refused there


@pytest.fixture
def world():
    world = World()
    world.add_user("ann", Folder({"f": 3, "d": Folder({"g": 4, "e": Folder({"h": 5}), "last": Folder()})}), Folder())
    world.add_user("bob", Folder({"f": 5}), Folder())
    return world


@pytest.fixture
def stopped(world, scan, request):
    """A server, and the words of a run that has ended when it asked for ann's dbfs:/Users/ann/d/e."""
    words = ("--users-file", "users.txt", "-o", "out.csv", "--threads", "1", *getattr(request, "param", ()))
    with FakeDatabricks(world) as server:
        write_users(server.user_names)
        server.change(faults=[Fault("403")])
        assert scan(server, *words).code == 2  # one that ends before the first answer leaves nothing
        assert set(os.listdir()) == {"users.txt", "home"}
        server.change(faults=[Fault("401", path="/Users/ann/d/e")])
        done = scan(server, *words)
        assert done.code == 2, done
        assert "0 of 2 users saved in .checkpoint_progress.json, 1 user in progress, 4 directories listed; " in done.err
        server.change(faults=[])
        yield server, words


def goes_on(scan, server, *words):
    """The messages of a run with --resume whose rows are right."""
    done = scan(server, *words, "--resume")
    assert (done.code, Path("out.csv").read_bytes()) == (0, true_csv(server)), done
    return done.err


@pytest.mark.parametrize(("change", "why"), [
    ("", ""), ("home", "whose homes are others by now"), ("week", "begun more than a week ago"),
    ("files", "with no rows for --files from before"),
])  # fmt: skip
def test_a_user_in_progress_goes_on_or_begins_anew_with_a_reason(scan, stopped, monkeypatch, change, why):
    server, words = stopped
    if change == "home":
        server.world.add_folder("dbfs", "/Users/Ann", Folder({"other": 1}))
        server.world.explicit_homes["dbfs"].discard("ann")
        server.world.home_of["ann"] = "Ann"
    elif change == "week":
        set_constants(monkeypatch, LONGEST_PROGRESS=-1.0)
    err = goes_on(scan, server, *words, *(("--files", "files.csv") if change == "files" else ()))
    assert (f"1 user in progress from the beginning, {why}: the first is ann" in err) == bool(why), err
    assert ("1 user in progress, 4 directories listed; to scan: 2 users" in err) != bool(why), err
    assert (("dbfs", "/Users/ann/d") in listings(server)) == (change in ("week", "files"))


def test_a_user_in_progress_who_is_not_asked_for_keeps_the_checkpoint(scan, stopped):
    """As does a run that ends before that user goes on."""
    server, words = stopped
    write_users(["bob"])
    assert scan(server, *words, "--resume").err.splitlines()[-1].endswith("1 user whom this command did not name")
    write_users(["ann", "bob"])
    server.change(faults=[Fault("403")])
    assert scan(server, *words, "--resume").code == 2
    server.change(faults=[])
    assert "1 user in progress, 4 directories listed" in goes_on(scan, server, *words)
    assert ("dbfs", "/Users/ann/d") not in listings(server)
    assert not Path(NAME).exists()


def test_what_a_second_listing_found_is_not_listed_or_told_twice(scan, world):
    """A directory that was renamed beside a new file, and the run that ends below its new name."""
    below = Folder({"f": 1, "g": Folder({"h": 1})})
    world.add_user("cy", Folder({"a": below, "top": 1}))
    words = ("bob", "cy", "-o", "out.csv", "--checkpoint", NAME, "--threads", "1")
    with FakeDatabricks(world) as server:
        rename, refuse = Fault("404", path="/Users/cy/a"), Fault("401", path="/Users/cy/b/g")
        rename.when = lambda: world.add_folder("dbfs", "/Users/cy", Folder({"b": below, "top": 1, "new": 1})) is None
        server.change(faults=[rename, refuse])
        assert f"1 of 2 users saved in {NAME}, 1 user in progress, " in scan(server, *words).err
        server.change(faults=[rename])
        done = scan(server, *words, "--resume")
        assert (done.code, rows_of()[1]["file_count"]) == (1, "3"), done
        assert rows_of()[1]["error"] == "dbfs:/Users/cy: changed while it was scanned: has 2 instead of 1 file"
        assert ("dbfs", "/Users/cy/b") not in listings(server)


def test_what_is_renamed_back_before_it_goes_on_is_not_counted_twice_in_silence(scan, world):
    below = Folder({"f": 1, "g": Folder({"h": 1})})
    world.add_user("cy", Folder({"a": below}))
    words = ("cy", "-o", "out.csv", "--checkpoint", NAME, "--threads", "1")
    with FakeDatabricks(world) as server:
        rename = Fault("404", path="/Users/cy/a")
        rename.when = lambda: world.add_folder("dbfs", "/Users/cy", Folder({"b": below})) is None
        server.change(faults=[rename, Fault("401", path="/Users/cy/b/g")])
        assert "1 user in progress, 2 directories listed" in scan(server, *words).err
        world.add_folder("dbfs", "/Users/cy", Folder({"a": below}))
        server.change(faults=[Fault("404", path=path) for path in ("/Users/cy/b", "/Users/cy/b/g")])
        done = scan(server, *words, "--resume")
        assert rows_of()[0]["error"].endswith("b, which was counted, is gone, and a is new"), done


def test_what_saw_a_part_is_scanned_again_for_an_admin(scan, stopped):
    """A row, and a user in progress."""
    server, words = stopped
    server.change(admin=False, faults=[Fault("401", path="/Users/bob")])
    done = scan(server, *words, "--resume", "--details", "details.jsonl")
    assert "1 user in progress from the beginning, begun by another kind of login: the first is ann" in done.err, done
    assert '"username": "ann", ' in Path(NAME).read_text()
    assert '"admin": false, ' in Path(NAME).read_text()
    server.change(faults=[Fault("403", path="/Users/bob")])
    for admin in (False, True):
        server.change(admin=admin)
        assert scan(server, *words, "--resume").code == 1
        assert (("dbfs", "/Users/ann") in listings(server)) == admin
    assert '"admin": false, ' not in Path(NAME).read_text().splitlines()[-2]


@pytest.mark.parametrize("stopped", [(), ("--files", "files.csv")], ids=["rows", "files"], indirect=True)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.soak), 151])
def test_a_journal_that_is_cut_or_damaged_at_any_byte(scan, stopped, step):
    """Right rows come of it, and of the whole one what it has is not asked for again."""
    server, words = stopped
    [journal] = Path().glob(".journal-*")
    data, checkpoint = journal.read_bytes(), Path(NAME).read_bytes()
    for at in range(0, len(data), step):
        for damaged in (data[:at], data[:at] + b"\0" + data[at + 1 :], data[:at] + b"7" + data[at + 1 :]):
            journal.write_bytes(damaged)
            Path(NAME).write_bytes(checkpoint)
            goes_on(scan, server, *words, "--quiet")
            assert "--files" not in words or read_file_rows() == server.world.file_rows(), at
    journal.write_bytes(data)
    Path(NAME).write_bytes(checkpoint)
    assert "1 user in progress, " in goes_on(scan, server, *words)
    assert set(listings(server)) & {("dbfs", "/Users/ann"), ("dbfs", "/Users/ann/d")} == set()
