"""databricks_user_list.py: SPEC section 5. Real HTTP, the command in this process."""

import csv
import json
import random
import re
from contextlib import contextmanager

import pytest

import databricks_user_list
from databricks_user_files_simple import read_usernames
from tests.fake import Answer, FakeDatabricks, Fault
from tests.helpers import USER_LIST, FakeClock

SECRET = "dapi-secret-0123456789"
HEADER = "username,display_name,active,user_id\n"


@pytest.fixture
def at(monkeypatch):
    """`with at(server)` starts it and logs in there through the environment; no sleep takes time."""
    client = databricks_user_list.DatabricksClient

    def quick_client(config):
        clock = FakeClock()
        return client(config, clock=clock, sleep=clock.sleep)

    @contextmanager
    def log_in(server):
        with server:
            monkeypatch.setenv("DATABRICKS_HOST", server.url)
            monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)
            monkeypatch.setattr(databricks_user_list, "DatabricksClient", quick_client)
            yield server

    return log_in


def run(*words):
    """Exit code and rows of the command, which writes to users.csv; no rows where there is no file."""
    code = databricks_user_list.user_list([*words, "-o", "users.csv"])
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


# Pages


@pytest.mark.parametrize(("users", "cap", "starts"), [
    (0, 100, [1]), (1, 100, [1, 2]), (100, 100, [1, 101]), (25, 10, [1, 11, 21, 26]),
    (2500, 5000, [1, 1001, 2001, 2501]),
])  # fmt: skip
def test_every_user_is_listed_in_the_services_order(at, queries, users, cap, starts):
    with at(FakeDatabricks(users=users, scim_page_cap=cap)) as server:
        code, rows = run()
        assert (code, names(rows)) == (0, server.user_names)
    assert [int(query["startIndex"]) for query in queries] == starts
    assert {query["attributes"] for query in queries} == {"id,userName,displayName,active"}


PEOPLE = [{"id": str(number), "userName": f"u{number}"} for number in range(95)]


def shuffled(start, count):
    """Each page from a new order of all."""
    return random.Random(start).sample(PEOPLE, len(PEOPLE))[start - 1 :][:count]


