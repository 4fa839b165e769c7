"""The checkpoint: what a run leaves behind however it ends, and what the next one makes of it.

Commands are real processes. They are stopped by what they have done (requests, users saved), never after some time.
"""

import json
import os
import re
import signal
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from databricks_user_files_simple import Checkpoint, open_checkpoint
from tests.fake_databricks import FakeDatabricks, Fault, dbfs_file
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

# Helpers


# What is saved


@settings(max_examples=60, deadline=None, derandomize=True)
@given(results=st.lists(RESULTS, min_size=1, max_size=4, unique_by=lambda result: result.username))
def test_what_was_saved_is_loaded(tmp_path_factory, results):
    path = tmp_path_factory.mktemp("checkpoint") / "c.json"
    checkpoint = Checkpoint(path, HEADER)
    for result in results:
        checkpoint.save(result)
        assert checkpoint.load(result.username) == result
        assert json.loads(path.read_bytes())["results"][-1]["username"] == result.username
    checkpoint.close()
    with open_checkpoint(path, HEADER, resume=True) as again:
        assert [again.load(result.username) for result in results] == results
        again.close()


def test_the_format_is_that_of_the_specification(tmp_path):
    path = tmp_path / "c.json"
    data = write_checkpoint(path, [make_result(1), make_result(2, files=0)])
    document = json.loads(data)
    assert {"version": 1, **HEADER}.items() <= document.items()
    assert [(at["username"], at["status"], at["scanned_at"]) for at in document["results"]] == [
        ("user1@example.com", "success", "2026-11-23T04:00:00Z"),
        ("user2@example.com", "empty", "2026-11-23T04:00:00Z"),
    ]
    lines = data.decode().split("\n")
    assert len(lines) == 5
    assert lines[0].endswith('"results": [')
    assert (lines[1][-1], lines[2][-1], lines[3:]) == (",", "}", ["]}", ""])


def test_the_document_is_valid_after_every_save(tmp_path):
    path = tmp_path / "c.json"
    checkpoint = Checkpoint(path, HEADER)
    assert json.loads(path.read_bytes())["results"] == []
    for number in range(20):
        checkpoint.save(make_result(number))
        assert len(json.loads(path.read_bytes())["results"]) == number + 1
    checkpoint.close(finished=True)
    assert len(json.loads(path.read_bytes())["results"]) == 20


def test_the_last_line_of_a_user_wins(tmp_path):
    path = tmp_path / "c.json"
    failures = [{"path": "/Users/user1@example.com/x", "error": "500"}]
    write_checkpoint(path, [make_result(1, 1, failures), make_result(2), make_result(1, 7)])
    with open_checkpoint(path, HEADER, resume=True) as checkpoint:
        assert checkpoint.done("user1@example.com")
        assert checkpoint.load("user1@example.com") == make_result(1, 7)
        checkpoint.close()


def process_io():
    """Bytes this process has read and written so far."""
    figures = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(figures["rchar"]), int(figures["wchar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts the bytes that Linux says were written")
def test_a_save_costs_the_same_however_many_there_are(tmp_path):
    checkpoint, costs = Checkpoint(tmp_path / "c.json", HEADER), {}
    for number in range(100_000, 103_000):
        before = process_io()
        checkpoint.save(make_result(number))
        costs[number] = [after - at for after, at in zip(process_io(), before, strict=True)]
    checkpoint.close()
    first, last = costs[100_010], costs[102_999]
    assert first[1] > 100
    assert [abs(a - b) <= 20 for a, b in zip(first, last, strict=True)] == [True, True]


def test_it_is_synced_to_disk_at_most_once_a_second(tmp_path, monkeypatch):
    checkpoint, synced, fsync = Checkpoint(tmp_path / "c.json", HEADER), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), fsync(number)))
    started = time.monotonic()
    for number in range(500):
        checkpoint.save(make_result(number))
    assert 1 <= len(synced) <= 1 + time.monotonic() - started
    checkpoint.close()


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


# Killed

MOMENTS = [("requests", 1), ("requests", 5), ("requests", 20), ("requests", 50), ("requests", 80), ("requests", 110),
           ("users", 1), ("users", 3), ("users", 5), ("users", 7)]  # fmt: skip


