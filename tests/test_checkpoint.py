"""The checkpoint: what a run leaves behind however it ends, and what the next one makes of it (SPEC section 6).

Processes are stopped by what they have done (requests, users saved), never after some time.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import databricks_user_files_simple as inventory
import databricks_user_list
from databricks_user_files_simple import open_checkpoint
from tests.fake import FakeDatabricks, Fault, dbfs_file
from tests.helpers import (
    HEADER,
    NAME,
    SCANNER,
    WORDS,
    asked_for,
    hang_when,
    leave_unfinished,
    make_result,
    needs_posix,
    run_and_kill,
    running,
    saved_users,
    true_csv,
    until,
    write_checkpoint,
    write_users,
)
from tests.strategies import RESULTS


@pytest.fixture
def server():
    """Ten users with about twenty directories each, answers after 4 ms; users.txt names them all."""
    with FakeDatabricks(users=10, shape="small", latency=0.004) as server:
        write_users(server.user_names)
        yield server


@pytest.fixture
def scan(server, monkeypatch, capsys):
    """scan(*words): the command in this process; its exit code and what it says."""
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)

    def run(*words):
        server.counts_reset()
        code = inventory.main([*words])
        return code, capsys.readouterr().err

    return run


def asides():
    """Contents of the checkpoints that were moved aside, by file name."""
    names = [name for name in os.listdir() if name.startswith(".checkpoint_progress.2")]
    return {name: Path(name).read_bytes() for name in names}


# What is saved


@settings(max_examples=60, deadline=None, derandomize=True)
@given(results=st.lists(RESULTS, min_size=1, max_size=4))
def test_what_was_saved_is_loaded_and_the_last_line_of_a_user_wins(tmp_path_factory, results):
    path = tmp_path_factory.mktemp("checkpoint") / "c.json"
    last = {}
    with open_checkpoint(path, HEADER, resume=False) as checkpoint:
        assert json.loads(path.read_bytes())["results"] == []
        for number, result in enumerate(results, 1):
            checkpoint.save(result)
            last[result.username] = result
            saved = json.loads(path.read_bytes())["results"]
            assert (len(saved), saved[-1]["username"]) == (number, result.username)
    with open_checkpoint(path, HEADER, resume=True) as again:
        assert {name: again.load(name) for name in again.lines} == last
        assert [again.done(name) for name in last] == [
            result.status in ("success", "empty") for result in last.values()
        ]


def test_the_format_is_that_of_the_specification(tmp_path):
    lines = write_checkpoint(tmp_path / "c.json", [make_result(1), make_result(2, files=0)]).decode().split("\n")
    header = json.loads(lines[0] + "]}")
    assert re.fullmatch("[0-9a-f]{16}", header.pop("run"))
    assert header == {"version": 1, "program": databricks_user_list.VERSION, **HEADER, "results": []}
    assert lines[0].endswith('"results": [')
    assert lines[1].startswith(
        '{"username": "user1@example.com", "scanned_at": "2026-11-23T04:00:00Z", "status": "success"'
    )
    assert (lines[1][-1], lines[2][-1], lines[3:]) == (",", "}", ["]}", ""])


def process_io():
    """Bytes this process has read and written so far."""
    figures = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(figures["rchar"]), int(figures["wchar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts the bytes that Linux says were written")
def test_a_save_costs_the_same_however_many_there_are(tmp_path):
    costs = {}
    with open_checkpoint(tmp_path / "c.json", HEADER, resume=False) as checkpoint:
        for number in range(100_000, 103_000):
            before = process_io()
            checkpoint.save(make_result(number))
            costs[number] = [after - at for after, at in zip(process_io(), before, strict=True)]
    first, last = costs[100_010], costs[102_999]
    assert first[1] > 100
    assert [abs(a - b) <= 20 for a, b in zip(first, last, strict=True)] == [True, True]


def test_it_is_synced_to_disk_at_most_once_a_second(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    with open_checkpoint(tmp_path / "c.json", HEADER, resume=False) as checkpoint:
        monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), fsync(number)))
        started = time.monotonic()
        for number in range(500):
            checkpoint.save(make_result(number))
        assert 1 <= len(synced) <= 1 + time.monotonic() - started


def test_the_file_of_a_running_scan_is_a_valid_document(server, login):
    """Read while the scan runs: whatever stays the same for a moment is valid."""
    sizes, broken, over = set(), [], threading.Event()

    def watch():
        while not over.is_set():
            data = Path(NAME).read_bytes() if os.path.exists(NAME) else b""
            time.sleep(0.005)
            try:
                if data and os.path.exists(NAME) and Path(NAME).read_bytes() == data:
                    sizes.add(len(json.loads(data)["results"]))
            except FileNotFoundError:
                continue
            except ValueError:
                broken.append(data)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with running(server, login) as process:
        process.communicate()
    over.set()
    watcher.join()
    assert process.returncode == 0
    assert broken == []
    assert len(sizes) > 3


# Killed and interrupted


@needs_posix
@pytest.mark.parametrize(
    ("unit", "number"), [("requests", 1), ("requests", 20), ("requests", 80), ("users", 1), ("users", 7)]
)
def test_killed_at_any_moment_nothing_saved_is_lost(server, command, login, unit, number):
    def reached():
        return (server.total_requests if unit == "requests" else len(saved_users())) >= number

    run_and_kill(server, login, reached)
    first = saved_users()
    assert not Path("out.csv").exists()
    server.counts_reset()
    run_and_kill(server, login, lambda: len(saved_users()) > len(first), *WORDS, "--resume")
    assert [asked_for(server, name) for name in first] == [0] * len(first)
    second = saved_users()
    assert second[: len(first)] == first
    server.counts_reset()
    last = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert last.code == 0, last
    assert [asked_for(server, name) for name in second] == [0] * len(second)
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


def stop_while_all_hangs(server, process, number):
    """Send the signal when two users are saved and every further request hangs; how long the process took."""
    gate = hang_when(server, lambda: len(saved_users()) >= 2)
    until(lambda: gate.hits >= 4)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return time.monotonic() - began, out, err


@needs_posix
@pytest.mark.parametrize(("name", "words"), [
    ("SIGINT", WORDS), ("SIGTERM", WORDS), ("SIGHUP", ("--all-homes", *WORDS[2:])),
])  # fmt: skip
def test_interrupted_it_ends_at_once_and_says_how_to_go_on(server, command, login, name, words):
    names = server.user_names
    if "--all-homes" in words:
        truths = map(server.truth, sorted(names))
        names = [truth.username for truth in truths if truth.dbfs_home or truth.workspace_home]
    with running(server, login, *words) as process:
        seconds, _, err = stop_while_all_hangs(server, process, getattr(signal, name))
    assert (process.returncode, seconds < 2) == (130, True), err
    assert "Traceback" not in err
    saved = saved_users()
    last_line = f"{len(saved)} of {len(names)} users saved in {NAME}; the same command with --resume goes on"
    assert err.splitlines()[-2:] == ["error: interrupted", last_line]
    assert not Path("out.csv").exists()
    assert len(json.loads(Path(NAME).read_bytes())["results"]) == len(saved) >= 2
    server.change(faults=[])
    server.counts_reset()
    assert command(SCANNER, *words, "--resume", env=login(server)).code == 0
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server, names)


@needs_posix
def test_interrupted_before_the_first_answer_it_ends_at_once_and_leaves_nothing(server, login):
    gate = hang_when(server, lambda: True)
    with running(server, login) as process:
        until(lambda: gate.hits)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < 2
    assert not Path(NAME).exists()


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


# Torn tails, and what is no checkpoint


def test_cut_anywhere_in_the_last_line_all_users_before_it_are_there(tmp_path, caplog):
    path = tmp_path / "c.json"
    results = [make_result(number) for number in range(3)]
    data = write_checkpoint(path, results)
    torn = 0
    for length in range(data.rindex(b'\n{"username"') + 1, len(data)):
        path.write_bytes(data[:length])
        caplog.clear()
        with open_checkpoint(path, HEADER, resume=True) as checkpoint:
            assert [checkpoint.load(result.username) for result in results[:2]] == results[:2], length
            last = checkpoint.done(results[2].username)
            assert last or "its user is scanned again" in caplog.text or data[length - 1 : length] == b"\n"
            assert not last or checkpoint.load(results[2].username) == results[2], length
            checkpoint.save(make_result(3))
            names = [at["username"] for at in json.loads(path.read_bytes())["results"]]
            assert names == [result.username for result in results[: 2 + last]] + ["user3@example.com"], length
        torn += not last
    assert torn == len(data.split(b"\n")[3])


# A save is one write over the old tail: what is on the disk if only its first bytes got there, and other ends
@pytest.mark.parametrize("end", [b",]}\n", b",\n}\n", b",\n{\n", b"", b",\n{", b"\n]", b"\n" + b"\0" * 9, b",\n\xff"])
def test_an_end_that_is_torn_costs_no_result(tmp_path, end):
    path = tmp_path / "c.json"
    path.write_bytes(write_checkpoint(path, [make_result(1), make_result(2)]).removesuffix(b"\n]}\n") + end)
    with open_checkpoint(path, HEADER, resume=True) as checkpoint:
        assert list(checkpoint.lines) == ["user1@example.com", "user2@example.com"]
    assert len(json.loads(path.read_bytes())["results"]) == 2


GOOD_LINE = json.dumps(make_result(9).as_dict()).encode() + b","
BAD_LINES = {
    "garbage": b"garbage,", "half a line": GOOD_LINE[:50], "nothing": b"", "a list": b"[],", "a number": b"1,",
    "no user": b'{"status": "success"},', "no status": GOOD_LINE.replace(b'"success"', b"null"),
    "unknown status": GOOD_LINE.replace(b'"success"', b'"fine"'), "two in one": GOOD_LINE * 2,
    "not UTF-8": b'{"username": "\xff"},', "spaces": b"  " + GOOD_LINE, "deep nesting": b"[" * 100_000,
    "text for a count": GOOD_LINE.replace(b'"files": 1,', b'"files": "1",', 1),
    "a float": GOOD_LINE.replace(b'"files": 1,', b'"files": 1.0,', 1),
    "true": GOOD_LINE.replace(b'"files": 1,', b'"files": true,', 1),
    "too many digits": GOOD_LINE.replace(b'"files": 1,', b'"files": ' + b"9" * 5000 + b",", 1),
    "infinity": GOOD_LINE.replace(b'"bytes": 10,', b'"bytes": Infinity,', 1),
    "null for a list": GOOD_LINE.replace(b'"failures": []', b'"failures": null', 1),
    "a list for a file system": GOOD_LINE.replace(b'"dbfs": {', b'"dbfs": [], "x": {', 1),
    "a status not that of its counts": GOOD_LINE.replace(b"[]", b'[{"path": "/x", "error": "500"}]', 1),
    "a key more": GOOD_LINE.replace(b'{"username"', b'{"note": "mine", "username"', 1),
    "a key more inside": GOOD_LINE.replace(b'"files": 1,', b'"files": 1, "more": 2,', 1),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_before_the_last_is_named_and_nothing_changed(server, scan, bad):
    lines = write_checkpoint(Path(NAME), map(make_result, range(4)), server.url).split(b"\n")
    lines[2] = BAD_LINES[bad]
    Path(NAME).write_bytes(b"\n".join(lines))
    code, err = scan(*WORDS, "--resume")
    assert (code, server.total_requests) == (2, 0), err
    assert f"{NAME}, line 3: not a user's result" in err
    assert Path(NAME).read_bytes() == b"\n".join(lines)


NO_CHECKPOINTS = {
    "text": b"my notes\n", "list": b"[1, 2]\n", "empty object": b"{}\n", "null": b"null", "number": b"1",
    "object": b'{"a": 1}\n', "other version": json.dumps({"version": 2, **HEADER, "results": []})[:-2].encode(),
    "csv": b"username,file_count\nann,1\n", "binary": b"\x00\xff" * 40, "half a header": b'{"version": 1, "works',
    "space": b"\n", "no file systems": b'{"version": 1, "workspace_url": "u", "options": {}, "results": [\n]}\n',
}  # fmt: skip


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_left_alone(server, scan, content, resume):
    Path("notes").write_bytes(NO_CHECKPOINTS[content])
    code, err = scan(*WORDS, "--checkpoint", "notes", *resume)
    assert (code, server.total_requests) == (2, 0), err
    assert "notes, line 1: not a checkpoint" in err
    assert Path("notes").read_bytes() == NO_CHECKPOINTS[content]


@needs_posix
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to a pipe"])
def test_only_a_regular_file_can_be_a_checkpoint(server, scan, kind, resume):
    path = Path("/dev/null" if kind == "device" else "place")
    if kind == "folder":
        path.mkdir()
    elif kind != "device":
        os.mkfifo("place" if kind == "pipe" else "pipe")
    if kind.startswith("link"):
        path.symlink_to("pipe")
    before = path.lstat()
    code, err = scan(*WORDS, "--checkpoint", str(path), *resume)
    assert (code, server.total_requests) == (2, 0), err
    assert f"{path} is not a regular file" in err
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


# Whose checkpoint it is


@needs_posix
def test_a_link_stays_and_the_file_behind_it_is_the_checkpoint(server, command, scan, login):
    """The lock is on that file; a file beside it that others might take for one is nobody's business."""
    Path("kept").mkdir()
    Path(NAME).symlink_to("kept/c.json")
    Path(f"{NAME}.lock").write_text("mine")
    gate = hang_when(server, saved_users)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        assert len(saved_users("kept/c.json")) >= 1
        for path in (NAME, "kept/c.json"):
            second = command(SCANNER, *WORDS, "--resume", "--checkpoint", path, env=login(server))
            assert second.code == 2, second
            assert f"another run is using {path}" in second.err
        process.kill()
        process.wait()
    server.change(faults=[])
    saved = saved_users()
    assert scan(*WORDS)[0] == 0  # a new one: the old one is moved aside where it is
    assert [saved_users(path) for path in Path("kept").iterdir()] == [saved]
    assert (os.readlink(NAME), Path(f"{NAME}.lock").read_text()) == ("kept/c.json", "mine")


