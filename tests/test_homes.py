"""Whose home is which: what /Users of both file systems shows before the first user is scanned."""

import csv
import io
import json
import math
from pathlib import Path

import pandas
import pytest

from databricks_user_files_simple import Home, UsersFolder, assign_homes, scan_dbfs, scan_users
from databricks_user_list import InventoryError
from tests import helpers
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import ANN, BEN, FILE_SYSTEMS, HOME, config_of, crawl, figures, small_server

CAL, DAN = "cal@example.com", "dan@example.com"
NOT_LISTED = "not found in this spelling, and /Users cannot be listed"
NOT_READABLE = "not found, or not readable with this token"
WHOLE, SHORT, UNKNOWN = "whole", "doubtful", "not listed"
ALIKE = "the names aa and the homes AA, aA differ in letter case alone"
ALIKE_TO_TWO = (None, "the names aA, aa and the homes AA differ in letter case alone")


@pytest.mark.parametrize(("file_system", "admin", "there", "state", "expected", "left"), [
    # name -> asked as, what a 404 means; homes of nobody
    ("dbfs", True, {"a"}, WHOLE, {"a": ("a", NOT_READABLE)}, []),
    ("dbfs", False, {"A"}, WHOLE, {"a": ("A", NOT_READABLE)}, []),
    ("dbfs", True, {"b"}, WHOLE, {"a": (None, "")}, ["b"]),
    ("dbfs", True, {"b"}, SHORT, {"a": ("a", "")}, ["b"]),
    ("dbfs", True, set(), UNKNOWN, {"a": ("a", NOT_LISTED)}, []),
    ("dbfs", True, {"A", "aA"}, WHOLE, {"aa": ("aA", NOT_READABLE)}, ["A"]),
    ("dbfs", True, {"AA", "aA"}, WHOLE, {"aa": (None, ALIKE)}, ["AA", "aA"]),
    ("dbfs", True, {"AA", "aA"}, WHOLE, {"aa": ("aA", NOT_READABLE), "AA": ("AA", NOT_READABLE)}, []),
    ("dbfs", True, {"AA"}, WHOLE, {"aa": ALIKE_TO_TWO, "aA": ALIKE_TO_TWO}, ["AA"]),
    ("dbfs", True, {"AA"}, WHOLE, {"aa": (None, ""), "AA": ("AA", NOT_READABLE)}, []),
    ("workspace", True, {"A"}, WHOLE, {"a": ("A", NOT_READABLE)}, []),
    ("workspace", True, {"b"}, WHOLE, {"a": ("a", "")}, ["b"]),
    ("workspace", True, set(), UNKNOWN, {"a": ("a", NOT_LISTED)}, []),
    ("workspace", False, {"A"}, WHOLE, {"a": ("a", NOT_READABLE)}, ["A"]),
])  # fmt: skip
def test_each_name_gets_its_home(file_system, admin, there, state, expected, left):
    homes, nobodys = assign_homes(expected, {file_system: UsersFolder(frozenset(there), state)}, admin)
    assert nobodys == {file_system: set(left)}
    for name, (asked, error) in expected.items():
        home = Home(f"/Users/{asked}", asked in there, error) if asked else Home(None, problem=error)
        assert homes[name] == {file_system: home}


@pytest.fixture
def inventory_of(scan):
    """inventory_of(server, *words, code=0): the rows of the CSV by user name, and what was said."""

    def run(server, *words, code=0):
        done = scan(server, *words)
        assert done.code == code, done
        return {row["username"]: row for row in csv.DictReader(io.StringIO(done.out, newline=""))}, done.err

    return run


def users_fault(names, files=(), **more):
    """A DBFS whose /Users has but these directories."""
    body = json.dumps({"files": [*files, *(dbfs_directory(f"/Users/{name}") for name in names)]})
    return Fault("body", body=body, api="dbfs", path="/Users", **more)


@pytest.fixture
def users():
    """Ann has both homes, Ben none; nobody else is a user."""
    with small_server([ANN]) as server:
        server.add_user(BEN)
        yield server


