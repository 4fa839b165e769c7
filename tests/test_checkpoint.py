"""The checkpoint: what a run leaves behind however it ends, and what the next one makes of it.

Processes are stopped by what they have done (requests, users saved), never after some time.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import databricks_user_list
from databricks_user_files_simple import open_checkpoint
from databricks_user_list import InventoryError
from tests.fake import FakeDatabricks, Fault, Folder, World
from tests.helpers import (
    HEADER,
    NAME,
    WORDS,
    asked_for,
    hang_when,
    make_result,
    needs_posix,
    read_file_rows,
    rows_of,
    running,
    saved_users,
    set_constants,
    true_csv,
    until,
    write_checkpoint,
    write_users,
)
from tests.strategies import RESULTS

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace makes chosen system calls fail")


def output():
    return Path("out.csv").read_bytes()


def refused(scan, server, *words):
    """What a run says that is refused before it asks for anything."""
    done = scan(server, *words)
    assert (done.code, server.total_requests) == (2, 0), done
    return done.err


def leave_checkpoint(scan, server, *words):
    """A run in which one user is an error, and the last line that it says; no fault is left."""
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[2]}")])
    done = scan(server, *(words or WORDS))
    assert done.code == 1, done
    server.change(faults=[])
    return done.err.splitlines()[-1]


# What is saved


@settings(max_examples=40, deadline=None, derandomize=True)
@given(results=st.lists(RESULTS, min_size=1, max_size=4))
def test_what_was_saved_is_loaded_and_the_last_line_of_a_user_wins(tmp_path_factory, results):
    path = tmp_path_factory.mktemp("checkpoint") / "c.json"
    last = {result.username: result for result in results}
    with open_checkpoint(path, HEADER, resume=False) as checkpoint:
        assert json.loads(path.read_bytes())["results"] == []
        for number, result in enumerate(results, 1):
            checkpoint.save(result)
            saved = json.loads(path.read_bytes())["results"]
            assert (len(saved), saved[-1]["username"]) == (number, result.username)
    with open_checkpoint(path, HEADER, resume=True) as again:
        assert {name: again.load(name) for name in again.lines} == last
        assert {name: again.done(name) for name in last} == {
            name: result.status in ("success", "empty") for name, result in last.items()
        }


def test_the_format_is_that_of_the_specification(tmp_path):
    lines = write_checkpoint(tmp_path / "c.json", [make_result(1), make_result(2, files=0)]).decode().split("\n")
    header = json.loads(lines[0] + "]}")
    assert re.fullmatch("[0-9a-f]{16}", header.pop("run"))
    assert header == {"version": 2, "program": databricks_user_list.VERSION, **HEADER, "results": []}
    assert lines[0].endswith('"results": [')
    start = '{"username": "user1@example.com", "scanned_at": "2026-11-23T04:00:00Z", "status": "success"'
    assert lines[1].startswith(start)
    assert (lines[1][-1], lines[2][-1], lines[3:]) == (",", "}", ["]}", ""])


def test_it_is_synced_to_disk_at_most_once_a_second(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    with open_checkpoint(tmp_path / "c.json", HEADER, resume=False) as checkpoint:
        monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), fsync(number)))
        started = time.monotonic()
        for number in range(500):
            checkpoint.save(make_result(number))
        assert 1 <= len(synced) <= 1 + time.monotonic() - started


# Torn tails, and what is no checkpoint


# A save is one write over the old tail: what is on the disk if only its first bytes got there, and other ends
WHOLE = [b",]}\n", b"", b"\n]", b"\n\n]}\n \n"]
AFTER_LOSS_OF_POWER = [end + bytes(5000) for end in (b"\n", b"\n]}\n", b",\n{", b",\n{\n", b",]}\n")]
TORN = [b",\n{\n", b",\n{", b",\n\xff", *AFTER_LOSS_OF_POWER]
THIRD = b",\n" + json.dumps(make_result(3).as_dict()).encode()


def test_an_end_that_is_cut_or_torn_costs_no_result_before_it_and_is_told(tmp_path, caplog):
    path, results = tmp_path / "c.json", [make_result(number) for number in (1, 2, 3)]
    start = write_checkpoint(path, results[:2]).removesuffix(b"\n]}\n")
    cut = [(THIRD + b"\n]}\n")[:length] for length in range(len(THIRD) + 4)]
    for end in [*WHOLE, *TORN, *cut]:
        path.write_bytes(start + end)
        caplog.clear()
        with open_checkpoint(path, HEADER, resume=True) as checkpoint:
            there = results[: 2 + end.startswith(THIRD)]
            assert [checkpoint.load(name) for name in checkpoint.lines] == there, end
            is_told = end in TORN or end not in WHOLE and 2 < len(end) < len(THIRD)
            assert caplog.text.count("its user is scanned again") == is_told, end
            checkpoint.save(make_result(4))
        saved = [*(result.username for result in there), "user4@example.com"]
        assert [at["username"] for at in json.loads(path.read_bytes())["results"]] == saved, end


GOOD_LINE = json.dumps(make_result(9).as_dict()).encode() + b","
BAD_LINES = [
    b"garbage,", GOOD_LINE[:50], b"[],", b'{"status": "success"},', b"]}", GOOD_LINE * 2, b'{"username": "\xff"},',
    b"[" * 100_000, GOOD_LINE.replace(b'"files": 1,', b'"files": 1.5,', 1),
    GOOD_LINE.replace(b'"dbfs": {', b'"dbfs": [], "x": {', 1),
    GOOD_LINE.replace(b"[]", b'[{"path": "/x", "error": "500"}]', 1),  # its status is not that of its counts
    GOOD_LINE.replace(b'{"username"', b'{"note": "mine", "username"', 1),  # of a later version, maybe
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: repr(bad[:9]))
def test_a_bad_line_before_the_last_is_named_and_nothing_changed(tmp_path, bad):
    path = tmp_path / "c.json"
    lines = write_checkpoint(path, map(make_result, range(4))).split(b"\n")
    lines[2] = bad
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InventoryError, match="line 3: not a user's result"), open_checkpoint(path, HEADER, True):
        pass
    assert path.read_bytes() == b"\n".join(lines)


NO_CHECKPOINTS = [
    b"my notes\n", b"{}\n", b"null", b"\x00\xff" * 40, b"\n", b'{"version": 1, "works', b'{"version": ' + b"[" * 90_000,
    b'{"version": 2, "run": "1f", "workspace_url": "u", "options": 7, "results": [\n]}\n',
    json.dumps({"version": 3, "run": "1f", **HEADER, "results": []})[:-2].encode(),
    json.dumps({"version": 2, "run": "1f", **HEADER, "results": []}, indent=2).encode(),
]  # fmt: skip


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_file_that_is_no_checkpoint_is_left_alone(server, scan, resume):
    for content in NO_CHECKPOINTS:
        Path("notes").write_bytes(content)
        err = refused(scan, server, *WORDS, "--checkpoint", "notes", *resume)
        is_other_form = content.startswith(b"{\n")
        assert ("put in another form (by jq?); " if is_other_form else "notes, line 1: not a checkpoint") in err
        assert Path("notes").read_bytes() == content


@needs_posix
def test_only_a_regular_file_can_be_a_checkpoint(server, scan):
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for path in ("/dev/null", "folder", "pipe", "link"):
        before = os.lstat(path)
        assert f"{path} is not a regular file" in refused(scan, server, *WORDS, "--checkpoint", path)
        assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)


# Whose checkpoint it is


@needs_posix
def test_of_two_runs_at_once_the_second_is_refused_also_through_a_link(server, scan, login):
    Path("kept").mkdir()
    Path(NAME).symlink_to("kept/c.json")
    gate = hang_when(server, saved_users)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        data = Path("kept/c.json").read_bytes()
        for words in (("--checkpoint", NAME), ("--resume", "--checkpoint", "kept/c.json")):
            assert f"another run is using {words[-1]}" in refused(scan, server, *WORDS, *words)
        assert Path("kept/c.json").read_bytes() == data
        process.kill()
        process.wait()
    leave_checkpoint(scan, server)  # a new one: the old one is moved aside where it is
    assert len(list(Path("kept").glob("*.json"))) == 2
    assert scan(server, *WORDS, "--resume").code == 0  # which removes the checkpoint, and not the link
    assert (os.readlink(NAME), Path("kept/c.json").exists()) == ("kept/c.json", False)


@needs_posix
def test_a_child_that_lives_on_does_not_keep_the_lock(tmp_path):
    """As one that a host program has forked during the scan: it inherits the file."""
    with open_checkpoint(tmp_path / "c.json", HEADER, resume=False):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with open_checkpoint(tmp_path / "c.json", HEADER, resume=True) as again:
            assert again.lines == {}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_on_windows_a_byte_behind_any_end_is_locked_and_given_back(tmp_path, monkeypatch):
    """By msvcrt, at one place; a file that is open there has its name, whatever its inodes are."""
    places = []
    fake = SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0)
    fake.locking = lambda number, mode, _: places.append((mode, os.lseek(number, 0, os.SEEK_CUR)))
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    set_constants(monkeypatch, ON_WINDOWS=True)
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with open_checkpoint(tmp_path / "c.json", HEADER, resume=False) as checkpoint:
        checkpoint.save(make_result(1))
    assert [mode for mode, _ in places] == [2, 2, 0, 0]  # checkpoint and journal
    assert len({at for _, at in places}) == 1 < places[0][1] / 2**31
    assert saved_users(tmp_path / "c.json") == ["user1@example.com"]


@needs_posix
@pytest.mark.parametrize("other", [None, "another file", "another at each look"])
def test_a_file_that_is_moved_before_it_is_locked_is_not_written(server, scan, monkeypatch, other):
    import fcntl

    flock = fcntl.flock

    def move_first(file, operation):
        if other != "another at each look":
            monkeypatch.setattr(fcntl, "flock", flock)
        os.rename(NAME, "moved")
        if other:
            Path(NAME).touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", move_first)
    if other == "another at each look":
        assert f"{NAME} is another file at each look" in refused(scan, server, *WORDS)
    else:
        leave_checkpoint(scan, server)
        assert (Path("moved").read_bytes(), len(saved_users())) == (b"", 10)


@needs_posix
def test_what_took_the_place_of_a_checkpoint_in_mid_run_is_not_removed(server, scan):
    def take_its_place():
        if len(saved_users()) >= 2:
            os.unlink(NAME)
            Path(NAME).write_text("mine")

    server.change(faults=[Fault("500", when=take_its_place)])  # which never fails
    assert scan(server, *WORDS).code == 0
    assert output() == true_csv(server)
    assert Path(NAME).read_text() == "mine"


def test_named_users_are_saved_only_where_a_checkpoint_is_named(server, scan, monkeypatch):
    """Whatever a run with a users file has left there."""
    leave_checkpoint(scan, server)
    data, files = Path(NAME).read_bytes(), set(os.listdir())
    names, words = server.user_names[:3], ("-o", "one.csv", "--checkpoint", "c.json")
    assert "heckpoint" not in leave_checkpoint(scan, server, *names, "-o", "one.csv")
    assert "--checkpoint" in refused(scan, server, *names, "--resume")
    assert (Path(NAME).read_bytes(), set(os.listdir())) == (data, files | {"one.csv"})
    said = leave_checkpoint(scan, server, *names, *words)
    assert said == "The checkpoint c.json stays: --resume scans 1 user again"
    assert scan(server, *names, *words, "--resume").code == 0
    assert [asked_for(server, name) > 0 for name in names] == [False, False, True]
    assert Path("one.csv").read_bytes() == true_csv(server, names)
    assert not Path("c.json").exists()
    monkeypatch.setattr(tempfile, "tempdir", "/missing")  # which such a run does not need
    assert scan(server, *names, "-o", "one.csv").code == 0


# What --resume takes up, and what not


def test_a_checkpoint_of_another_workspace_or_other_file_systems_is_refused_and_both_are_named(server, scan):
    leave_checkpoint(scan, server, *WORDS, "--dbfs-only")
    data = Path(NAME).read_bytes()
    cases = [((), server.url, "dbfs and workspace"), (("--workspace-only",), server.url, "workspace"),
             (("--dbfs-only",), "https://other.net", "dbfs")]  # fmt: skip
    for words, of, now in cases:
        Path(NAME).write_bytes(data.replace(server.url.encode(), of.encode()))
        err = refused(scan, server, *WORDS, "--resume", *words)
        assert f"{NAME} is of {of} with dbfs, this run of {server.url} with {now}:" in err
    Path(NAME).write_bytes(data.replace(databricks_user_list.VERSION.encode(), b"0.0.1"))  # which is not compared
    assert scan(server, *WORDS, "--resume", "--dbfs-only").code == 0


def test_resume_scans_what_is_not_complete_and_who_is_new_and_leaves_out_who_left(server, scan):
    gone, broken, lost = (server.user_names[number] for number in (0, 2, 5))
    first = next(api for api in ("dbfs", "workspace") if getattr(server.truth(broken), api).directories)
    server.change(faults=[Fault("403", path=f"/Users/{lost}"), Fault("403", api=first, path=f"/Users/{broken}")])
    done = scan(server, *WORDS, "--resume")
    assert done.code == 1
    assert f"no checkpoint {Path(NAME).absolute()} yet: starting from the beginning" in done.err
    assert done.err.splitlines()[-1] == f"The checkpoint {NAME} stays: --resume scans 2 users again"
    server.change(faults=[])
    names = ["new@example.com", *reversed(server.user_names[1:])]
    server.add_user("new@example.com")
    write_users(names)
    done = scan(server, *WORDS, "--resume")
    assert done.code == 0
    assert re.search(rf"7 .*{datetime.now(timezone.utc):%Y-%m-%d}", done.err), done
    assert "it has 1 user whom this command did not name" in done.err
    assert {name for name in server.user_names if asked_for(server, name)} == {"new@example.com", broken, lost}
    assert (output(), gone in saved_users()) == (true_csv(server, names), True)
    write_users([*names, gone])
    assert scan(server, *WORDS, "--resume").code == 0
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


def test_a_checkpoint_is_moved_aside_when_the_workspace_has_answered_and_never_over_another(server, scan):
    """Also that of an earlier version, with which nothing can go on."""
    stem, contents = ".checkpoint_progress.2023-11-14T22-13-20", []
    for version in (b"2", b"2", b"1"):
        leave_checkpoint(scan, server)
        contents.append(Path(NAME).read_bytes().replace(b'"version": 2', b'"version": ' + version))
        Path(NAME).write_bytes(contents[-1])
        os.utime(NAME, (1_700_000_000, 1_700_000_000))
    err = refused(scan, server, *WORDS, "--resume")
    assert f"{NAME} was made by an earlier version: run it without --resume" in err
    files = set(os.listdir())
    server.change(faults=[Fault("403")])
    done = scan(server, *WORDS)
    assert (done.code, Path(NAME).read_bytes(), set(os.listdir()), "saved" in done.err) == (
        2,
        contents[-1],
        files,
        False,
    )
    modes = [os.stat(name).st_mode & 0o777 for name in files if name.startswith(".")]
    assert modes == [0o600] * 6, "three checkpoints, three journals, for their owner alone"
    server.change(faults=[])
    done = scan(server, *WORDS)
    assert (done.code, output(), f"{stem}-3.json" in done.err) == (0, true_csv(server), True)
    asides = {path.name: path.read_bytes() for path in Path().glob(".checkpoint_progress.2*")}
    assert asides == dict(zip([f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"], contents, strict=True))
    assert scan(server, *WORDS, "--resume", "--checkpoint", f"{stem}-2.json").code == 0
    assert not Path(f"{stem}-2.json").exists()


def test_with_all_homes_one_that_is_gone_keeps_no_checkpoint(scan):
    world = World()
    for name in ("denied", "gone", "here"):
        world.add_user(name, Folder({"f": 1}, denied=name == "denied"))
    with FakeDatabricks(world) as server:
        words = ("--all-homes", "-o", "out.csv")
        assert scan(server, *words).code == 1
        del world.explicit["dbfs"]["/Users/gone"]
        world.denied.clear()
        done = scan(server, *words, "--resume")
    assert done.code == 0, done
    assert [row["username"] for row in rows_of()] == ["denied", "here"]
    assert not Path(NAME).exists()


# Disk full, folders that cannot be written


@needs_posix
@pytest.mark.parametrize(("size", "checkpoint", "files", "says"), [
    ("28k", "disk/c.json", None, "nothing can be kept here (No space left"),
    ("32k", "disk/c.json", "files.csv", "nothing can be kept here (No space left"),
    ("8k", "c.json", "disk/f.csv.gz", "disk/f.csv.gz cannot be written: No space left"),
], ids=["journal", "journal with rows", "gzipped"])  # fmt: skip
def test_where_the_disk_is_full_nothing_saved_is_lost(scan, small_disk, size, checkpoint, files, says):
    small_disk(f"size={size}")
    words = (*WORDS, "--checkpoint", checkpoint, *(("--files", files) if files else ()))
    with FakeDatabricks(users=20, shape="small") as server:
        write_users(server.user_names)
        done = scan(server, *words)
        assert (done.code, says in done.err, Path("out.csv").exists()) == (2, True, "written" in says), done
        assert not [path for path in os.listdir("disk") if ".csv" in path]
        saved = saved_users(checkpoint)
        assert len(saved) > 2
        assert scan(server, *words, "--resume").code == 2
        assert saved_users(checkpoint)[: len(saved)] == saved
        small_disk("size=10m")
        assert scan(server, *words, "--resume").code == 0
        assert [asked_for(server, name) for name in saved] == [0] * len(saved)
        assert output() == true_csv(server)
        assert not files or read_file_rows(files) == server.world.file_rows()


@needs_posix
def test_a_folder_that_is_full_or_read_only_or_missing_is_found_out_before_the_scan(server, scan, small_disk):
    small_disk("size=16k")
    Path("disk/other").write_bytes(b"x" * 16_384)
    reason = "No space left on device"
    for path in ("disk/c.json", "missing/c.json", "disk/c.json"):
        err = refused(scan, server, *WORDS, "--checkpoint", path)
        assert f"{path}: nothing can be kept here ({reason})" in err
        small_disk("ro")
        reason = "No such file or directory" if path.startswith("disk") else "Read-only file system"


@needs_strace
@pytest.mark.parametrize(("rule", "code", "message"), [
    # As in /Volumes and /dbfs: what is written behind the end of a file is accepted, what goes over something not
    ("write:error=EOPNOTSUPP:when=2", 2, f"{NAME}: nothing can be kept here (Operation not supported)"),
    ("unlink:error=EACCES", 0, f"{NAME} cannot be removed (Permission denied); nobody needs it any more"),
])  # fmt: skip
def test_what_its_folder_does_not_let_be_done_is_told(server, login, rule, code, message):
    places = ("-P", NAME, "-P", str(Path(NAME).absolute()))
    prefix = ("strace", "-qq", "-o", "trace", *places, "-e", f"inject={rule}")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace makes no system calls fail here")
    with running(server, login, *WORDS, prefix=prefix) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, server.total_requests > 0) == (code, code == 0), err
    assert message in err
    assert Path("out.csv").exists() == (code == 0)
    assert Path(NAME).read_bytes() == b"" or not code  # half a header would be refused by the next run