@needs_posix
def test_of_two_runs_at_once_the_second_is_refused_until_the_first_is_gone(server, command, scan, login):
    gate = hang_when(server, saved_users)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        data = Path(NAME).read_bytes()
        server.counts_reset()
        for words in ((), ("--resume",)):
            second = command(SCANNER, *WORDS, *words, env=login(server))
            assert (second.code, server.total_requests) == (2, 0), second
            assert "another run" in second.err
        assert Path(NAME).read_bytes() == data
        assert asides() == {}
        process.kill()
        process.wait()
    server.change(faults=[])
    assert scan(*WORDS, "--resume")[0] == 0
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
@pytest.mark.parametrize("other", [None, "another file"])
def test_a_file_that_is_moved_before_it_is_locked_is_not_written(server, scan, monkeypatch, other):
    import fcntl

    flock = fcntl.flock

    def move_first(file, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        os.rename(NAME, "moved")
        if other:
            Path(NAME).touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", move_first)
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[2]}")])
    assert scan(*WORDS)[0] == 1
    assert Path("moved").read_bytes() == b""
    assert len(saved_users()) == 10


@needs_posix
@pytest.mark.parametrize("saved", ["named users", "a users file"])
def test_a_run_of_named_users_keeps_no_checkpoint_and_touches_none(server, scan, login, saved):
    """Whatever a run with a users file, or with --checkpoint, has left there."""
    name = server.user_names[-1]
    server.change(faults=[Fault("403", api="dbfs", path=f"/Users/{name}")])
    assert scan(*(WORDS if saved == "a users file" else (name, "--checkpoint", NAME)))[0] == 1
    data = Path(NAME).read_bytes()
    files = set(os.listdir())
    code, err = scan(name, "-o", "one.csv")
    assert code == 1
    assert "heckpoint" not in err
    assert "--resume" not in err
    code, err = scan(name, "--resume")
    assert (code, server.total_requests) == (2, 0)
    assert "--checkpoint" in err
    assert Path(NAME).read_bytes() == data
    assert set(os.listdir()) == files | {"one.csv"}


