"""Whose home is which: what /Users of both file systems shows before the first user is scanned."""

import csv
import io
import json

import pytest

from databricks_user_files_simple import UsersFolder, assign_homes, scan_dbfs
from databricks_user_list import InventoryError
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import (
    ANN,
    BEN,
    FILE_SYSTEMS,
    HOME,
    assert_truth,
    config_of,
    crawl,
    figures,
    listings,
    small_server,
)

NOT_LISTED = "not found in this spelling, and /Users cannot be listed"
NOT_READABLE = "not found, or not readable with this token"

WHOLE, SHORT, UNKNOWN = "whole", "doubtful", "not listed"
ALIKE = "differ in letter case alone"
TABLE = [  # file system, admin, /Users, its state, name -> asked as, what a 404 means; homes of nobody
    ("dbfs", True, {"a"}, WHOLE, {"a": ("a", NOT_READABLE)}, []),
    ("dbfs", True, {"A"}, WHOLE, {"a": ("A", NOT_READABLE)}, []),
    ("dbfs", False, {"A"}, WHOLE, {"a": ("A", NOT_READABLE)}, []),
    ("dbfs", True, {"b"}, WHOLE, {"a": (None, "")}, ["b"]),
    ("dbfs", True, {"b"}, SHORT, {"a": ("a", "")}, ["b"]),
    ("dbfs", True, set(), UNKNOWN, {"a": ("a", NOT_LISTED)}, []),
    ("dbfs", True, {"A", "aA"}, WHOLE, {"aa": ("aA", NOT_READABLE)}, ["A"]),
    ("dbfs", True, {"AA", "aA"}, WHOLE, {"aa": (None, ALIKE)}, ["AA", "aA"]),
    ("dbfs", True, {"AA", "aA"}, WHOLE, {"aa": ("aA", NOT_READABLE), "AA": ("AA", NOT_READABLE)}, []),
    ("dbfs", True, {"AA"}, WHOLE, {"aa": (None, ALIKE), "aA": (None, ALIKE)}, ["AA"]),
    ("dbfs", True, {"AA"}, WHOLE, {"aa": (None, ""), "AA": ("AA", NOT_READABLE)}, []),
    ("workspace", True, {"a"}, WHOLE, {"a": ("a", NOT_READABLE)}, []),
    ("workspace", True, {"A"}, WHOLE, {"a": ("A", NOT_READABLE)}, []),
    ("workspace", True, {"b"}, WHOLE, {"a": ("a", "")}, ["b"]),
    ("workspace", True, set(), UNKNOWN, {"a": ("a", NOT_LISTED)}, []),
    ("workspace", False, {"A"}, WHOLE, {"a": ("a", NOT_READABLE)}, ["A"]),
    ("workspace", False, {"b"}, WHOLE, {"a": ("a", NOT_READABLE)}, ["b"]),
]


@pytest.mark.parametrize(("file_system", "admin", "there", "state", "expected", "left"), TABLE)
def test_each_name_gets_its_home(file_system, admin, there, state, expected, left):
    homes, nobodys = assign_homes(expected, {file_system: UsersFolder(frozenset(there), state)}, admin)
    for name, (asked, error) in expected.items():
        home = homes[name][file_system]
        assert home.path == (None if asked is None else f"/Users/{asked}")
        assert home.listed == (asked in there)
        assert error in home.error
        assert bool(home.error) == bool(error)
    assert nobodys == {file_system: set(left)}


# Over real HTTP, through the command


@pytest.fixture
def inventory_of(scan):
    """inventory_of(server, *words, code=0): the rows of the CSV by user name, and what was said."""

    def run(server, *words, code=0):
        done = scan(server, *words)
        assert done.code == code, done
        return {row["username"]: row for row in csv.DictReader(io.StringIO(done.out, newline=""))}, done.err

    return run


