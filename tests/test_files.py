"""--files: one row for each file of exactly the users of the CSV, whatever happens on the way."""

import csv
import io
import os
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from tests.fake import FakeDatabricks, Fault
from tests.fake.world import Folder, World
from tests.helpers import (
    NAME,
    SCANNER,
    WORDS,
    asked_for,
    needs_posix,
    read_file_rows,
    run_and_kill,
    saved_users,
    write_users,
)

FILES = (*WORDS, "--files", "files.csv")
HEADER = "username,file_system,path,object_type,size,modified\n"
ODD_NAMES = ("\r", "a\nb", "a\r\n", ',"', '"', " ", "=1+1", "\ud800 half", "caf\u00e9", "a\tb;c", "\u2028", "\\")


def small_world():
    """The first user is partial, the others complete."""
    world = World()
    world.add_user("denied@example.com", Folder({"f": 1, "shut": Folder({"lost": 2}, denied=True)}))
    world.add_user("ann@example.com", Folder({"f": 3, "d": Folder({"g": 4})}), Folder({"n": "NOTEBOOK", "f": "FILE"}))
    world.add_user("bob@example.com", Folder({"f": 5}))
    return world


@pytest.fixture
def world():
    return small_world()


@pytest.fixture
def server(world):
    write_users(world.usernames)
    with world.server() as server:
        yield server


@pytest.fixture
def scan(server, monkeypatch, capsys):
    """scan(words): exit code, stdout and stderr of the command, in this process; the server counts anew."""
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)

    def run(*words):
        server.counts_reset()
        code = scanner.main([*words])
        return code, *capsys.readouterr()

    return run


def working_files():
    return sorted(Path().glob(".files-*"))


def counts():
    """Users and their file_count, from the CSV, without those who have none."""
    rows = csv.DictReader(io.StringIO(Path("out.csv").read_text(encoding="utf-8")))
    return {row["username"]: int(row["file_count"]) for row in rows if row["file_count"] != "0"}


def assert_files(server, path="files.csv"):
    """The rows are those of the CSV, and of the fake workspace."""
    rows = read_file_rows(path)
    assert len({row[1:3] for row in rows}) == len(rows)
    found = {}
    for row in rows:
        found[row[0]] = found.get(row[0], 0) + 1
    assert found == counts()
    truths = {name: server.truth(name) for name in server.user_names}
    assert found == {name: truth.file_count for name, truth in truths.items() if truth.file_count}
    in_dbfs = sum(int(row[4]) for row in rows if row[1] == "dbfs")
    assert in_dbfs == sum(truth.dbfs_bytes for truth in truths.values())


# What is written where


@pytest.mark.parametrize("name", ["files.csv", "files.csv.gz"])
def test_names_with_anything_in_them(name):
    world = World()
    world.add_user("odd@example.com", Folder(dict.fromkeys(ODD_NAMES, 1)), Folder(dict.fromkeys(ODD_NAMES, 'a,"\r')))
    with world.server() as server:
        config = databricks_user_list.DatabricksConfig(server.url, server.settings.token, "test")
        [_] = scanner.scan_users(world.usernames, config, files=Path(name))
    assert read_file_rows(name) == world.file_rows()
    assert len(world.file_rows()) == 2 * len(ODD_NAMES)


def test_from_python_it_is_written_when_the_last_result_was_taken(server, world):
    config = databricks_user_list.DatabricksConfig(server.url, server.settings.token, "test")
    results = scanner.scan_users(world.usernames, config, files="files.csv")
    for _ in world.usernames:
        next(results)
        assert not os.path.exists("files.csv")
    assert list(results) == []
    assert read_file_rows() == world.file_rows()
    assert list(scanner.scan_users([], config, files="files.csv")) == []
    assert Path("files.csv").read_text() == HEADER
    with pytest.raises(databricks_user_list.InventoryError, match="cannot be written"):
        next(scanner.scan_users(["a"], config, files="missing/files.csv"))


@pytest.mark.parametrize("words", [WORDS, ("--all-homes", "-o", "out.csv")], ids=["users", "all homes"])
def test_on_stdout(scan, world, words):
    code, out, err = scan(*words, "--files", "-")
    assert code == 1, err
    assert out.startswith(HEADER)
    assert sorted(map(tuple, list(csv.reader(io.StringIO(out)))[1:])) == world.file_rows()
    assert f"{len(world.files)} rows in stdout, one for each file" in err.splitlines()