def test_nothing_is_asked_for_that_is_not_there_and_who_has_no_home_is_told(inventory_of, users, nobody):
    rows, said = inventory_of(users, ANN, BEN)
    assert sum(number for (api, _), number in users.requests.items() if api == "dbfs") == 4 + 2
    assert [row["status"] for row in rows.values()] == ["success", "empty"]
    assert "homes: 1 in DBFS, 1 in Workspace" in said
    assert f"no home anywhere: 1 user, the first is {BEN}" in said
    assert "warning" not in said and "Not all could" not in said
    assert "warning: none of these users has a home" in inventory_of(users, BEN)[1]
    assert "none of these" not in inventory_of(nobody, "--all-homes", "--workspace-only")[1]  # there are none


@pytest.mark.parametrize(("more", "homes"), [
    ({"admin": False}, "0 in DBFS, 1 in Workspace"),  # a name that is nobody's, and not an admin's login
    ({"faults": [Fault("403", path="/Users")]}, "0 in DBFS, 1 in Workspace"),
    ({"faults": [Fault("403", api="dbfs")]}, "0 in DBFS, 1 in Workspace"),
    ({"faults": [Fault("403", path=f"/Users/{BEN}")]}, "1 in DBFS, 1 in Workspace"),  # not readable, but listed
])  # fmt: skip
def test_a_home_that_nobody_has_seen_is_not_counted_as_one(inventory_of, more, homes):
    home = f"/Users/{BEN}"
    with FakeDatabricks(users=[BEN], shape="none", **more) as server:
        server.add_tree("workspace", {home: [workspace_object(f"{home}/n")]})
        server.add_tree("dbfs", {home: [dbfs_file(f"{home}/f", 1)]} if homes[0] == "1" else {})
        _, said = inventory_of(server, BEN, "ghost@example.com", code=1)
    assert f"homes: {homes}" in said and "Not all could" in said


@pytest.mark.parametrize(("fault", "counts"), [
    (users_fault([ANN], times=1), ["6", "6"]),
    (users_fault([ANN]), ["6", "2"]),  # what is short twice alike is believed
    (users_fault([BEN], [dbfs_file(HOME, 7)]), ["6", "6"]),  # a home may be a file
    (users_fault([]), ["6", "6"]),  # but not that nobody has a home
    (Fault("body", body="{}", api="dbfs", path="/Users"), ["6", "6"]),
    (Fault("403", api="dbfs", path="/Users", times=1), ["6", "6"]),
    (Fault("404", api="dbfs", path="/Users", times=1), ["6", "6"]),
    (Fault("404", api="dbfs", path="/Users"), ["2", "2"]),
])  # fmt: skip
def test_a_listing_of_users_that_is_short_loses_nobody(inventory_of, fault, counts):
    with small_server([ANN, BEN], faults=[fault]) as server:
        rows, _ = inventory_of(server, ANN, BEN)
    assert [(row["file_count"], row["status"]) for row in rows.values()] == [(count, "success") for count in counts]


@pytest.mark.parametrize("api", FILE_SYSTEMS)
def test_where_users_cannot_be_listed_a_home_not_found_is_an_error(inventory_of, api):
    """Whatever it answers, the Workspace is never left out; nor does it end a run that cannot ask Me, either."""
    message = "Public DBFS root is disabled. Access is denied on path: /Users" if api == "workspace" else None
    with small_server([ANN, BEN]) as server:
        server.change(faults=[Fault("403", api=api, path="/Users", message=message), Fault("403", path="Me")])
        rows, said = inventory_of(server, ANN, BEN.upper(), code=1)
    assert (rows[ANN]["status"], rows[ANN]["file_source"]) == ("success", "both")
    assert NOT_LISTED in rows[BEN.upper()]["error"]
    assert said.count("/Users cannot be listed, homes in other letter case are not found") == 1
    assert "left out" not in said