def typical_server(users=100, **more):
    """Everybody has a Workspace home, one of five a DBFS home with two directories below it."""
    names = [f"user{number:03}@example.com" for number in range(users)]
    server = FakeDatabricks(users=names, shape="none", **more)
    for number, name in enumerate(names):
        home = f"/Users/{name}"
        server.add_tree("workspace", {home: [workspace_object(f"{home}/n")]})
        if number % 5 == 0:
            server.add_tree("dbfs", {
                home: [dbfs_directory(f"{home}/a"), dbfs_directory(f"{home}/b")],
                f"{home}/a": [dbfs_file(f"{home}/a/x", 1)], f"{home}/b": [],
            })  # fmt: skip
    return server


def body_of(names):
    return json.dumps({"files": [dbfs_directory(f"/Users/{name}") for name in names]})


def test_nothing_is_asked_for_that_is_not_there(inventory_of, tmp_path):
    with typical_server() as server:
        (tmp_path / "users").write_text("\n".join(server.user_names))
        rows, said = inventory_of(server, "--users-file", "users")
        asked = sum(number for (api, _), number in server.requests.items() if api == "dbfs")
    assert asked == 20 * 3 + 2
    assert {row["status"] for row in rows.values()} == {"success"}
    assert "homes: 20 in DBFS, 100 in Workspace" in said


@pytest.mark.parametrize("short", [1, 2])
def test_a_listing_of_users_that_is_short_loses_nobody(inventory_of, tmp_path, short):
    with typical_server(users=20) as server:
        (tmp_path / "users").write_text("\n".join(server.user_names))
        some = body_of(["user000@example.com"])
        server.change(faults=[Fault("body", body=some, api="dbfs", path="/Users", times=short)])
        rows, _ = inventory_of(server, "--users-file", "users")
    counts = [int(rows[name]["file_count"]) for name in sorted(rows)[::5]]
    assert counts == ([2, 2, 2, 2] if short == 1 else [2, 1, 1, 1])  # what is short twice alike is believed


@pytest.mark.parametrize("body", ["{}", '{"files": []}'])
def test_an_empty_listing_of_users_in_dbfs_is_not_believed(inventory_of, body):
    with typical_server(users=1) as server:
        server.change(faults=[Fault("body", body=body, api="dbfs", path="/Users")])
        rows, _ = inventory_of(server, "user000@example.com")
    assert rows["user000@example.com"]["file_count"] == "2"


@pytest.mark.parametrize("api", FILE_SYSTEMS)
def test_where_users_cannot_be_listed_a_home_not_found_is_an_error(inventory_of, api):
    with typical_server(users=2) as server:
        server.change(faults=[Fault("403", api=api, path="/Users")])
        rows, said = inventory_of(server, "user000@example.com", "USER001@example.com", code=1)
    assert rows["user000@example.com"]["status"] == "success"
    assert NOT_LISTED in rows["USER001@example.com"]["error"]
    assert said.count("/Users cannot be listed, homes in other letter case are not found") == 1


def test_a_home_that_was_listed_and_is_not_found_is_an_error(inventory_of):
    with typical_server(users=1) as server:
        server.change(faults=[Fault("404", api="dbfs", path="/Users/user000@example.com")])
        rows, _ = inventory_of(server, "user000@example.com", code=1)
    assert rows["user000@example.com"]["status"] == "partial"


@pytest.mark.parametrize("kind", ["400", "403", "404_other", "404", "401"])
def test_a_login_that_is_refused_everything_ends_the_run(scan, kind):
    with typical_server(users=1) as server:
        server.change(faults=[Fault(kind)])
        done = scan(server, "user000@example.com")
        assert (done.code, done.out) == (2, "")
        assert server.total_requests < 8
    assert "Traceback" not in done.err


def test_names_without_any_home_are_told(inventory_of):
    with typical_server(users=1) as server:
        _, said = inventory_of(server, "user000@example.com", BEN, "cal@example.com")
        _, warned = inventory_of(server, BEN, "cal@example.com")
    assert f"no home anywhere: 2 users, the first is {BEN}" in said
    assert "warning" not in said
    assert "warning: none of these users has a home" in warned