def test_named_users_are_saved_where_a_checkpoint_is_named(server, scan):
    names, words = server.user_names[:3], ("-o", "out.csv", "--checkpoint", "c.json")
    server.change(faults=[Fault("403", path=f"/Users/{names[1]}")])
    code, err = scan(*names, *words)
    assert code == 1
    assert err.splitlines()[-1] == "The checkpoint c.json stays: --resume scans 1 user again"
    server.change(faults=[])
    code, err = scan(*names[:2], *words, "--resume")  # without the third
    assert code == 0
    assert err.splitlines()[-1] == "The checkpoint c.json stays: it has 1 user that this run was not asked for"
    assert (asked_for(server, names[0]), asked_for(server, names[1]) > 0) == (0, True)
    assert scan(*names, *words, "--resume")[0] == 0
    assert asked_for(server, names[0]) == asked_for(server, names[1]) == 0
    assert Path("out.csv").read_bytes() == true_csv(server, names)
    assert not Path("c.json").exists()


# What --resume takes up, and what not


def test_a_checkpoint_of_another_workspace_or_other_file_systems_is_refused_and_both_are_named(server, scan):
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[2]}")])
    assert scan(*WORDS, "--dbfs-only")[0] == 1
    data = Path(NAME).read_bytes()
    for words, now in (((), "dbfs and workspace"), (("--workspace-only",), "workspace")):
        code, err = scan(*WORDS, "--resume", *words)
        assert (code, server.total_requests) == (2, 0)
        assert f"{NAME} is of {server.url} with dbfs, this run of {server.url} with {now}:" in err
    Path(NAME).write_bytes(data.replace(server.url.encode(), b"https://other.net"))
    code, err = scan(*WORDS, "--resume", "--dbfs-only")
    assert (code, server.total_requests) == (2, 0)
    assert f"{NAME} is of https://other.net with dbfs, this run of {server.url} with dbfs:" in err
    Path(NAME).write_bytes(data.replace(databricks_user_list.VERSION.encode(), b"0.0.1"))  # which is not compared
    server.change(faults=[])
    assert scan(*WORDS, "--resume", "--dbfs-only")[0] == 0