@pytest.mark.parametrize(("kind", "words"), [
    ("403", ()), ("404", ()), ("401", ()), ("403", ("--dbfs-only",)), ("400", ("--workspace-only",)),
])  # fmt: skip
def test_a_login_that_is_refused_everything_ends_the_run(scan, users, kind, words):
    users.change(faults=[Fault(kind)])
    done = scan(users, ANN, *words)
    assert (done.code, done.out, "Traceback" in done.err) == (2, "", False)
    assert users.total_requests < 8


def test_a_dbfs_without_homes_is_no_login_that_is_refused(inventory_of, users):
    users.change(faults=[Fault("404", api="dbfs"), Fault("404", path="Me")])
    assert inventory_of(users, ANN, "--dbfs-only")[0][ANN]["status"] == "empty"


@pytest.mark.parametrize("more", [
    {"admin": False}, {"groups": None}, {"faults": [Fault("403", path="Me")]},
    {"faults": [Fault("503", path="Me")]},
], ids=["another group", "no groups", "403", "503"])  # fmt: skip
def test_who_is_not_shown_as_admin_is_warned_once_and_a_home_not_found_is_an_error(clock, caplog, more):
    with small_server([BEN, ANN, CAL], **more) as server:  # the first is the caller
        server.add_user(DAN)
        results = crawl(server, clock, [ANN, BEN, DAN])
        helpers.assert_truth(results[BEN], server.truth(BEN))
    assert results[DAN].status == "error"
    assert results[DAN].error.endswith(NOT_READABLE)
    told = "could not be found out" if "faults" in more else "is not in the group admins"
    assert (caplog.text.count("admins"), caplog.text.count(told)) == (1, 1)
    if "admin" in more:  # who does not see others' homes
        assert (results[ANN].status, figures(results[ANN])) == ("partial", (4, 128, 4, 0, 0, 0))


def test_where_dbfs_is_disabled_rows_are_complete_without_it_and_it_is_said_once(clock, caplog, users):
    users.change(dbfs_disabled=True)
    results = crawl(users, clock)
    found = {name: (result.status, result.dbfs, result.file_count) for name, result in results.items()}
    assert found == {ANN: ("success", None, 2), BEN: ("empty", None, 0)}
    assert not any(api == "dbfs" for api, _ in helpers.listings(users))
    assert caplog.text.count("DBFS is left out for all users: 403 PERMISSION_DENIED: Public DBFS root") == 1
    with pytest.raises(InventoryError, match="DBFS"):
        scan_dbfs(ANN, config_of(users))


def test_dbfs_that_is_disabled_for_one_request_is_a_failure(clock, caplog):
    """Of the two that list /Users, or in mid-run."""
    fault = {"api": "dbfs", "message": "Public DBFS root is disabled. Access is denied on path"}
    with small_server() as server:
        server.change(faults=[Fault("403", path="/Users", times=1, **fault), Fault("403", path=f"{HOME}/b", **fault)])
        result = crawl(server, clock)[ANN]
    assert (result.status, result.dbfs.files) == ("partial", 2)
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize(("usernames", "options", "error", "says"), [
    *((names, {}, TypeError, "list of names") for names in (ANN, ANN.encode(), pandas.DataFrame({"username": [ANN]}))),
    *(([ANN, cell], {}, ValueError, "it is no text") for cell in (math.nan, None, ANN.encode(), 7, [ANN])),
    *(([ANN], {"rate": rate}, ValueError, "is to be from 1 to 1000") for rate in (0, 0.5, 1001)),
    *(([ANN], {"file_systems": names}, ValueError, "is to be from 1") for names in ((), "dbfs")),
    *(([ANN], {"threads": threads}, ValueError, "threads from 1 to 64") for threads in (0, 65)),
])  # fmt: skip
def test_what_is_no_list_of_names_or_no_option_is_refused(users, usernames, options, error, says):
    with pytest.raises(error, match=says):
        next(scan_users(usernames, config_of(users), **options))
    assert users.total_requests == 0


def test_names_may_come_from_anywhere(users):
    for usernames in (pandas.Series([ANN, ANN]), {ANN: 1}, iter([ANN])):
        assert [result.status for result in scan_users(usernames, config_of(users))] == ["success"]
    assert next(scan_users([ANN.upper()], config_of(users), everyone=[ANN])).status == "empty"  # Ann's home is Ann's