def overlapping(step):
    """Pages that begin with users of the page before: each user is there 10 / step times."""
    return lambda start, _: PEOPLE[(start - 1) // 10 * step :][:10]


ODD_SERVICES = {  # users of a page by startIndex and count, totalResults, exit code
    "ignores startIndex": (lambda start, count: PEOPLE[:10], 95, 1),
    "ignores startIndex, and has all on one page": (lambda start, count: PEOPLE, 95, 0),
    "ignores startIndex, and says there is no end": (lambda start, count: PEOPLE[:10], 10**9, 1),
    "ignores startIndex, and sorts each page anew": (lambda start, count: shuffled(start, 95)[:10], 95, None),
    "ignores count": (lambda start, count: PEOPLE[start - 1 :], 95, 0),
    "sorts each page anew": (lambda start, count: shuffled(start, 10), 95, None),
    "repeats users": (overlapping(9), 95, 0),
    "repeats each user": (overlapping(5), 95, 0),
    "repeats each user, and counts them so": (overlapping(5), 190, 1),
    "repeats a page": (lambda start, count: PEOPLE[max(start - 11, 0) :][:10], 95, 0),
    "says too few": (lambda start, count: PEOPLE[start - 1 :][:10], 5, 0),
    "says nothing": (lambda start, count: PEOPLE[start - 1 :][:10], None, 0),
    "says too many": (lambda start, count: PEOPLE[start - 1 :][:10], 98, 1),
    "has no ids": (lambda start, count: [{"userName": f"u{n}"} for n in range(start - 1, min(start + 9, 95))], 95, 0),
}


@pytest.mark.parametrize("kind", ODD_SERVICES)
def test_an_odd_service_ends_and_gives_all_or_a_warning(at, monkeypatch, kind, capsys):
    users, total, expected = ODD_SERVICES[kind]

    def scim_page(self, start, query, *_):
        body = {"Resources": users(start, int(query["count"]))} | ({} if total is None else {"totalResults": total})
        return Answer(200, json.dumps(body).encode())

    monkeypatch.setattr(FakeDatabricks, "scim_page", scim_page)
    with at(FakeDatabricks(users=0)) as server:
        code, rows = run()
        assert server.total_requests < 200
    found = names(rows)
    assert len(set(found)) == len(found)
    missing = (total or 0) - len(found)
    assert code == (1 if missing > 0 else 0)
    assert expected in (None, code)
    assert code == 1 or len(found) == 95
    assert (f"{missing:,} user" in capsys.readouterr().err.rpartition("warning: ")[2]) == (code == 1)


def test_what_the_first_listing_said_of_the_total_is_not_forgotten(at, monkeypatch, capsys):
    pages = iter([(PEOPLE[:90], 95), ([], 95)])

    def scim_page(self, start, query, *_):
        users, total = next(pages, ([], None))
        return Answer(
            200, json.dumps({"Resources": users} | ({} if total is None else {"totalResults": total})).encode()
        )

    monkeypatch.setattr(FakeDatabricks, "scim_page", scim_page)
    with at(FakeDatabricks(users=0)):
        code, rows = run()
    assert (code, len(rows)) == (1, 90)
    assert "5 users missing" in capsys.readouterr().err


def test_fewer_users_than_the_service_says_are_listed_again_and_written(at, capsys):
    with at(FakeDatabricks(users=25, total_results_offset=3)) as server:
        code, rows = run()
        assert (code, names(rows)) == (1, server.user_names)
        assert server.requests["scim", 1] == 2
    assert "3 users missing" in capsys.readouterr().err


def test_what_the_second_listing_adds_completes_the_first(at):
    first = page({"id": "9", "userName": "only@example.com"}, total=6)
    first.times = 1
    empty = Fault("body", api="scim", path=2, times=1, body=json.dumps({"totalResults": 6}))
    with at(FakeDatabricks(users=5, faults=[first, empty])) as server:
        code, rows = run()
        assert (code, names(rows)) == (0, ["only@example.com", *server.user_names])


@pytest.mark.parametrize(("most", "cap", "asked"), [
    (1, 100, [(1, 1)]), (15, 10, [(1, 15), (11, 5)]), (100, 100, [(1, 100)]), (20, 10, [(1, 20), (11, 10)]),
])  # fmt: skip
def test_max_users_asks_for_no_more_than_it_needs(at, queries, most, cap, asked):
    with at(FakeDatabricks(users=300, scim_page_cap=cap)) as server:
        code, rows = run("--max-users", str(most))
        assert (code, names(rows)) == (0, server.user_names[:most])
    assert [(int(query["startIndex"]), int(query["count"])) for query in queries] == asked


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
        assert names(run("--active-only")[1]) == active
        assert names(run("--active-only", "--max-users", "4")[1]) == active[:4]
        assert names(run("--active-only", "--max-users", "100")[1]) == active


# Faults


BAD_BODIES = (
    "[]", "null", '{"Resources": {}}', '{"Resources": ["a"]}', '{"Resources": null}', "{}", '{"a": 1}',
    *(f'{{"Resources": [], "totalResults": {total}}}' for total in ('"1"', "NaN", "-1", "1.5", str(2**63), "1e999")),
    *(f'{{"Resources": [{{"userName": "a", {field}}}]}}' for field in (
        '"userName": 5', '"userName": {"a": 1}', '"id": {}', '"displayName": ["=x"]', '"active": "false"',
        '"active": 0')),
)  # fmt: skip


@pytest.mark.parametrize(("fault", "requests"), [
    *((Fault(kind, path=11), 1) for kind in ("400", "403", "404", "redirect")),
    *((Fault(kind, path=11), 5) for kind in ("500", "html", "truncated", "429", "reset")),
    *((Fault("body", path=11, body=body), 5) for body in BAD_BODIES),
])  # fmt: skip
def test_a_page_that_fails_fails_the_command_and_an_older_file_stays(at, tmp_path, fault, requests, capsys):
    (tmp_path / "users.csv").write_text(HEADER + "old@example.com,,,\n")
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[fault])) as server:
        code, rows = run()
        assert (code, names(rows)) == (2, ["old@example.com"])
        assert server.requests["scim", 11] == requests
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "users.csv"]
    error = capsys.readouterr().err
    assert "nothing was written, because the users could not be listed: " in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("kind", ["500", "html", "truncated", "429", "empty_429", "reset", "truncated_json"])