@pytest.mark.parametrize(("words", "message"), [
    (("--files", "-", "--users-file", "users.txt"), "must be different files"),
    ((*WORDS, "--files", "out.csv"), "must be different files"),
    ((*WORDS, "--files", "./users.txt"), "must be different files"),
    ((*WORDS, "--files", "missing/files.csv"), "missing/files.csv cannot be written: No such file or directory"),
    ((*WORDS, "--files", ""), "it is a folder"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")  # fmt: skip
def test_what_cannot_be_written_is_found_out_before_the_scan(scan, server, words, message):
    code, _, err = scan(*words)
    assert (code, server.total_requests) == (2, 0), err
    assert message in err


# From run to run


def test_the_working_file_goes_where_its_checkpoint_goes(scan, server, world):
    assert scan(*WORDS)[0] == 1
    code, _, err = scan(*FILES, "--resume")
    assert (code, read_file_rows()) == (1, world.file_rows()), err
    assert "2 complete users to scan again: other homes, or no rows for --files from before" in err
    [first] = working_files()
    assert scan(*FILES)[0] == 1
    [aside] = Path().glob(".checkpoint_progress.2*")
    assert len(working_files()) == 2
    code, _, err = scan(*FILES, "--resume", "--checkpoint", str(aside))
    assert (code, asked_for(server, "ann@example.com"), read_file_rows()) == (1, 0, world.file_rows()), err
    server.change(faults=[])
    assert scan(*WORDS, "--resume", "--checkpoint", str(aside))[0] == 0
    assert not aside.exists()
    assert first not in working_files()
    assert scan(*FILES, "--resume")[0] == 0
    assert set(os.listdir()) == {"users.txt", "out.csv", "files.csv", "home"}


def test_a_working_file_that_was_cut_at_any_byte_of_its_last_line(scan, server, world):
    assert scan(*FILES, "--threads", "1")[0] == 1
    [working] = working_files()
    data, checkpoint = working.read_bytes(), Path(NAME).read_bytes()
    whole = data[:-1].rindex(b"\n") + 1
    assert b"bob@example.com" in data[whole:]
    for cut in range(whole, len(data) + 1):
        working.write_bytes(data[:cut])
        Path(NAME).write_bytes(checkpoint)
        os.unlink("files.csv")
        code, _, err = scan(*FILES, "--resume", "--quiet")
        assert (code, read_file_rows()) == (1, world.file_rows()), (cut, err)
        assert (asked_for(server, "bob@example.com") > 0) == (cut < len(data) - 1), cut
        assert asked_for(server, "ann@example.com") == 0, cut


def test_rows_that_are_not_as_many_as_the_files_are_not_written(scan, server, world):
    """Somebody empties the working file while the scan runs; what was saved is scanned again."""
    gate = Fault("500")
    gate.applies = lambda *_: [os.truncate(path, 0) for path in working_files() if len(saved_users()) == 2] == [0]
    server.change(faults=[*server.settings.faults, gate])
    code, _, err = scan(*FILES, "--threads", "1")
    assert code == 2, err
    assert "denied@example.com has 1 file, the working file 0" in err
    assert not {"out.csv", "files.csv"} & set(os.listdir())
    server.change(faults=server.settings.faults[:-1])
    code, _, err = scan(*FILES, "--resume")
    assert (code, read_file_rows()) == (1, world.file_rows()), err


@needs_posix
@pytest.mark.parametrize(("size", "words", "message"), [
    ("64k", ("--files", "files.csv", "--checkpoint", "disk/c.json"), "no checkpoint can be kept here (No space left"),
    ("64k", ("--files", "disk/files.csv", "--checkpoint", "c.json"), "disk/files.csv cannot be written: No space left"),
    ("16k", ("--files", "disk/f.csv.gz", "--checkpoint", "c.json"), "disk/f.csv.gz cannot be written: No space left"),
], ids=["working file", "csv", "gzipped"])  # fmt: skip
def test_a_full_disk(monkeypatch, capsys, small_disk, size, words, message):
    small_disk(f"size={size}")
    with FakeDatabricks(users=30, shape="small") as server:
        write_users(server.user_names)
        monkeypatch.setenv("DATABRICKS_HOST", server.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)
        assert scanner.main([*WORDS, *words]) == 2
        assert message in capsys.readouterr().err
        assert not {"out.csv", "files.csv"} & set(os.listdir())
        assert [path for path in os.listdir("disk") if ".csv" in path] == []
        small_disk("size=10m")
        assert scanner.main([*WORDS, *words, "--resume"]) == 0
        assert_files(server, words[1])


# Killed


def kill_often(server, login, kills, requests, *words):
    """Runs that are killed after so many requests, every third one when it has saved a user."""
    for number in range(kills):
        saved, last = len(saved_users()), server.total_requests + requests

        def reached(number=number, saved=saved, last=last):
            return server.total_requests > last if number % 3 else len(saved_users()) > saved

        run_and_kill(server, login, reached, *words, *(("--resume",) if number else ()))


@needs_posix
def test_killed_twenty_times(command, login):
    with FakeDatabricks(users=40, shape="small", latency=0.004) as server:
        write_users(server.user_names)
        kill_often(server, login, 20, 30, *FILES)
        ended = command(SCANNER, *FILES, "--resume", env=login(server))
        assert ended.code == 0, ended
        assert_files(server)
    assert f"{len(read_file_rows()):,} rows in files.csv, one for each file" in ended.err
    assert set(os.listdir()) == {"users.txt", "out.csv", "files.csv", "home"}


@needs_posix
def test_killed_with_a_cluster(connect_server, command, login):
    words = (*FILES, "--spark-remote", connect_server.remote)
    with FakeDatabricks(users=20, shape="bench", directories=60, latency=0.05) as server:
        write_users(server.user_names)
        kill_often(server, login, 3, 250, *words)
        ended = command(SCANNER, *words, "--resume", env=login(server), timeout=90)
        assert ended.code == 0, ended
        assert server.workers
        assert_files(server)
