"""databricks_user_list.py: SPEC section 5. Real HTTP, the command in this process."""

import csv
import json
import re
from contextlib import contextmanager

import pytest

import databricks_user_list
from databricks_user_files_simple import read_usernames
from tests.fake_databricks import FakeDatabricks, Fault
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
    "\u00e9@x.com", "e\u0301", "\U0001f600", "a b", "o'neil", "#a", "corp\\anna",
])  # fmt: skip
def test_odd_names_come_back_as_they_are(at, name):
    with at(FakeDatabricks(users=[name])):
        assert names(run()[1]) == [name]


@pytest.mark.parametrize("name", ["anna@x.com ", "anna@x.com\u00a0", "a\u200bb", "a;b", "'a'", "../a"])
def test_a_name_that_the_scanner_would_refuse_is_left_out_with_a_warning(at, name, capsys):
    with at(FakeDatabricks(users=["before", name, "after"])):
        code, rows = run()
    assert (code, names(rows)) == (1, ["before", "after"])
    assert f"warning: left out, because the scanner would refuse it: {name!r}" in capsys.readouterr().err
    assert read_usernames([], "users.csv") == ["before", "after"]


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
