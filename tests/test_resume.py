"""Ended at any moment, in any way, a run goes on where it was: what was in flight is lost, nothing else."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake import FakeDatabricks, Fault, Folder, World
from tests.helpers import NAME, ROOT, listings, needs_posix, read_file_rows, running, true_csv, until, write_users

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


def end_often(server, login, kills, words, prefix, generator):
    """Runs that are ended at random moments after their first request."""
    for number in range(kills):
        before = server.total_requests
        with running(server, login, *words, prefix=prefix) as process:
            until(lambda before=before, process=process: process.poll() is not None or server.total_requests > before)
            try:
                process.communicate(timeout=generator.uniform(0.0, 0.8))
            except subprocess.TimeoutExpired:
                process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                _, err = process.communicate(timeout=20)
                assert prefix or "Traceback" not in err
        assert not Path("out.csv").exists(), f"it ended before the kill of number {number}"


@needs_posix
@pytest.mark.soak
@pytest.mark.parametrize("prefix", [(), (sys.executable, "-c", WITH_WORKERS)], ids=["alone", "with workers"])
@pytest.mark.parametrize("more", [(), ("--files", "files.csv")], ids=["rows", "files"])
@pytest.mark.parametrize("small", [30, 0])
def test_ended_at_25_random_moments(login, small, more, prefix):
    world = giant_world(3000, small)
    with FakeDatabricks(world, latency=0.02) as server:
        write_users(server.user_names)
        words = (*WORDS, *more)
        end_often(server, login, 25, words, prefix, random.Random(small + len(more)))
        with running(server, login, *words, prefix=prefix) as process:
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert Path("out.csv").read_bytes() == true_csv(server)
        if more:
            assert read_file_rows() == world.file_rows()
        asked = sum(listings(server).values())
        directories = sum(
            row.dbfs.directories + row.workspace.directories for row in map(server.truth, server.user_names)
        )
        print(f"{asked / directories:.3f} times the directories")
        assert asked <= 1.15 * directories + 25 * len(world.usernames)
    left = {name for name in os.listdir() if not name.startswith("tmp")}
    assert left == {"users.txt", "out.csv", "home", *more[1:]}


@pytest.mark.parametrize("more", [(), ("--files", "files.csv")], ids=["rows", "files"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.soak), 41])
def test_a_journal_that_is_cut_or_damaged_at_any_byte(scan, more, step):
    """Right rows come of it, and of the whole one what it has is not asked for again."""
    world = World()
    world.add_user("ann", Folder({"f": 3, "d": Folder({"g": 4, "e": Folder({"h": 5}), "last": Folder()})}), Folder())
    world.add_user("bob", Folder({"f": 5}))
    words = ("--users-file", "users.txt", "-o", "out.csv", "--threads", "1", *more)
    with FakeDatabricks(world) as server:
        write_users(server.user_names)
        server.change(faults=[Fault("401", path="/Users/ann/d/e")])
        assert scan(server, *words).code == 2
        server.change(faults=[])
        [journal] = Path().glob(".journal-*")
        data, checkpoint = journal.read_bytes(), Path(NAME).read_bytes()
        for at in range(0, len(data), step):
            for damaged in (data[:at], data[:at] + b"\0" + data[at + 1 :], data[:at] + b"7" + data[at + 1 :]):
                journal.write_bytes(damaged)
                Path(NAME).write_bytes(checkpoint)
                done = scan(server, *words, "--resume", "--quiet")
                assert (done.code, Path("out.csv").read_bytes()) == (0, true_csv(server)), (at, done)
                assert not more or read_file_rows() == world.file_rows(), at
        journal.write_bytes(data)
        Path(NAME).write_bytes(checkpoint)
        done = scan(server, *words, "--resume")
        assert "1 user in progress, " in done.err, done
        assert set(listings(server)) & {("dbfs", "/Users/ann"), ("dbfs", "/Users/ann/d")} == set()