def test_a_page_that_fails_at_first_is_asked_for_again(at, kind):
    with at(FakeDatabricks(users=25, scim_page_cap=10, faults=[Fault(kind, path=11, times=3)])) as server:
        code, rows = run()
        assert (code, names(rows)) == (0, server.user_names)


@pytest.mark.parametrize("settings", [{"token": "another"}, {"token": "another", "bad_token": 401}])
def test_a_refused_login_ends_with_exit_2(command, settings):
    with FakeDatabricks(users=3, **settings) as server:
        result = command(USER_LIST, "-o", "users.csv",
                         env={"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": "dapi-fake-token"})  # fmt: skip
        assert result.code == 2, result
        assert server.total_requests == 1
    assert "does not accept the token" in result.err
    assert "dapi-fake-token" not in result.err


def test_users_shown_without_their_names_are_an_error_that_says_why(at, capsys):
    with at(FakeDatabricks(users=5, admin=False)):
        assert run() == (2, None)
    assert "admin" in capsys.readouterr().err


def test_a_single_user_without_a_name_is_left_out_with_a_warning(at, capsys):
    with at(
        FakeDatabricks(users=0, faults=[page({"id": "1", "userName": "a"}, {"id": "27"}, {"id": "3", "userName": "b"})])
    ):
        code, rows = run()
    assert (code, names(rows)) == (1, ["a", "b"])
    assert "refuse it: '' is not a user name: it is empty or dots (user_id 27)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["anna@x.com ", "anna@x.com\u00a0", "a\u200bb", "a;b", "'a'", "../a"])
def test_a_name_that_the_scanner_would_refuse_is_left_out_with_a_warning(at, name, capsys):
    with at(FakeDatabricks(users=["before", name, "after"])):
        code, rows = run()
    assert (code, names(rows)) == (1, ["before", "after"])
    assert f"warning: left out, because the scanner would refuse it: {name!r}" in capsys.readouterr().err
    assert read_usernames([], "users.csv") == ["before", "after"]


# The file


def test_the_files_bytes(at, tmp_path):
    people = [{"userName": "a@x.com", "displayName": 'Zo\u00eb, "Z"', "active": True, "id": "1"},
              {"userName": "b@x.com", "displayName": "", "active": False, "id": "2"}]  # fmt: skip
    with at(FakeDatabricks(users=people)):
        assert run()[0] == 0
    expected = HEADER + 'a@x.com,"Zo\u00eb, ""Z""",true,1\nb@x.com,,false,2\n'
    assert (tmp_path / "users.csv").read_bytes() == expected.encode()


def test_a_missing_display_name_and_active_are_empty_cells(at):
    with at(FakeDatabricks(users=0, faults=[page({"id": "1", "userName": "a@x.com"}, {"id": "2", "userName": "b"})])):
        rows = run()[1]
    assert [list(row.values()) for row in rows] == [["a@x.com", "", "", "1"], ["b", "", "", "2"]]


@pytest.mark.parametrize("text", [
    "=", "+", "-", "@", "\t=", "\r=", "\n=", "\r\n=", " =", "two\nlines", "two\r\nlines", "two\rlines", 'a "q"', "a,b",
    "a;b", '"', "\x00x",
])  # fmt: skip
def test_any_display_name_stays_in_its_row_and_runs_in_no_spreadsheet(at, text):
    with at(FakeDatabricks(users=[{"userName": "a", "displayName": f"{text}cmd()"}, "next"])):
        rows = run()[1]
    assert names(rows) == ["a", "next"]
    assert rows[0]["active"] in ("true", "false")
    assert not re.match(r"[=+@\t\r\n-]", rows[0]["display_name"])


def test_the_scanner_reads_the_list_and_every_name_as_it_is(at):
    odd = ["=u", "\u00e9@x.com", "e\u0301", "\U0001f600", "a b", "o'neil", "#a", "corp\\anna"]
    with at(FakeDatabricks(users=odd)) as server:
        for name in range(60):
            server.add_user(f"u{name}")
        assert run()[0] == 0
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


# Profiles