def test_details_have_the_homes_and_the_newest_modification(inventory_of, tmp_path):
    with FakeDatabricks(users=[ANN], shape="none") as server:
        home = "/Users/Ann@example.com"
        server.add_tree(
            "dbfs", {home: [dbfs_file(f"{home}/{number}", 1, 1_700_000_000_000 + number) for number in (7, 1007)]}
        )
        inventory_of(server, ANN, "--details", "details")
    details = json.loads((tmp_path / "details").read_text())
    assert details["homes"] == {"dbfs": home, "workspace": None}
    assert details["dbfs"]["last_modified"] == "2023-11-14T22:13:21Z"


# Homes in other letter case


def case_server(homes, users, file_systems=FILE_SYSTEMS):
    """A workspace that has these homes, each with a file of 7 bytes and a notebook."""
    server = FakeDatabricks(users=list(users), shape="none")
    for home in homes:
        if "dbfs" in file_systems:
            server.add_tree("dbfs", {f"/Users/{home}": [dbfs_file(f"/Users/{home}/f", 7)]})
        if "workspace" in file_systems:
            server.add_tree("workspace", {f"/Users/{home}": [workspace_object(f"/Users/{home}/n")]})
    return server


@pytest.mark.parametrize("file_systems", [("dbfs",), ("workspace",), FILE_SYSTEMS])
def test_a_home_in_other_letter_case_is_scanned(clock, file_systems):
    home = "Ann@Example.com"
    with case_server([home], [ANN], file_systems) as server:
        result = crawl(server, clock)[ANN]
        assert_truth(result, server.truth(ANN, home=home))
        assert result.username == ANN
        assert set(listings(server).values()) == {1}


def test_a_home_that_is_alike_to_two_users_names_is_neithers(clock):
    names = [ANN, "ANN@example.com"]
    with case_server(["Ann@example.com"], names) as server:
        results = crawl(server, clock)
    for result in results.values():
        assert (result.status, result.file_count) == ("error", 0)
        assert all(name in result.error for name in [*names, "Ann@example.com"])


def test_of_two_homes_in_other_letter_case_neither_is_chosen(clock):
    homes = ["Ann@example.com", "ANN@example.com"]
    with case_server(homes, [ANN]) as server:
        result = crawl(server, clock)[ANN]
    assert (result.status, result.file_count) == ("error", 0)
    assert all(home in result.error for home in homes)


@pytest.mark.parametrize("order", [1, -1])
def test_a_home_that_is_another_asked_for_users_is_not_counted_twice(clock, order):
    names = [ANN, "Ann@example.com"][::order]
    with case_server([ANN], names) as server:
        results = crawl(server, clock)
        assert results["Ann@example.com"].status == "empty"
        assert_truth(results[ANN], server.truth(ANN, home=ANN))
        assert set(listings(server).values()) == {1}


def test_two_users_that_differ_in_letter_case_have_a_home_each(clock):
    names = [ANN, "Ann@example.com"]
    with case_server(names, names) as server:
        assert [result.file_count for result in crawl(server, clock).values()] == [2, 2]


# Who is no admin


def test_who_is_no_admin_is_warned_once_and_a_home_not_found_is_an_error(clock, caplog):
    with small_server([ANN, BEN, "cal@example.com"], admin=False, caller=BEN) as server:
        results = crawl(server, clock, [ANN, BEN, "dan@example.com"])
        assert_truth(results[BEN], server.truth(BEN))
        assert (results[ANN].status, results["dan@example.com"].status) == ("partial", "error")
        assert figures(results[ANN]) == (4, 128, 4, 0, 0, 0)
        for name in (ANN, "dan@example.com"):
            assert "not found, or not readable with this token" in results[name].error
        assert server.requests["scim", "Me"] == 1
    assert caplog.text.count("admins") == 1


def test_who_is_an_admin_is_not_warned_and_a_home_not_found_is_empty(clock, caplog):
    with FakeDatabricks(users=3, shape="none", groups=["users", "admins"]) as server:
        assert {result.status for result in crawl(server, clock).values()} == {"empty"}
    assert "admins" not in caplog.text


@pytest.mark.parametrize("kind", ["no groups", "403", "404", "503"])
def test_whom_me_does_not_show_as_admin_is_none(clock, caplog, kind):
    more = {"groups": None} if kind == "no groups" else {"faults": [Fault(kind, path="Me")]}
    with small_server([ANN], **more) as server:
        results = crawl(server, clock, [ANN, BEN])
        assert_truth(results[ANN], server.truth(ANN))
    assert results[BEN].error.endswith("not found, or not readable with this token")
    assert caplog.text.count("admins") == 1


