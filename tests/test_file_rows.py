"""--files: one row for each file of exactly the users of the CSV, whatever happens on the way."""

import csv
import io
import os
from pathlib import Path

import pytest

from databricks_user_files_simple import scan_users
from databricks_user_list import InventoryError
from tests.fake import FakeDatabricks, Fault, Folder, World, workspace_object
from tests.helpers import (
    WORDS,
    asked_for,
    config_of,
    read_file_rows,
    saved_users,
    write_users,
)

FILES = (*WORDS, "--files", "files.csv")
HEADER = "username,file_system,path,object_type,language,object_id,size,modified\n"
ODD_NAMES = ("\r", "a\nb", "a\r\n", ',"', '"', " ", "=1+1", "\ud800 half", "caf\u00e9", "a\tb;c", "\u2028", "\\")


@pytest.fixture
def world():
    """The first user is partial, the others complete."""
    world = World()
    world.add_user("denied@example.com", Folder({"f": 1, "shut": Folder({"lost": 2}, denied=True)}))
    world.add_user("ann@example.com", Folder({"f": 3, "d": Folder({"g": 4})}), Folder({"n": "NOTEBOOK", "f": "FILE"}))
    world.add_user("bob@example.com", Folder({"f": 5}))
    return world


@pytest.fixture
def server(world):
    write_users(world.usernames)
    with FakeDatabricks(world) as server:
        yield server


def working_files():
    return sorted(Path().glob(".journal-*"))


# What is written where


@pytest.mark.parametrize("name", ["files.csv", "files.csv.gz"])
def test_names_with_anything_in_them(name):
    world = World()
    world.add_user("odd@example.com", Folder(dict.fromkeys(ODD_NAMES, 1)), Folder(dict.fromkeys(ODD_NAMES, 'a,"')))
    with FakeDatabricks(world) as server:
        [_] = scan_users(world.usernames, config_of(server), files=Path(name))
    assert read_file_rows(name) == world.file_rows()
    assert len(world.file_rows()) == 2 * len(ODD_NAMES)


def test_what_the_workspace_tells_is_told_and_no_spreadsheet_runs_it():
    home = "/Users/a"
    listed = [workspace_object(f"{home}/f", "=X", language="@Y", object_id=5, size=7),
              {"path": f"{home}/g", "object_type": "FILE", "language": 1, "object_id": "1"}]  # fmt: skip
    with FakeDatabricks(users=["a"], shape="none") as server:
        server.add_tree("workspace", {home: listed})
        [result] = scan_users(["a"], config_of(server), files="files.csv")
    assert [row[3:] for row in read_file_rows()] == [("'=X", "'@Y", "5", "7", ""), ("FILE", "", "", "", "")]
    assert (result.total_size, result.workspace.types) == (10_007, {"=X @Y": 1, "FILE": 1})


def test_from_python_it_is_written_when_the_last_result_was_taken(server, world):
    config = config_of(server)
    results = scan_users(world.usernames, config, files="files.csv")
    for _ in world.usernames:
        next(results)
        assert not os.path.exists("files.csv")
    assert list(results) == []
    assert read_file_rows() == world.file_rows()
    assert list(scan_users([], config, files="files.csv")) == []
    assert Path("files.csv").read_text() == HEADER
    with pytest.raises(InventoryError, match="cannot be written"):
        next(scan_users(["a"], config, files="missing/files.csv"))
    assert len(list(scan_users(world.usernames, config))) == len(world.usernames)
    assert set(os.listdir()) == {"users.txt", "files.csv", "home"}


@pytest.mark.parametrize("words", [WORDS, ("--all-homes", "-o", "out.csv")], ids=["users", "all homes"])
def test_on_stdout(scan, server, world, words):
    done = scan(server, *words, "--files", "-")
    assert done.code == 1, done
    assert done.out.startswith(HEADER)
    assert sorted(map(tuple, list(csv.reader(io.StringIO(done.out)))[1:])) == world.file_rows()
    assert f"{len(world.file_rows())} rows in stdout, one for each file" in done.err.splitlines()


# From run to run


def test_the_working_file_goes_where_its_checkpoint_goes(scan, server, world):
    assert scan(server, *WORDS).code == 1
    done = scan(server, *FILES, "--resume")
    assert (done.code, read_file_rows()) == (1, world.file_rows()), done
    assert "2 complete users to scan again: " in done.err
    assert f"{len(world.file_rows())} rows in files.csv, one for each file" in done.err
    [first] = working_files()
    assert scan(server, *FILES).code == 1
    [aside] = Path().glob(".checkpoint_progress.2*")
    assert len(working_files()) == 2
    done = scan(server, *FILES, "--resume", "--checkpoint", str(aside))
    assert (done.code, asked_for(server, "ann@example.com"), read_file_rows()) == (1, 0, world.file_rows()), done
    server.world.denied.clear()
    assert scan(server, *WORDS, "--resume", "--checkpoint", str(aside)).code == 0
    assert not aside.exists()
    assert first not in working_files()
    assert scan(server, *FILES, "--resume").code == 0
    assert set(os.listdir()) == {"users.txt", "out.csv", "files.csv", "home"}


def test_rows_that_are_not_as_many_as_the_files_are_not_written(scan, server, world):
    """Somebody empties the working file while the scan runs; what was saved is scanned again."""
    gate = Fault("500")
    gate.applies = lambda *_: [os.truncate(path, 0) for path in working_files() if len(saved_users()) == 2] == [0]
    server.change(faults=[*server.settings.faults, gate])
    done = scan(server, *FILES, "--threads", "1")
    assert done.code == 2, done
    assert "denied@example.com has 1 file, the journal 0" in done.err
    assert not [name for name in os.listdir() if name.startswith(("files", ".files"))]
    server.change(faults=server.settings.faults[:-1])
    done = scan(server, *FILES, "--resume")
    assert (done.code, read_file_rows()) == (1, world.file_rows()), done
