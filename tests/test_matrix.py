"""One workspace with everything awkward in it, through every way in: each row and each detail is the truth."""

import json
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
from tests import helpers
from tests.fake import FORMS, FakeDatabricks
from tests.fake.awkward import make_world, passing_faults

OUTPUTS = ("--users-file", "users.txt", "-o", "out.csv", "--details", "details.jsonl", "--files", "files.csv")


def assert_truth(server, rows, details):
    """Every column of every row, in the order of the users; what --details has of each file system; every file."""
    truths = list(map(server.truth, server.user_names))
    assert helpers.read_file_rows() == server.file_rows()
    assert rows == [truth.row for truth in truths]
    for truth, found in zip(truths, details, strict=True):
        assert (found["username"], found["status"]) == (truth.username, truth.row["status"])
        for file_system in helpers.FILE_SYSTEMS:
            expected = vars(getattr(truth, file_system))
            shown = {key: found[file_system][key] for key in expected}
            if truth.username.startswith("deleted"):  # nobody can say whether the folder is in the types
                shown["types"].pop("DIRECTORY", None)
            assert shown == expected, (truth.username, file_system)


def assert_results(server, results):
    """The same of results, which come in any order."""
    found = sorted(results, key=lambda result: server.user_names.index(result.username))
    rows = [{key: str(value) for key, value in result.row().items()} for result in found]
    assert_truth(server, rows, [result.as_dict() for result in found])


def assert_outputs(server):
    """The same of the files that a command has written."""
    details = map(json.loads, Path("details.jsonl").read_text(encoding="utf-8").splitlines())
    assert_truth(server, helpers.rows_of(), details)


@pytest.fixture
def server():
    with FakeDatabricks(make_world(), faults=passing_faults(), forms=FORMS, latency=0.001) as server:
        helpers.write_users(server.user_names)
        yield server


@pytest.mark.parametrize("threads", [1, 16])
def test_the_function(server, clock, threads):
    client, names = helpers.make_client(server, clock, threads), server.user_names
    assert_results(server, scanner.scan_users(names, client.config, threads, client=client, files="files.csv"))


def test_the_command_in_this_process(server, hasty, scan):
    assert scan(server, *OUTPUTS).code == 1
    assert_outputs(server)


@helpers.needs_posix
def test_the_command_that_was_killed_and_goes_on(server, command, login):
    helpers.run_and_kill(server, login, lambda: len(helpers.saved_users()) >= 4, *OUTPUTS)
    server.change(faults=passing_faults())
    ended = command(helpers.SCANNER, *OUTPUTS, "--resume", env=login(server), timeout=120)
    assert ended.code == 1, ended
    assert_outputs(server)


def test_the_function_on_a_cluster(spark, hasty, monkeypatch):
    helpers.set_constants(monkeypatch, CLUSTER_DELAY=0.0, FIRST_RATE=500.0)
    server = FakeDatabricks(make_world(bulk=8, directories=25), faults=passing_faults(), forms=FORMS)
    with server, helpers.slow_until(server, helpers.workers_help(server)):
        names, config = server.user_names, helpers.config_of(server)
        assert_results(server, scanner.process_user_batch_parallel(spark, names, config, 4, files="files.csv"))