# DBFS disabled


def test_where_dbfs_is_disabled_rows_are_complete_without_it_and_it_is_said_once(clock, caplog):
    with FakeDatabricks(users=20, shape="small", dbfs_disabled=True) as server:
        results = crawl(server, clock)
        assert sum(number for (api, _), number in listings(server).items() if api == "dbfs") <= 16
        for name, result in results.items():
            truth = server.truth(name)
            assert (result.file_count, result.dbfs, result.error) == (truth.workspace_objects, None, "")
            assert result.status == ("success" if truth.workspace_objects else "empty")
    assert caplog.text.count("DBFS is left out") == 1


def test_where_dbfs_is_disabled_and_nothing_else_asked_for_the_run_ends(clock):
    with FakeDatabricks(users=3, shape="small", dbfs_disabled=True) as server:
        with pytest.raises(InventoryError, match="DBFS"):
            crawl(server, clock, file_systems=("dbfs",))
        with pytest.raises(InventoryError, match="DBFS"):
            scan_dbfs(server.user_names[0], config_of(server))


def test_dbfs_that_is_disabled_after_it_was_listed_is_a_failure(clock, caplog):
    message = "Public DBFS root is disabled. Access is denied on path"
    with small_server() as server:
        server.change(faults=[Fault("403", api="dbfs", path=f"{HOME}/b", message=message)])
        result = crawl(server, clock)[ANN]
    assert (result.status, result.dbfs.files) == ("partial", 2)
    assert "WARNING" not in caplog.text


# --all-homes


def homes_server(**more):
    """Homes of nobody: one in both file systems, one in other letter case, two alike, a file."""
    server = FakeDatabricks(users=[ANN], shape="none", **more)
    server.add_tree("dbfs", {
        f"/Users/{name}": [dbfs_file(f"/Users/{name}/x", 5)] for name in (ANN, "both", "Case", "two", "TWO")
    })  # fmt: skip
    server.add_tree("workspace", {
        f"/Users/{name}": [workspace_object(f"/Users/{name}/n")] for name in (ANN, "both", "case", "two", "a, b")
    })  # fmt: skip
    return server


@pytest.mark.parametrize("named", [[ANN], []])
def test_all_homes_get_rows(inventory_of, named):
    with homes_server() as server:
        rows, said = inventory_of(server, "--all-homes", *named)
    others = ["TWO", "a, b", "both", "case", "two"]
    assert list(rows) == ([ANN, *others] if named else sorted([ANN, *others]))
    counts = {name: row["file_count"] for name, row in rows.items()}
    assert counts == {ANN: "2", "both": "2", "case": "2", "two": "2", "TWO": "1", "a, b": "1"}
    assert "homes of nobody" not in said


def test_a_home_with_any_name_is_one_row(inventory_of):
    names = ["a\rb", 'q"uote', "line\nbreak"]
    with FakeDatabricks(users=[ANN], shape="none") as server:
        server.add_tree("dbfs", {f"/Users/{name}": [dbfs_file(f"/Users/{name}/x", 5)] for name in names})
        server.add_tree("workspace", {"/Users/w": [workspace_object("/Users/w/n")]})
        rows, _ = inventory_of(server, "--all-homes")
    assert list(rows) == sorted([*names, "w"])


def test_homes_of_nobody_are_counted_where_they_are_not_scanned(inventory_of):
    with homes_server() as server:
        _, said = inventory_of(server, ANN)
    assert "homes of nobody in this run: 4 in DBFS, 4 in Workspace; --all-homes" in said


@pytest.mark.parametrize("fault", [
    Fault("403", api="workspace", path="/Users"), Fault("body", body="{}", api="dbfs", path="/Users"),
    Fault("body", body=body_of(["x"]), api="dbfs", path="/Users", times=1),
])  # fmt: skip
def test_all_homes_needs_whole_listings(inventory_of, fault):
    with homes_server() as server:
        server.change(faults=[fault])
        rows, said = inventory_of(server, "--all-homes", ANN, code=2)
    assert rows == {}
    assert "--all-homes" in said