@needs_posix
@pytest.mark.parametrize(("unit", "number"), MOMENTS)
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


def test_a_run_that_is_not_interrupted_writes_the_truth_and_removes_its_checkpoint(server, command, login):
    done = command(SCANNER, *WORDS, env=login(server))
    assert done.code == 0, done
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


# Interrupted


def stop_while_all_hangs(server, process, number):
    """Send the signal when two users are saved and every further request hangs; how long the process took."""
    gate = hang_when(server, lambda: len(saved_users()) >= 2)
    until(lambda: gate.hits >= 4)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return time.monotonic() - began, out, err


@needs_posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_it_ends_at_once_and_says_how_to_go_on(server, command, login, name):
    with running(server, login) as process:
        seconds, _, err = stop_while_all_hangs(server, process, getattr(signal, name))
    assert (process.returncode, seconds < 2) == (130, True), err
    assert "Traceback" not in err
    saved = f"{len(saved_users())} of 10 users saved in {NAME}; the same command with --resume goes on"
    assert err.splitlines()[-2:] == ["error: interrupted", saved]
    assert not Path("out.csv").exists()
    saved = saved_users()
    assert len(json.loads(Path(NAME).read_bytes())["results"]) == len(saved) >= 2
    server.change(faults=[])
    server.counts_reset()
    assert command(SCANNER, *WORDS, "--resume", env=login(server)).code == 0
    assert [asked_for(server, name) for name in saved] == [0] * len(saved)
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_interrupted_before_the_first_answer_it_ends_at_once(server, login):
    gate = hang_when(server, lambda: True)
    with running(server, login) as process:
        until(lambda: gate.hits)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < 2


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


# Torn tails


def cuts(data):
    """Every place at which the last result or what follows it may be cut: the lengths that are left."""
    start = data.rindex(b'\n{"username"') + 1
    return range(start, len(data))


@pytest.mark.parametrize("finished", [False, True])
def test_cut_anywhere_in_the_last_line_all_users_before_it_are_there(tmp_path, finished):
    path = tmp_path / "c.json"
    results = [make_result(number) for number in range(3)]
    data = write_checkpoint(path, results, finished)
    for length in cuts(data):
        path.write_bytes(data[:length])
        with open_checkpoint(path, HEADER, resume=True) as checkpoint:
            assert [checkpoint.load(result.username) for result in results[:2]] == results[:2], length
            last = checkpoint.done(results[2].username)
            assert not last or checkpoint.load(results[2].username) == results[2], length
            checkpoint.save(make_result(3))
            names = [at["username"] for at in json.loads(path.read_bytes())["results"]]
            assert names == [result.username for result in results[: 2 + last]] + ["user3@example.com"], length
            checkpoint.close()


@pytest.mark.parametrize("junk", [b"\n", b"]}", b"\0" * 9, b"\n{", b"}", b"\xff\xfe"], ids=ascii)
def test_something_after_the_tail_is_dropped_or_refused_but_costs_no_result(server, command, login, junk):
    data = write_checkpoint(Path("made.json"), [make_result(1), make_result(2)]).replace(
        HEADER["workspace_url"].encode(), server.url.encode()) + junk  # fmt: skip
    Path(NAME).write_bytes(data)
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 0 or done.code == 2 and "line" in done.err and Path(NAME).read_bytes() == data, done


@needs_posix
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 1.0])
def test_a_torn_checkpoint_is_resumed(server, command, login, part):
    data = leave_unfinished(server, login, 3)
    places = cuts(data)
    Path(NAME).write_bytes(data[: places[round(part * (len(places) - 1))]])
    before = saved_users()
    assert len(before) >= 2
    server.counts_reset()
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 0, done
    assert [asked_for(server, name) for name in before] == [0] * len(before)
    assert Path("out.csv").read_bytes() == true_csv(server)


def test_a_torn_line_is_noted(server, command, login, tmp_path):
    data = write_checkpoint(tmp_path / "made.json", [make_result(1)]).replace(
        HEADER["workspace_url"].encode(), server.url.encode())  # fmt: skip
    Path(NAME).write_bytes(data[:-20])
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 0, done
    assert re.search(r"torn|cut|within a line|incomplete", done.err), done.err