UUID, GHOST = "1a2b3c4d-0000-1111-2222-333344445555", "an@example.com"
NOBODY = f"dbfs:/Users/{GHOST}: no user of this workspace has this name, and no home in DBFS or the Workspace"


def scim_requests(server):
    return sum(number for (api, path), number in server.requests.items() if api == "scim" and path != "Me")


def test_a_name_that_nobody_has_is_an_error_and_costs_no_request(inventory_of, users):
    names = [ANN, BEN, BEN.upper(), GHOST, UUID]
    spoilt = ["j?rg@example.com", "j├Ârg@example.com", "j\ufffdrg@example.com"]  # by PowerShell's >
    helpers.write_users([*names, *spoilt])
    rows, said = inventory_of(users, "--users-file", "users.txt", code=1)
    assert [rows[name]["status"] for name in names] == ["success", "empty", "empty", "error", "empty"]
    assert rows[GHOST]["error"] == f"{NOBODY}; the most similar one that has a home is {ANN}"
    assert [name for name in rows if "did PowerShell's > write the users file?" in rows[name]["error"]] == spoilt
    assert not users.requests["workspace", f"/Users/{GHOST}"]
    assert (scim_requests(users), said.count("among the workspace's users for 6 names")) == (2, 1)  # two pages
    assert not Path(".checkpoint_progress.json").exists()  # another scan would find no more


def test_users_are_listed_only_for_names_without_a_home(inventory_of, users):
    inventory_of(users, ANN, UUID, ANN.upper())
    assert scim_requests(users) == 0
    users.change(faults=[Fault("403", path=HOME)])
    for expected in (2, 0):  # the first time; then Ben's row is kept
        inventory_of(users, "--resume", "--checkpoint", "progress", ANN, BEN, code=1)
        assert scim_requests(users) == expected
    users.change(faults=[Fault("401", api="scim", path=1)])
    inventory_of(users, GHOST, code=2)


@pytest.mark.parametrize(("change", "why"), [
    ({"faults": [Fault("403", api="scim", path=1)]}, "403"),
    ({"faults": [Fault("500", api="scim", path=1)]}, "500"),
    ({"total_results_offset": 1}, "some are missing"),
    ({"faults": [Fault("body", body='{"totalResults": 0}', api="scim", path=1)]}, "no users are shown"),
    ({"faults": [Fault("body", body='{"Resources": [{"id": "1"}]}', api="scim", path=1),
                 Fault("body", api="scim", path=2, body='{"totalResults": 1}')]}, "without their names"),
    ({"faults": [Fault("body", body='{"Resources": [{"id": "8"}]}', api="scim", path=3)]}, "not all are shown"),
])  # fmt: skip
def test_where_users_cannot_be_told_a_name_without_a_home_is_empty(users, clock, caplog, change, why):
    users.change(**change)
    assert crawl(users, clock, [GHOST, ANN])[GHOST].status == "empty"
    assert [line for line in caplog.text.splitlines() if "which names are no user's" in line and why in line]


def test_an_empty_row_that_nobody_could_tell_anything_about_is_not_kept(inventory_of, users):
    words = ["--resume", "--checkpoint", "progress", GHOST, BEN, "cy@example.com", ANN]
    users.change(faults=[Fault("403", path=HOME), Fault("403", api="scim", path=1)])
    users.add_tree("workspace", {"/Users/cy@example.com": []})
    for again in (False, True):
        rows, said = inventory_of(users, *words, code=1)
        assert (rows[GHOST]["status"], "to scan again" in said) == ("empty", False)
        assert users.requests["workspace", f"/Users/{GHOST}"] == 1 - again
    users.change(faults=[Fault("403", path=HOME)])
    rows, said = inventory_of(users, *words, code=1)
    assert rows[GHOST]["error"].startswith(NOBODY)
    assert "2 complete users to scan again" in said  # Ben has no home, too