def test_the_workspace_is_never_left_out(inventory_of):
    """Whatever its /Users answers."""
    with typical_server(users=1) as server:
        text = "Public DBFS root is disabled. Access is denied on path: /Users"
        server.change(faults=[Fault("403", api="workspace", path="/Users", message=text)])
        rows, said = inventory_of(server, "user000@example.com")
    assert rows["user000@example.com"]["file_source"] == "both"
    assert "left out" not in said


@pytest.mark.parametrize("api", FILE_SYSTEMS)
def test_an_odd_name_in_users_is_no_home(inventory_of, api):
    listed = [dbfs_directory(f"/Users/{ANN}"), dbfs_file("/Users/a/b", 3)]
    if api == "workspace":
        listed = [workspace_object(f"/Users/{ANN}", "DIRECTORY"), workspace_object("/Users/a/b")]
    with homes_server() as server:
        key = "files" if api == "dbfs" else "objects"
        server.change(faults=[Fault("body", body=json.dumps({key: listed}), api=api, path="/Users")])
        rows, said = inventory_of(server, "--all-homes", ANN, code=2)
    assert rows == {}
    assert f"{api}:/Users could not be listed twice alike" in said


def test_a_home_may_be_a_file(inventory_of):
    with FakeDatabricks(users=[ANN], shape="none") as server:
        home = f"/Users/{ANN}"
        listed = json.dumps({"files": [dbfs_file(home, 7)]})
        server.change(faults=[Fault("body", body=listed, api="dbfs", path=path) for path in ("/Users", home)])
        rows, _ = inventory_of(server, ANN, "--dbfs-only")
    assert (rows[ANN]["file_count"], rows[ANN]["total_size"], rows[ANN]["status"]) == ("1", "7", "success")


@pytest.mark.parametrize("where", ["disabled", "no homes"])
def test_all_homes_goes_without_dbfs(inventory_of, where):
    with homes_server(dbfs_disabled=where == "disabled") as server:
        if where == "no homes":
            server.change(faults=[Fault("404", api="dbfs", path="/Users")])
        rows, _ = inventory_of(server, "--all-homes", ANN)
    assert list(rows) == [ANN, "a, b", "both", "case", "two"]


# --resume


def test_a_kept_row_with_another_home_now_is_scanned_again(inventory_of, tmp_path):
    with typical_server(users=2, faults=[Fault("403", path="/Users/user001@example.com")]) as server:
        words = ["--users-file", "users", "--resume", "--checkpoint", "progress"]
        (tmp_path / "users").write_text("USER000@example.com\nuser001@example.com")
        before, _ = inventory_of(server, *words, code=1)
        server.add_tree("dbfs", {"/Users/USER000@example.com": [dbfs_file("/Users/USER000@example.com/new", 9)]})
        server.change(faults=[])
        after, _ = inventory_of(server, *words)
    assert [rows["USER000@example.com"]["file_count"] for rows in (before, after)] == ["2", "2"]
    assert after["USER000@example.com"]["total_size"] == "10009"
    assert before["USER000@example.com"]["total_size"] == "10001"


def test_a_kept_row_whose_home_nobody_can_tell_now_is_an_error(inventory_of, tmp_path):
    with FakeDatabricks(users=[ANN, BEN], shape="none", faults=[Fault("403", path=f"/Users/{BEN}")]) as server:
        server.add_tree("dbfs", {f"/Users/{BEN}": [dbfs_file(f"/Users/{BEN}/x", 5)]})
        words = ["--resume", "--checkpoint", "progress", ANN, BEN]
        before, _ = inventory_of(server, *words, code=1)
        for name in (ANN.upper(), ANN.title()):
            server.add_tree("dbfs", {f"/Users/{name}": [dbfs_file(f"/Users/{name}/x", 5)]})
        after, _ = inventory_of(server, *words, code=1)
    assert [rows[ANN]["status"] for rows in (before, after)] == ["empty", "error"]
    assert "differ in letter case alone" in after[ANN]["error"]