def test_without_a_checkpoint_resume_starts_from_the_beginning_and_says_so(server, scan):
    code, err = scan(*WORDS, "--resume")
    assert code == 0
    assert "from the beginning" in err
    assert Path("out.csv").read_bytes() == true_csv(server)


def test_resume_of_a_run_that_ended_scans_again_what_was_partial_or_an_error(server, scan):
    broken, lost = server.user_names[2], server.user_names[5]
    file_systems = [api for api in ("dbfs", "workspace") if getattr(server.truth(broken), f"{api}_home")]
    server.change(
        faults=[Fault("403", path=f"/Users/{lost}"), Fault("403", api=file_systems[0], path=f"/Users/{broken}")]
    )
    code, err = scan(*WORDS)
    assert code == 1
    assert err.splitlines()[-1] == f"The checkpoint {NAME} stays: --resume scans 2 users again"
    assert len(json.loads(Path(NAME).read_bytes())["results"]) == 10
    server.change(faults=[])
    code, err = scan(*WORDS, "--resume")
    assert code == 0
    assert re.search(rf"8 .*{datetime.now(timezone.utc):%Y-%m-%d}", err), err
    assert {name for name in server.user_names if asked_for(server, name)} == {broken, lost}
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


def test_resume_scans_again_whose_home_is_another_by_now(server, scan):
    lost, late = server.user_names[5], "late@example.com"
    write_users([*server.user_names, late])
    server.change(faults=[Fault("403", path=f"/Users/{lost}")])
    assert scan(*WORDS)[0] == 1
    server.change(faults=[])
    server.add_tree("dbfs", {f"/Users/{late}": [dbfs_file(f"/Users/{late}/f", 1)]})
    assert scan(*WORDS, "--resume")[0] == 0
    assert f"{late},1,1,0.0000,success,dbfs," in Path("out.csv").read_text(encoding="utf-8").splitlines()