@pytest.mark.parametrize(("fault", "tree", "status", "error"), [
    (Fault("body", body="{}", api="dbfs", path="/Users"), {}, "error", NOBODY),
    (Fault("body", body="{}", api="dbfs", path="/Users"), {f"/Users/{GHOST}": []}, "empty", ""),
    (Fault("403", path="/Users"), {}, "error", f"dbfs:/Users/{GHOST}: {NOT_LISTED} (and 1 more)"),
])  # fmt: skip
def test_where_a_listing_is_not_whole_a_name_that_nobody_has_is_asked_for(users, clock, fault, tree, status, error):
    users.change(faults=[fault])
    users.add_tree("dbfs", tree)
    result = crawl(users, clock, [GHOST])[GHOST]
    assert (result.status, result.error.partition(";")[0]) == (status, error)
    assert users.requests["dbfs", f"/Users/{GHOST}"] == users.requests["workspace", f"/Users/{GHOST}"] == 1


def test_similar_names_are_told_for_the_first_and_as_long_as_it_takes_a_second(users, clock):
    names = [f"ann{number}@other.example" for number in range(30)]
    told = f"in the Workspace; the most similar one that has a home is {ANN}"
    results = crawl(users, clock, names, file_systems=("workspace",))
    assert [results[name].error.endswith(told) for name in names] == [True] * 20 + [False] * 10

    class Ticking(helpers.FakeClock):
        def __call__(self):
            self.now += 0.1
            return self.now

    assert 5 < sum("similar" in result.error for result in crawl(users, Ticking(), names).values()) < 15


ODD = 'a, "b"\r\n'


def homes_server(**more):
    """Homes of nobody: one in both file systems, others in other letter case, one of an odd name."""
    server = FakeDatabricks(users=[ANN], shape="none", **more)
    server.add_tree("dbfs", {
        f"/Users/{name}": [dbfs_file(f"/Users/{name}/x", 5)] for name in (ANN, "both", "Case", "two", "TWO")
    })  # fmt: skip
    server.add_tree("workspace", {
        f"/Users/{name}": [workspace_object(f"/Users/{name}/n")] for name in (ANN, "both", "case", "two", ODD)
    })  # fmt: skip
    return server


def test_all_homes_get_rows(inventory_of):
    with homes_server() as server:
        _, without = inventory_of(server, ANN)
        rows, said = inventory_of(server, "--all-homes", ANN)
        all_rows, _ = inventory_of(server, "--all-homes")
    assert "other homes under /Users: 4 in DBFS, 4 in Workspace; --all-homes" in without
    assert "1 user, 6 homes of nobody: 7 success" in said
    assert '  a, "b"??\n' in said
    assert "other homes" not in said
    assert list(rows) == [ANN, "Case", "TWO", ODD, "both", "case", "two"]
    assert list(all_rows.items()) == sorted(rows.items())
    counts = {name: row["file_count"] for name, row in rows.items()}
    assert counts == {ANN: "2", "both": "2", "two": "2", "Case": "1", "case": "1", "TWO": "1", ODD: "1"}


@pytest.mark.parametrize(("more", "others"), [
    ({"dbfs_disabled": True}, [ODD, "both", "case", "two"]),
    ({"faults": [Fault("404", api="dbfs", path="/Users")]}, [ODD, "both", "case", "two"]),
    ({"faults": [Fault("body", body="{}", api="workspace", path="/Users")]}, ["Case", "TWO", "both", "two"]),
])  # fmt: skip
def test_all_homes_goes_with_one_file_system(inventory_of, more, others):
    with homes_server(**more) as server:
        rows, _ = inventory_of(server, "--all-homes", ANN)
    assert list(rows) == [ANN, *others]