GOOD_LINE = json.dumps(make_result(9).as_dict()).encode()
BAD_LINES = {
    "garbage": b"garbage,", "half a line": GOOD_LINE[:50], "nothing": b"", "a list": b"[],", "a number": b"1,",
    "no user": b'{"status": "success"},', "no status": GOOD_LINE.replace(b'"success"', b"null") + b",",
    "unknown status": GOOD_LINE.replace(b'"success"', b'"fine"') + b",", "two in one": GOOD_LINE + b"," + GOOD_LINE,
    "text for a count": GOOD_LINE.replace(b'"files": 1,', b'"files": "1",', 1) + b",",
    "negative count": GOOD_LINE.replace(b'"files": 1,', b'"files": -1,', 1) + b",",
    "not UTF-8": b'{"username": "\xff"},',
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_before_the_last_is_named_and_nothing_changed(server, command, login, bad):
    results = [make_result(number) for number in range(4)]
    lines = write_checkpoint(Path("made.json"), results).replace(
        HEADER["workspace_url"].encode(), server.url.encode()).split(b"\n")  # fmt: skip
    lines[2] = BAD_LINES[bad]
    Path(NAME).write_bytes(b"\n".join(lines))
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 2, done
    assert "line 3" in done.err
    assert NAME in done.err
    assert Path(NAME).read_bytes() == b"\n".join(lines)
    assert server.total_requests == 0


NO_CHECKPOINTS = {
    "text": b"my notes\n", "list": b"[1, 2]\n", "empty object": b"{}\n", "null": b"null", "number": b"1",
    "object": b'{"a": 1}\n', "other version": b'{"version": 2, "workspace_url": "u", "options": {}, "results": [\n]}\n',
    "csv": b"username,file_count\nann,1\n", "binary": b"\x00\xff" * 40, "half a header": b'{"version": 1, "works',
    "space": b"\n",
}  # fmt: skip


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_left_alone(server, command, login, content, resume):
    Path("notes").write_bytes(NO_CHECKPOINTS[content])
    done = command(SCANNER, *WORDS, "--checkpoint", "notes", *resume, env=login(server))
    assert done.code == 2, done
    assert "notes" in done.err
    assert Path("notes").read_bytes() == NO_CHECKPOINTS[content]
    assert server.total_requests == 0


# What --resume takes up, and what not


@needs_posix
def test_a_checkpoint_of_another_workspace_is_refused_and_both_are_named(server, command, login):
    data = leave_unfinished(server, login)
    with FakeDatabricks(users=1, shape="none") as other:
        done = command(SCANNER, *WORDS, "--resume", env=login(other))
        assert other.total_requests == 0
    assert done.code == 2, done
    assert server.url in done.err
    assert other.url in done.err
    assert Path(NAME).read_bytes() == data


@needs_posix
def test_a_checkpoint_of_other_options_is_refused_and_both_are_named(server, command, login):
    data = leave_unfinished(server, login, 1, *WORDS, "--dbfs-only")
    for words in ((), ("--workspace-only",)):
        done = command(SCANNER, *WORDS, "--resume", *words, env=login(server))
        assert done.code == 2, done
        assert "dbfs" in done.err
        assert "workspace" in done.err.replace("workspace_url", "")
        assert Path(NAME).read_bytes() == data
    assert command(SCANNER, *WORDS, "--resume", "--dbfs-only", env=login(server)).code == 0


def test_without_a_checkpoint_resume_starts_from_the_beginning_and_says_so(server, command, login):
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 0, done
    assert "from the beginning" in done.err
    assert Path("out.csv").read_bytes() == true_csv(server)


def test_resume_of_a_run_that_ended_scans_again_what_was_partial_or_an_error(server, command, login):
    broken, lost = server.user_names[2], server.user_names[5]
    file_systems = [api for api in ("dbfs", "workspace") if getattr(server.truth(broken), f"{api}_home")]
    faults = [Fault("403", path=f"/Users/{lost}"), Fault("403", api=file_systems[0], path=f"/Users/{broken}")]
    server.change(faults=faults)
    first = command(SCANNER, *WORDS, env=login(server))
    assert first.code == 1, first
    assert Path(NAME).exists()
    json.loads(Path(NAME).read_bytes())
    server.change(faults=[])
    server.counts_reset()
    second = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert second.code == 0, second
    assert re.search(rf"8 .*{datetime.now(timezone.utc):%Y-%m-%d}", second.err), second.err
    assert {name for name in server.user_names if asked_for(server, name)} == {broken, lost}
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home"}


def test_a_finished_checkpoint_is_not_moved_aside_by_a_new_run(server, command, login):
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[2]}")])
    assert command(SCANNER, *WORDS, env=login(server)).code == 1
    server.counts_reset()
    assert command(SCANNER, *WORDS, env=login(server)).code == 1
    assert all(asked_for(server, name) for name in server.user_names)
    assert set(os.listdir()) == {"users.txt", "out.csv", "home", NAME}
    assert len(saved_users()) == 10