def test_without_resume_a_checkpoint_is_moved_aside_and_never_over_another(server, scan):
    contents = []
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[2]}")])
    for _ in range(3):
        code, err = scan(*WORDS)
        assert code == 1
        os.utime(NAME, (1_700_000_000, 1_700_000_000))
        contents.append(Path(NAME).read_bytes())
    server.change(faults=[])
    code, err = scan(*WORDS)
    assert code == 0
    assert Path("out.csv").read_bytes() == true_csv(server)
    stem = ".checkpoint_progress.2023-11-14T22-13-20"
    assert asides() == dict(zip([f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"], contents, strict=True))
    assert f"{stem}-3.json" in err
    assert scan(*WORDS, "--resume", "--checkpoint", f"{stem}-3.json")[0] == 0
    assert len(asides()) == 2


@needs_posix
def test_users_who_left_the_file_are_left_out_and_new_ones_scanned(server, scan, login):
    leave_unfinished(server, login, 3)
    gone, before = saved_users()[0], saved_users()[1:]
    server.add_user("new@example.com")
    names = ["new@example.com", *(name for name in reversed(server.user_names[:-1]) if name != gone)]
    write_users(names)
    code, err = scan(*WORDS, "--resume")
    assert code == 0
    assert "it has 1 user that this run was not asked for" in err
    assert gone in saved_users()
    assert Path("out.csv").read_bytes() == true_csv(server, names)
    assert [asked_for(server, name) for name in [gone, *before]] == [0] * (len(before) + 1)


def test_users_from_before_are_in_the_csv_as_they_were(server, scan):
    """What is in the checkpoint is not scanned again, even where it has changed since."""
    server.add_user("ann@example.com", "none")
    write_users([kept := "ann@example.com", server.user_names[0]])
    server.add_tree("dbfs", {f"/Users/{kept}": [dbfs_file(f"/Users/{kept}/f", 5)]})
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[0]}")])
    assert scan(*WORDS)[0] == 1
    server.add_tree("dbfs", {f"/Users/{kept}": []})
    assert scan(*WORDS, "--resume")[0] == 1
    assert Path("out.csv").read_text(encoding="utf-8").splitlines()[1] == f"{kept},1,5,0.0000,success,dbfs,"


# Disk full, folders that cannot be written


@needs_posix
def test_where_the_disk_is_full_nothing_saved_is_lost(command, login, small_disk):
    small_disk("size=32k")
    words = (*WORDS, "--checkpoint", "disk/c.json")
    with FakeDatabricks(users=200, shape="empty") as server:
        write_users(server.user_names)
        done = command(SCANNER, *words, env=login(server))
        assert done.code == 2, done
        assert "disk/c.json" in done.err
        assert "Traceback" not in done.err
        assert not Path("out.csv").exists()
        saved = saved_users("disk/c.json")
        assert 20 < len(saved) < 200
        full = command(SCANNER, *words, "--resume", env=login(server))
        assert full.code == 2, full
        assert saved_users("disk/c.json")[: len(saved)] == saved
        small_disk("size=10m")
        server.counts_reset()
        done = command(SCANNER, *words, "--resume", env=login(server))
        assert done.code == 0, done
        assert [asked_for(server, name) for name in saved] == [0] * len(saved)
        assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_a_disk_that_is_full_from_the_start_is_found_out_before_the_scan(server, scan, small_disk):
    small_disk("size=16k")
    Path("disk/other").write_bytes(b"x" * 16_384)
    words = (*WORDS, "--checkpoint", "disk/c.json")
    code, err = scan(*words)
    assert (code, server.total_requests) == (2, 0), err
    assert "disk/c.json: no checkpoint can be kept here (No space left on device)" in err
    small_disk("size=10m")
    assert scan(*words)[0] == 0


@needs_posix
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_folder_that_cannot_be_written_is_found_out_before_the_scan(server, scan, small_disk, resume):
    small_disk("ro")
    for path in ("disk/c.json", "missing/c.json"):
        code, err = scan(*WORDS, "--checkpoint", path, *resume)
        assert (code, server.total_requests) == (2, 0), err
        assert f"{path}: no checkpoint can be kept here" in err


@needs_posix
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_folder_where_files_are_not_written_in_place_is_found_out_before_the_scan(server, login, scan, resume):
    """As in /Volumes and /dbfs: what is written behind the end of a file is accepted, what goes over something not."""
    if resume:
        leave_unfinished(server, login)
    server.counts_reset()
    paths = [word for path in (NAME, Path(NAME).absolute()) for word in ("-P", path)]
    fault = f"inject=write:error=EOPNOTSUPP:when={1 if resume else 2}"
    strace = ("strace", "-qq", "-o", "trace", *paths, "-e", fault)
    try:
        subprocess.run([*strace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace makes chosen system calls fail")
    with running(server, login, *WORDS, *resume, prefix=strace) as process:
        _, err = process.communicate(timeout=20)
    assert (process.returncode, server.total_requests) == (2, 0), err
    assert f"{NAME}: no checkpoint can be kept here (Operation not supported)" in err
