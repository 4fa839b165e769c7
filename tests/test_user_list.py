"""databricks_user_list.py: SPEC section 5. Real HTTP, the command in this process."""

import csv
import json
import re
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings, strategies

import databricks_user_files_simple
import databricks_user_list
from databricks_user_files_simple import FILE_SYSTEMS, read_usernames
from tests.fake_databricks import FakeDatabricks, Fault, dbfs_file, workspace_object
from tests.helpers import USER_LIST

SECRET = "dapi-secret-0123456789"
HEADER = "username,display_name,active,user_id\n"


@pytest.fixture
def at(monkeypatch):
    """`with at(server)` starts it and logs in there through the environment."""

    @contextmanager
    def log_in(server):
        with server:
            monkeypatch.setenv("DATABRICKS_HOST", server.url)
            monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)
            yield server

    return log_in


def run(*words):
    """Exit code and rows of the command, which writes to users.csv; no rows where there is no file."""
    code = databricks_user_list.main([*words, "-o", "users.csv"])
    try:
        with open("users.csv", encoding="utf-8", newline="") as file:
            return code, list(csv.DictReader(file))
    except FileNotFoundError:
        return code, None


def names(rows):
    return [row["username"] for row in rows]


def page(*users, total=None):
    """A fault that answers with this page."""
    body = {"totalResults": len(users) if total is None else total, "Resources": list(users)}
    return Fault("body", api="scim", path=1, body=json.dumps(body))


@pytest.fixture
def queries(monkeypatch):
    """The queries that the server was asked for users, as dictionaries."""
    asked = []
    real = FakeDatabricks.scim_page
    monkeypatch.setattr(
        FakeDatabricks,
        "scim_page",
        lambda self, start, query, *kind: asked.append(dict(query)) or real(self, start, query, *kind),
    )
    return asked


@pytest.mark.parametrize(("users", "cap"), [
    (0, 100), (1, 100), (99, 100), (100, 100), (101, 100), (250, 7), (2500, 1000), (2500, 5000),
])  # fmt: skip
def test_every_user_is_listed_in_the_services_order(at, users, cap):
    with at(FakeDatabricks(users=users, scim_page_cap=cap)) as server:
        code, rows = run()
        assert code == 0
        assert names(rows) == server.user_names
        assert set(server.statuses) == {200}


def test_pages_are_advanced_by_what_came_until_one_is_empty(at):
    with at(FakeDatabricks(users=25, scim_page_cap=10)) as server:
        run()
        assert sorted(path for _, path in server.requests) == [1, 11, 21, 26]


def test_only_the_attributes_needed_are_asked_for(at, queries):
    with at(FakeDatabricks(users=3)):
        run()
    assert {query["attributes"] for query in queries} == {"id,userName,displayName,active"}
    assert all("groups" not in query["attributes"] for query in queries)


def test_users_on_two_pages_are_listed_once(at):
    with at(FakeDatabricks(users=45, scim_page_cap=10, scim_duplicates=True)) as server:
        code, rows = run()
        assert code == 0
        assert names(rows) == server.user_names


def test_a_service_that_repeats_one_page_does_not_hang(at):
    users = [{"id": str(number), "userName": f"u{number}"} for number in range(5)]
    body = json.dumps({"totalResults": 5, "Resources": users})
    with at(FakeDatabricks(users=0, faults=[Fault("body", api="scim", body=body)])) as server:
        code, rows = run()
        assert code == 0
        assert len(rows) == 5
        assert server.total_requests < 5


def test_fewer_users_than_the_service_says_are_listed_again_written_and_warned_about(at, caplog, capsys):
    with at(FakeDatabricks(users=25, total_results_offset=3)) as server:
        code, rows = run()
        assert code == 1
        assert names(rows) == server.user_names
        assert server.requests["scim", 1] == 2
    assert "3 users" in capsys.readouterr().err


def test_a_second_listing_that_is_complete_is_the_result(at):
    first = [{"id": "4000000000000000", "userName": "only@example.com"}]
    fault = page(*first, total=5)
    fault.times = 1
    empty = Fault("body", api="scim", path=2, times=1, body=json.dumps({"totalResults": 5}))
    with at(FakeDatabricks(users=5, faults=[fault, empty])) as server:
        code, rows = run()
        assert code == 0
        assert names(rows) == server.user_names


def test_more_users_than_the_service_says_are_fine(at):
    with at(FakeDatabricks(users=25, total_results_offset=-10)):
        code, rows = run()
        assert (code, len(rows)) == (0, 25)