def asides():
    """Contents of the checkpoints that were moved aside, by file name."""
    return {name: Path(name).read_bytes() for name in os.listdir()
            if name.startswith(".checkpoint_progress") and name != NAME and not name.endswith(".lock")}  # fmt: skip


@needs_posix
def test_an_unfinished_checkpoint_is_moved_aside_and_never_over_another(server, command, login):
    contents = []
    for users in (2, 3, 4):
        contents.append(leave_unfinished(server, login, users))
        os.utime(NAME, (1_700_000_000, 1_700_000_000))
    done = command(SCANNER, *WORDS, env=login(server))
    assert done.code == 0, done
    assert Path("out.csv").read_bytes() == true_csv(server)
    assert sorted(asides().values()) == sorted(contents)
    name = next(name for name, content in asides().items() if content == contents[-1])
    assert name in done.err
    again = command(SCANNER, *WORDS, "--resume", "--checkpoint", name, env=login(server))
    assert again.code == 0, again
    assert len(asides()) == 2


@needs_posix
def test_a_run_of_named_users_leaves_the_checkpoint_of_a_users_file_alone(server, command, login):
    data = leave_unfinished(server, login)
    name = server.user_names[-1]
    done = command(SCANNER, name, env=login(server))
    assert done.code == 0, done
    assert done.out.encode() == true_csv(server, [name])
    assert "checkpoint" in done.err
    assert Path(NAME).read_bytes() == data
    assert asides() == {}
    server.counts_reset()
    assert command(SCANNER, *WORDS, "--resume", env=login(server)).code == 0
    assert Path("out.csv").read_bytes() == true_csv(server)


def test_a_checkpoint_that_a_users_file_went_on_with_belongs_to_the_file(server, command, login):
    """Runs of named users neither remove it nor move it aside."""
    one, other, third = server.user_names[:3]
    server.change(faults=[Fault("403", api="dbfs", path=f"/Users/{name}") for name in (one, other)])
    assert command(SCANNER, one, env=login(server)).code == 1
    assert command(SCANNER, *WORDS, "--resume", env=login(server)).code == 1
    server.change(faults=[])
    for words in ([one, "--resume"], [third]):
        assert command(SCANNER, *words, env=login(server)).code == 0
        assert len(json.loads(Path(NAME).read_bytes())["results"]) >= len(server.user_names)
    assert asides() == {}
    server.counts_reset()
    assert command(SCANNER, *WORDS, "--resume", env=login(server)).code == 0
    assert [name for name in server.user_names if asked_for(server, name)] == [other]
    assert not Path(NAME).exists()


def test_a_named_user_alone_does_not_remove_what_is_saved_of_others(server, command, login):
    one, other = server.user_names[:2]
    server.change(faults=[Fault("403", api="dbfs", path=f"/Users/{other}")])
    assert command(SCANNER, one, other, env=login(server)).code == 1
    server.change(faults=[])
    assert command(SCANNER, other, "--resume", env=login(server)).code == 0
    server.counts_reset()
    assert command(SCANNER, one, other, "--resume", env=login(server)).code == 0
    assert not asked_for(server, one)
    assert not Path(NAME).exists()