@pytest.mark.parametrize(("api", "body", "more"), [
    ("dbfs", {}, {}), ("dbfs", {"files": [dbfs_directory(HOME), dbfs_file("/Users/a/b", 3)]}, {}),
    ("workspace", {"objects": [workspace_object(HOME, "DIRECTORY"), workspace_object("/Users/a/b")]}, {}),
    ("workspace", {"objects": [workspace_object(HOME, "DIRECTORY"), workspace_object("/Users/..", "DIRECTORY")]}, {}),
    ("workspace", {}, {"status": 403}), ("dbfs", {}, {"status": 403, "times": 1}),
    ("dbfs", {"files": [dbfs_directory("/Users/x")]}, {"times": 1}),
])  # fmt: skip
def test_all_homes_needs_whole_listings(inventory_of, api, body, more):
    """Neither empty, nor refused, nor with an odd name, which is no home, and both alike."""
    with homes_server(faults=[Fault("body", body=json.dumps(body), api=api, path="/Users", **more)]) as server:
        rows, said = inventory_of(server, "--all-homes", ANN, code=2)
    assert rows == {}
    assert f"{api}:/Users could not be listed twice alike" in said


def test_a_home_of_nobody_is_one_that_has_to_be_there(inventory_of):
    """One that then answers 404 is an error; a row kept from before it was there is scanned again."""
    with homes_server(faults=[Fault("404", path="/Users/both"), Fault("403", path=HOME)]) as server:
        server.add_user(BEN)
        words = ["--resume", "--checkpoint", "progress"]
        before, _ = inventory_of(server, *words, ANN, BEN, code=1)
        server.add_tree("dbfs", {f"/Users/{BEN}": [dbfs_file(f"/Users/{BEN}/new", 9)]})
        after, _ = inventory_of(server, *words, "--all-homes", code=1)
    assert [rows[BEN]["total_size"] for rows in (before, after)] == ["0", "9"]
    assert "/Users/both: not found, or not readable with this token (and 1 more)" in after["both"]["error"]


def test_what_is_saved_is_told_though_the_homes_are_not_known_yet(inventory_of):
    with homes_server(faults=[Fault("403", path=HOME)]) as server:
        inventory_of(server, "--all-homes", code=1)
        server.change(faults=[Fault("401")])
        for words, saved in ((["--all-homes"], "7 of 7"), (["--all-homes", BEN], "7 of 8"), ([ANN, BEN], "1 of 2")):
            _, said = inventory_of(server, "--resume", "--checkpoint", helpers.NAME, *words, code=2)
            assert f"{saved} users saved in .checkpoint_progress.json" in said


def test_a_kept_row_whose_home_is_another_now_or_cannot_be_told_is_scanned_again(inventory_of):
    titled = ANN.title()
    with small_server([ANN, "refused", "moved"], faults=[Fault("403", path="/Users/refused")]) as server:
        server.add_user(BEN)
        server.add_user(CAL)
        words = ["--resume", "--checkpoint", "progress", titled, "refused", "moved", BEN, CAL]
        before, _ = inventory_of(server, *words, code=1)
        del server.world.explicit["workspace"]["/Users/moved"]
        for name in (titled, CAL.upper(), CAL.title(), BEN):
            server.add_tree("dbfs", {f"/Users/{name}": [dbfs_file(f"/Users/{name}/new", 9)]})
        server.change(faults=[])
        after, _ = inventory_of(server, *words, code=1)
    assert [rows[titled]["total_size"] for rows in (before, after)] == ["20128", "20009"]
    assert [rows["moved"]["file_source"] for rows in (before, after)] == ["both", "dbfs"]
    assert [rows[BEN]["total_size"] for rows in (before, after)] == ["0", "9"]
    assert [rows[CAL]["status"] for rows in (before, after)] == ["empty", "error"]
    assert "differ in letter case alone" in after[CAL]["error"]


def test_a_kept_row_is_scanned_again_where_dbfs_is_there_now(inventory_of):
    with small_server([ANN, BEN], dbfs_disabled=True, faults=[Fault("403", path=f"/Users/{BEN}")]) as server:
        for disabled, count in ((True, "2"), (False, "6")):
            server.change(dbfs_disabled=disabled)
            rows, _ = inventory_of(server, "--resume", "--checkpoint", "progress", ANN, BEN, code=1)
            assert rows[ANN]["file_count"] == count