@pytest.mark.parametrize("fault", [
    Fault("400", path=11), Fault("403", path=11), Fault("404", path=11), Fault("redirect", path=11),
])  # fmt: skip
def test_a_page_that_fails_fails_the_command(at, fault, capsys):
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[fault])):
        assert run() == (1, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 3


@pytest.mark.parametrize("kind", ["500", "html", "truncated", "429", "reset"])
def test_a_page_that_fails_for_good_fails_the_command_after_retries(at, kind, monkeypatch):
    monkeypatch.setattr(databricks_user_list, "DatabricksClient", quick_client)
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[Fault(kind, path=11)])) as server:
        assert run() == (1, None)
        assert server.requests["scim", 11] == 5


def quick_client(config, *arguments, **keywords):
    """The real client; its sleeps take no time."""
    now = [0.0]
    return real_client(config, *arguments, **keywords, clock=lambda: now[0],
                       sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))  # fmt: skip


real_client = databricks_user_list.DatabricksClient


@pytest.mark.parametrize("kind", ["500", "html", "truncated", "429", "empty_429", "reset", "truncated_json"])
def test_a_page_that_fails_at_first_is_asked_for_again(at, kind, monkeypatch):
    monkeypatch.setattr(databricks_user_list, "DatabricksClient", quick_client)
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[Fault(kind, path=11, times=3)])) as server:
        code, rows = run()
        assert code == 0
        assert names(rows) == server.user_names


def test_an_older_file_stays_when_a_page_fails(at, tmp_path):
    (tmp_path / "users.csv").write_text(HEADER + "old@example.com,,,\n")
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[Fault("400", path=11)])):
        code, rows = run()
    assert code == 1
    assert names(rows) == ["old@example.com"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "users.csv"]


@pytest.mark.parametrize(("most", "cap", "asked"), [
    (1, 100, [(1, 1)]), (5, 100, [(1, 5)]), (15, 10, [(1, 15), (11, 5)]), (100, 100, [(1, 100)]),
    (20, 10, [(1, 20), (11, 10)]),
])  # fmt: skip
def test_max_users_asks_for_no_more_than_it_needs(at, queries, most, cap, asked):
    with at(FakeDatabricks(users=300, scim_page_cap=cap)) as server:
        code, rows = run("--max-users", str(most))
        assert code == 0
        assert names(rows) == server.user_names[:most]
    assert [(int(query["startIndex"]), int(query["count"])) for query in queries] == asked


def test_max_users_above_the_number_of_users_is_fine(at):
    with at(FakeDatabricks(users=7)):
        code, rows = run("--max-users", "100")
    assert (code, len(rows)) == (0, 7)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "", "\u00b2", "99999999999999999999999x"])
def test_max_users_has_to_be_a_number_above_0(at, number, capsys):
    with at(FakeDatabricks(users=7)) as server:
        assert run("--max-users", number) == (2, None)
        assert not server.total_requests
    assert "--max-users" in capsys.readouterr().err


def test_active_only_leaves_deactivated_users_out(at):
    people = [{"userName": f"u{number}", "active": number % 3 != 0} for number in range(30)]
    active = [person["userName"] for person in people if person["active"]]
    with at(FakeDatabricks(users=people, scim_page_cap=7)):
        assert {row["active"] for row in run("--active-only")[1]} == {"true"}
        assert names(run("--active-only")[1]) == active
        assert names(run("--active-only", "--max-users", "4")[1]) == active[:4]


def test_users_shown_without_their_names_are_an_error_that_says_why(at, capsys):
    with at(FakeDatabricks(users=5, admin=False)):
        assert run() == (2, None)
    assert "admin" in capsys.readouterr().err


def test_the_files_bytes(at, tmp_path):
    people = [
        {"userName": "a@x.com", "displayName": 'Zo\u00eb, "Z"', "active": True, "id": "1"},
        {"userName": "b@x.com", "displayName": "", "active": False, "id": "2"},
    ]
    with at(FakeDatabricks(users=people)):
        assert run()[0] == 0
    expected = HEADER + 'a@x.com,"Zo\u00eb, ""Z""",true,1\nb@x.com,,false,2\n'
    assert (tmp_path / "users.csv").read_bytes() == expected.encode()