@needs_posix
def test_of_two_runs_at_once_the_second_is_refused_until_the_first_is_gone(server, command, login):
    gate = hang_when(server, saved_users)
    with running(server, login) as process:
        until(lambda: gate.hits >= 4)
        server.counts_reset()
        data = Path(NAME).read_bytes()
        for words in ((), ("--resume",)):
            second = command(SCANNER, *WORDS, *words, env=login(server))
            assert second.code == 2, second
            assert "another run" in second.err
        assert server.total_requests == 0
        assert Path(NAME).read_bytes() == data
        assert asides() == {}
        process.kill()
        process.wait()
    server.change(faults=[])
    third = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert third.code == 0, third
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_named_users_are_scanned_while_another_run_goes_on(server, command, login):
    with running(server, login) as process:
        until(saved_users)
        server.change(latency=0.08)
        name = server.user_names[0]
        done = command(SCANNER, name, env=login(server))
        assert process.poll() is None
        assert done.code == 0, done
        assert done.out.encode() == true_csv(server, [name])
        server.change(latency=0.0)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_users_who_left_the_file_are_left_out_and_new_ones_scanned(server, command, login):
    leave_unfinished(server, login, 3)
    gone, before = saved_users()[0], saved_users()[1:]
    server.add_user("new@example.com")
    names = ["new@example.com", *(name for name in reversed(server.user_names[:-1]) if name != gone)]
    write_users(names)
    server.counts_reset()
    done = command(SCANNER, *WORDS, "--resume", env=login(server))
    assert done.code == 0, done
    assert Path("out.csv").read_bytes() == true_csv(server, names)
    assert [asked_for(server, name) for name in [gone, *before]] == [0] * (len(before) + 1)


def test_the_checkpoint_is_kept_while_some_users_are_partial(server, command, login):
    server.change(faults=[Fault("403", path=f"/Users/{server.user_names[0]}")])
    done = command(SCANNER, *WORDS, env=login(server))
    assert done.code == 1, done
    assert len(json.loads(Path(NAME).read_bytes())["results"]) == 10
    assert Path("out.csv").exists()
    assert not Path(f"{NAME}.lock").exists()


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
def test_a_disk_that_is_full_from_the_start_is_found_out_before_the_scan(server, command, login, small_disk):
    small_disk("size=16k")
    Path("disk/other").write_bytes(b"x" * 16_384)
    words = (*WORDS, "--checkpoint", "disk/c.json")
    done = command(SCANNER, *words, env=login(server))
    assert done.code == 2, done
    assert server.total_requests == 0
    small_disk("size=10m")
    done = command(SCANNER, *words, env=login(server))
    assert done.code == 0, done
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_folder_that_cannot_be_written_is_found_out_before_the_scan(server, command, login, small_disk, resume):
    small_disk("ro")
    for path in ("disk/c.json", "missing/c.json", "home"):
        done = command(SCANNER, *WORDS, "--checkpoint", path, *resume, env=login(server))
        assert done.code == 2, done
        assert path in done.err
        assert "Traceback" not in done.err
    assert server.total_requests == 0


# Small things


def test_users_from_before_are_in_the_csv_as_they_were(command, login):
    """What is in the checkpoint is not scanned again, even where it has changed since."""
    with FakeDatabricks(users=["ann@example.com", "ben@example.com"], shape="none") as server:
        write_users(server.user_names)
        server.add_tree("dbfs", {"/Users/ann@example.com": [dbfs_file("/Users/ann@example.com/f", 5)]})
        server.change(faults=[Fault("403", path="/Users/ben@example.com")])
        assert command(SCANNER, *WORDS, env=login(server)).code == 1
        before = Path("out.csv").read_text(encoding="utf-8").splitlines()[1]
        server.add_tree("dbfs", {"/Users/ann@example.com": []})
        server.change(faults=[])
        assert command(SCANNER, *WORDS, "--resume", env=login(server)).code == 0
        assert Path("out.csv").read_text(encoding="utf-8").splitlines()[1] == before