def test_a_missing_display_name_and_active_are_empty_cells(at):
    with at(FakeDatabricks(users=0, faults=[page({"id": "1", "userName": "a@x.com"}, {"id": "2", "userName": "b"})])):
        rows = run()[1]
    assert [list(row.values()) for row in rows] == [["a@x.com", "", "", "1"], ["b", "", "", "2"]]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_display_name_that_a_spreadsheet_would_run_is_prefixed(at, start):
    name = f"{start}cmd()"
    with at(FakeDatabricks(users=[{"userName": f"{start}u", "displayName": name}])):
        row = run()[1][0]
    assert row["display_name"] == f"'{name}".replace("\r", " ")  # an unquoted \r would end the row
    assert row["username"] == f"{start}u"  # verbatim, because the scanner reads it


@pytest.mark.parametrize("start", ["\t=", "\r=", "\n=", "\r\n=", "\t", "\r", " ="])
def test_no_white_space_hides_a_formula(at, start):
    with at(FakeDatabricks(users=[{"userName": "u", "displayName": f"{start}cmd()"}, "next"])):
        rows = run()[1]
    assert names(rows) == ["u", "next"]
    assert not re.match(r"[=+@\t\r\n-]", rows[0]["display_name"])


@pytest.mark.parametrize("name", [
    "a,b@x.com", 'a"b', "\u00e9@x.com", "e\u0301", "\U0001f600", "a b", "o'neil", "a;b", " a ", "#a", "a\nb",
])  # fmt: skip
def test_odd_names_come_back_as_they_are(at, name):
    with at(FakeDatabricks(users=[name])):
        assert names(run()[1]) == [name]


def test_the_scanner_reads_the_list(at):
    with at(FakeDatabricks(users=60)) as server:
        run()
        assert read_usernames([], "users.csv") == server.user_names


@pytest.mark.parametrize("words", [(), ("-o", "-"), ("--output", "-")])
def test_stdout_has_the_csv_alone(command, login, words):
    with FakeDatabricks(users=[{"userName": "\u00e9@x.com", "displayName": "E", "active": True, "id": "1"}]) as server:
        result = command(USER_LIST, *words, env={**login(server), "PYTHONIOENCODING": "ascii"})
    assert result.code == 0
    assert result.out == HEADER + "\u00e9@x.com,E,true,1\n"
    assert "Workspace http://127.0.0.1" in result.err.splitlines()[0]


@pytest.mark.parametrize("output", ["missing/users.csv", ".", "home", "file/users.csv"])
def test_an_output_that_cannot_be_written_is_found_out_before_the_listing(at, tmp_path, output, capsys):
    (tmp_path / "file").write_text("")
    with at(FakeDatabricks(users=3)) as server:
        assert databricks_user_list.main(["-o", output]) == 2
        assert not server.total_requests
    error = capsys.readouterr().err
    assert output in error
    assert len(error.splitlines()) <= 3


def test_list_profiles_shows_no_secret(tmp_path, capsys):
    (tmp_path / "home" / ".databrickscfg").write_text(
        f"[DEFAULT]\n[prod]\nhost=https://p.net\ntoken={SECRET}\nclient_secret={SECRET}\n[m2m]\nhost=https://m.net\n"
        f"client_id=id\nclient_secret={SECRET}\n[cli]\nhost=https://c.net\nauth_type=databricks-cli\n"
        "[__settings__]\ndefault_profile=m2m\n"
    )  # fmt: skip
    assert databricks_user_list.main(["--list-profiles"]) == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    assert list(lines) == ["prod", "m2m", "cli"]
    assert "https://p.net" in lines["prod"]
    assert "databricks-cli" in lines["cli"]
    assert [name for name, line in lines.items() if "default" in line] == ["m2m"]


def test_list_profiles_shows_no_token_in_a_pasted_host(tmp_path, capsys):
    (tmp_path / "home" / ".databrickscfg").write_text(f"[x]\nhost=https://token:{SECRET}@d.net/?token={SECRET}\n")
    assert databricks_user_list.main(["--list-profiles"]) == 0
    shown = capsys.readouterr().out
    assert "d.net" in shown
    assert SECRET not in shown


def test_list_profiles_without_a_file_is_an_error_of_a_line(capsys):
    assert databricks_user_list.main(["--list-profiles"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("settings", "code"), [
    ({"token": "another"}, 2), ({"token": "another", "bad_token": 401}, 2), ({"faults": [Fault("403")]}, 1),
])  # fmt: skip
def test_a_refused_login_ends_with_exit_2_and_a_refused_request_with_1(command, settings, code):
    with FakeDatabricks(users=3, **settings) as server:
        result = command(USER_LIST, "-o", "users.csv",
                         env={"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": "dapi-fake-token"})  # fmt: skip
        assert result.code == code, result
        assert server.total_requests == 1
    assert "Traceback" not in result.err
    assert "dapi-fake-token" not in result.err


@pytest.mark.parametrize("body", [
    "[]", "null", '{"Resources": {}}', '{"Resources": ["a"]}', '{"Resources": null}', "{}", '{"totalResults": "many"}',
    '{"totalResults": 3, "Resources": 3}', '{"a": 1}',
])  # fmt: skip
def test_a_page_that_is_none_fails_the_command(at, body, monkeypatch):
    monkeypatch.setattr(databricks_user_list, "DatabricksClient", quick_client)
    with at(FakeDatabricks(users=3, faults=[Fault("body", api="scim", body=body)])) as server:
        assert run() == (1, None)
        assert server.total_requests == 5


@pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines", "two\rlines", 'a "q"', "a,b", "a;b", '"', "\x00x"])
def test_any_display_name_stays_in_its_row(at, text):
    with at(FakeDatabricks(users=[{"userName": "a", "displayName": text}, "next"])):
        rows = run()[1]
    assert names(rows) == ["a", "next"]
    assert rows[0]["active"] in ("true", "false")


# --all-homes


NOBODY, ROBOT = "left@example.com", "5e3c9a10-0000-4000-8000-0000000000ab"


def home_server(users=(), homes=(), **settings):
    """A workspace with these homes in each file system: (dbfs homes, workspace homes)."""
    server = FakeDatabricks(users=list(users), shape="none", **settings)
    for home in homes[0]:
        server.add_tree("dbfs", {f"/Users/{home}": [dbfs_file(f"/Users/{home}/f", 7)]})
    for home in homes[1]:
        server.add_tree("workspace", {f"/Users/{home}": [workspace_object(f"/Users/{home}/n")]})
    return server


def kinds(rows):
    return [(row["username"], row["kind"]) for row in rows]


def test_all_homes_adds_service_principals_and_homes_of_nobody(at, capsys):
    server = FakeDatabricks(users=45, service_principals=25, unlisted_homes=12, scim_page_cap=10)
    with at(server):
        code, rows = run("--all-homes")
        assert code == 0
        homes = server.workspace
        principals = [homes.owners[index] for index in homes.indexes["service_principal"]]
        unlisted = [homes.home_name(index) for index in homes.indexes["unlisted"]]
        unlisted = [name for name in unlisted if any(homes.has_home(name_of, name) for name_of in FILE_SYSTEMS)]
        assert 0 < len(unlisted) < 12
        assert kinds(rows) == [*((name, "user") for name in server.user_names),
                               *((name, "service_principal") for name in principals),
                               *((name, "unlisted") for name in sorted(unlisted))]  # fmt: skip
        assert [server.requests["scim", f"ServicePrincipals {start}"] for start in (1, 11, 21, 26)] == [1] * 4
    assert list(rows[0])[-1] == "kind"
    assert rows[45]["active"] in ("true", "false")
    assert rows[-1] == {"username": max(unlisted), "display_name": "", "active": "", "user_id": "",
                        "kind": "unlisted"}  # fmt: skip
    assert f"45 users, 25 service principals, {len(unlisted)} unlisted homes" in capsys.readouterr().err


def test_without_the_option_there_is_no_such_column_and_nothing_else_is_asked(at, tmp_path):
    with at(FakeDatabricks(users=3, service_principals=3, unlisted_homes=3)) as server:
        assert len(run()[1]) == 3
        assert {api for api, _ in server.requests} == {"scim"}
        assert not any(str(path).startswith("Service") for _, path in server.requests)
    assert (tmp_path / "users.csv").read_text().startswith(HEADER)


def scanned(server):
    """What the scanner finds for the users in users.csv: rows, and how often each home was listed with success."""
    server.counts_reset()
    code = databricks_user_files_simple.main(["--users-file", "users.csv", "-o", "inventory.csv"])
    with open("inventory.csv", encoding="utf-8", newline="") as file:
        rows = {row["username"]: row for row in csv.DictReader(file)}
    listed = {(api, path): count for (api, path, status), count in server.counts.path_statuses.items()
              if status == 200 and str(path).startswith("/Users/")}  # fmt: skip
    return code, rows, listed


def test_the_scanner_takes_all_homes(at):
    with at(FakeDatabricks(users=8, service_principals=4, unlisted_homes=4)) as server:
        run("--all-homes")
        code, rows, _ = scanned(server)
        assert code == 0
        truths = [server.truth(name) for name in server.workspace.owners]
        assert sum(int(row["file_count"]) for row in rows.values()) == sum(truth.file_count for truth in truths)
        assert all(int(rows[truth.username]["total_size"]) == truth.total_size for truth in truths if truth.file_count)


SPELLINGS = ("ann", "Ann", "ANN", "aNn", "ben")
SOME = strategies.lists(strategies.sampled_from(SPELLINGS), unique=True)


@settings(max_examples=60, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(users=SOME, in_dbfs=SOME, in_workspace=SOME, inactive=SOME,
       words=strategies.sampled_from([(), ("--active-only",)]))  # fmt: skip
def test_every_home_is_counted_once_however_names_differ_in_letter_case(at, users, in_dbfs, in_workspace, inactive,
                                                                       words):  # fmt: skip
    people = [{"userName": name, "active": name not in inactive} for name in users]
    with at(home_server(people, (in_dbfs, in_workspace))) as server:
        code, rows = run("--all-homes", *words)
        assert code == 0
        if not rows:
            assert not any((in_dbfs, in_workspace)) or words
            return
        code, results, listed = scanned(server)
    homes = {*(("dbfs", f"/Users/{name}") for name in in_dbfs),
             *(("workspace", f"/Users/{name}") for name in in_workspace)}  # fmt: skip
    if words:  # homes of deactivated users are left out, unless that would leave open whose home is whose
        homes -= {home for home in homes if home not in listed and home[1].lower()[7:] in map(str.lower, inactive)}
    assert code == 0
    assert listed == dict.fromkeys(homes, 1)
    assert sum(int(row["file_count"]) for row in results.values()) == len(homes)
    folded = [row["username"].lower() for row in rows]
    for name in {row["username"] for row in rows if row["kind"] == "unlisted"}:
        others = [home for home in (*users, *in_dbfs, *in_workspace) if home.lower() == name.lower()]
        assert folded.count(name.lower()) == 1 or len(set(others)) > 1


@pytest.mark.parametrize(("users", "homes", "expected"), [
    (["Ann@x"], (["ann@x"], ["ANN@x"]), [("Ann@x", "user")]),
    ([], (["ann@x"], ["ANN@x"]), [("ANN@x", "unlisted")]),
    (["Ann@x"], (["Ann@x", "ann@x"], ["Ann@x"]), [("Ann@x", "user"), ("ann@x", "unlisted")]),
    (["Ann@x"], (["ann@x", "ANN@x"], []), [("Ann@x", "user"), ("ANN@x", "unlisted"), ("ann@x", "unlisted")]),
    (["Ann@x", "ann@x"], (["ANN@x"], []), [("Ann@x", "user"), ("ann@x", "user"), ("ANN@x", "unlisted")]),
    (["Ann@x", "ann@x"], (["Ann@x"], ["ann@x"]), [("Ann@x", "user"), ("ann@x", "user")]),
])  # fmt: skip
def test_a_home_has_a_row_of_its_own_only_where_letter_case_leaves_open_whose_it_is(at, users, homes, expected, capsys):
    with at(home_server(users, homes)):
        assert kinds(run("--all-homes")[1]) == expected
    crowded = [name for name, kind in expected if kind == "unlisted"] if len(expected) > 1 else []
    assert capsys.readouterr().err.count("is not the only home") == len(crowded)


def test_the_home_of_a_deactivated_user_is_not_unlisted(at):
    people = [{"userName": "ann@x", "active": False}, {"userName": "ben@x", "active": True}]
    robots = [{"applicationId": ROBOT, "active": False}]
    with at(home_server(people, (["ann@x", ROBOT], ["ben@x", NOBODY]), service_principals=robots)):
        assert kinds(run("--all-homes", "--active-only")[1]) == [("ben@x", "user"), (NOBODY, "unlisted")]


def test_max_users_takes_the_first_rows_and_makes_nobody_unlisted(at):
    with at(FakeDatabricks(users=20, service_principals=3, unlisted_homes=3)) as server:
        assert kinds(run("--all-homes", "--max-users", "5")[1]) == [(name, "user") for name in server.user_names[:5]]
        assert [row["kind"] for row in run("--all-homes", "--max-users", "22")[1]][19:] == [
            "user", "service_principal", "service_principal"]  # fmt: skip


@pytest.mark.parametrize("fault", [
    Fault("403", path="/Users", api="dbfs"), Fault("403", path="/Users", api="workspace"),
    Fault("404", path="/Users", api="workspace"), Fault("404_other", path="/Users", api="dbfs"),
    Fault("403", path="ServicePrincipals 1"), Fault("404", path="ServicePrincipals 1"),
    Fault("400", path="ServicePrincipals 3"),
])  # fmt: skip
def test_a_list_that_all_homes_needs_and_cannot_have_fails_the_command(at, fault, capsys):
    with at(FakeDatabricks(users=5, service_principals=5, unlisted_homes=5, scim_page_cap=2, faults=[fault])):
        assert run("--all-homes") == (1, None)
    error = capsys.readouterr().err
    assert str(fault.path).split()[0] in error
    assert "Nothing was written" in error


@pytest.mark.parametrize("body", [
    '{"files": 1}', '{"files": [{}]}',
    '{"files": [{"path": "/Shared/x", "is_dir": true}]}', "[]",
])  # fmt: skip
def test_a_listing_of_users_that_is_none_fails_the_command(at, body, monkeypatch):
    monkeypatch.setattr(databricks_user_list, "DatabricksClient", quick_client)
    with at(FakeDatabricks(users=3, faults=[Fault("body", api="dbfs", body=body)])) as server:
        assert run("--all-homes") == (1, None)
        assert server.requests["dbfs", "/Users"] == 5


def test_dbfs_that_is_disabled_is_said_once_and_left_out(at, capsys):
    with at(home_server(["ann@x"], (["ben@x"], [NOBODY]), dbfs_disabled=True)):
        code, rows = run("--all-homes")
    assert (code, kinds(rows)) == (0, [("ann@x", "user"), (NOBODY, "unlisted")])
    assert capsys.readouterr().err.count("DBFS is left out") == 1


def test_a_dbfs_without_users_has_no_homes(at):
    with at(home_server(["ann@x"], ([], [NOBODY]), faults=[Fault("404", api="dbfs", path="/Users")])):
        assert run("--all-homes")[0] == 0


def test_where_some_are_missing_their_homes_are_not_called_unlisted(at, capsys):
    body = json.dumps({"totalResults": 4, "Resources": [{"id": "1", "applicationId": ROBOT}]})
    with at(home_server(["ann@x"], ([], []))) as server:
        server.change(faults=[Fault("body", path="ServicePrincipals 1", body=body)])
        code, rows = run("--all-homes")
        assert (code, rows) == (1, None)
        assert server.requests["scim", "ServicePrincipals 1"] == 2
    assert "3 service principals missing" in capsys.readouterr().err


def test_service_principals_without_their_names_are_an_error(at, capsys):
    body = json.dumps({"totalResults": 1, "Resources": [{"id": "1", "displayName": "job"}]})
    with at(FakeDatabricks(users=3, faults=[Fault("body", path="ServicePrincipals 1", body=body)])):
        assert run("--all-homes") == (2, None)
    assert "service principals without their names" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"groups": ["users"]}, {"admin": False}])
def test_who_is_no_admin_is_shown_no_homes_and_told_so(at, changes, capsys):
    with at(FakeDatabricks(users=3, unlisted_homes=5, **changes)):
        assert run("--all-homes") == (2, None)
    assert "admin" in capsys.readouterr().err


@pytest.mark.parametrize("name", [" ann", "ann ", "a\\b", "a\nb", "a\x01b", "\ud800", "\u00a0ann"])
def test_a_home_that_the_scanner_would_not_take_is_left_out_with_a_warning(at, name, capsys):
    with at(home_server(["ann"], ([name], [NOBODY]))):
        code, rows = run("--all-homes")
    assert (code, kinds(rows)) == (1, [("ann", "user"), (NOBODY, "unlisted")])
    assert repr(name) in capsys.readouterr().err


def test_files_in_users_itself_are_warned_about(at, capsys):
    with at(home_server(["ann"], ([], [NOBODY]))) as server:
        server.add_tree("dbfs", {"/Users": [dbfs_file("/Users/f", 7)]})
        assert kinds(run("--all-homes")[1]) == [("ann", "user"), (NOBODY, "unlisted")]
    assert "dbfs:/Users itself has 1 file, in" in capsys.readouterr().err


def test_a_user_made_during_the_listing_is_not_unlisted(at, monkeypatch):
    with at(FakeDatabricks(users=3, service_principals=1)) as server:
        run("--all-homes")
        order = [path for _, path in server.requests if path != "Me"]
    assert order[:2] == ["/Users", "/Users"]
