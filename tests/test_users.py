"""The user list: the pages of SCIM as a CSV. Real HTTP, the command in this process."""

import json
import random
import subprocess
import sys

import pytest

import databricks_user_list
from databricks_user_files_simple import read_usernames
from tests.fake import Answer, FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, rows_of, set_constants

HEADER = "username,display_name,active,user_id\n"


@pytest.fixture
def listed(list_users, monkeypatch):
    """listed(server, *words): exit code, user names in users.csv (None without that file), messages; no wait."""
    retries = {kind: (attempts, 0.0) for kind, (attempts, _) in databricks_user_list.RETRIES.items()}
    set_constants(monkeypatch, RETRIES=retries)

    def call(server, *words):
        done = list_users(server, "-o", "users.csv", *words)
        rows = rows_of("users.csv")
        return done.code, rows and [row["username"] for row in rows], done.err

    return call


@pytest.fixture
def queries(monkeypatch):
    """The queries that the server was asked for users, as dictionaries."""
    asked, real = [], FakeDatabricks.scim_page
    monkeypatch.setattr(FakeDatabricks, "scim_page", lambda it, *of: asked.append(dict(of[1])) or real(it, *of))
    return asked


@pytest.fixture
def serve(monkeypatch):
    """serve(page): page(startIndex, count) gives the users of each page and totalResults, None for none."""

    def install(page):
        def scim_page(_, start, query):
            users, total = page(start, int(query["count"]))
            body = {"Resources": users} | ({} if total is None else {"totalResults": total})
            return Answer(200, json.dumps(body).encode())

        monkeypatch.setattr(FakeDatabricks, "scim_page", scim_page)

    return install


@pytest.mark.parametrize(("users", "cap", "starts"), [(100, 100, [1, 101]), (25, 10, [1, 11, 21, 26])])
def test_every_user_is_listed_in_the_services_order(listed, queries, users, cap, starts):
    with FakeDatabricks(users=users, scim_page_cap=cap) as server:
        assert listed(server)[:2] == (0, server.user_names)
    assert [int(query["startIndex"]) for query in queries] == starts
    assert {(query["attributes"], query["count"]) for query in queries} == {("userName,displayName,active,id", "1000")}


PEOPLE = [{"id": str(number), "userName": f"u{number}"} for number in range(95)]
NAMELESS_IDS = [{"userName": user["userName"]} for user in PEOPLE]


def shuffled(start, count):
    """Each page from a new order of all."""
    return random.Random(start).sample(PEOPLE, len(PEOPLE))[start - 1 :][:count]


def overlapping(step):
    """Pages that begin with users of the page before: each user is there 10 / step times."""
    return lambda start, _: PEOPLE[(start - 1) // 10 * step :][:10]


ODD_SERVICES = {  # users of a page by startIndex and count, totalResults, exit code
    "ignores startIndex": (lambda start, count: PEOPLE[:10], 95, 1),
    "ignores startIndex, and has all on one page": (lambda start, count: PEOPLE, 95, 0),
    "ignores count": (lambda start, count: PEOPLE[start - 1 :], 95, 0),
    "sorts each page anew": (lambda start, count: shuffled(start, 10), 95, None),
    "repeats users": (overlapping(9), 95, 0),
    "repeats each user, and counts them so": (overlapping(5), 190, 1),
    "says too few": (lambda start, count: PEOPLE[start - 1 :][:10], 5, 0),
    "says nothing": (lambda start, count: PEOPLE[start - 1 :][:10], None, 0),
    "says too many": (lambda start, count: PEOPLE[start - 1 :][:10], 98, 1),
    "has no ids": (lambda start, count: NAMELESS_IDS[start - 1 :][:10], 95, 0),
}


@pytest.mark.parametrize("kind", ODD_SERVICES)
def test_an_odd_service_ends_and_gives_all_or_a_warning(listed, serve, kind):
    users, total, expected = ODD_SERVICES[kind]
    serve(lambda start, count: (users(start, count), total))
    with FakeDatabricks(users=0) as server:
        code, found, text = listed(server)
        assert server.total_requests < 200
        assert kind != "ignores startIndex" or server.total_requests == 2 * 3
    assert len(set(found)) == len(found)
    missing = (total or 0) - len(found)
    assert code == (1 if missing > 0 else 0)
    assert expected in (None, code)
    assert code == 1 or len(found) == 95
    assert (f"{missing:,} user" in text.rpartition("warning: ")[2]) == (code == 1)


@pytest.mark.parametrize(("pages", "code", "names"), [
    ([(PEOPLE[:1], 3), ([], 3), (PEOPLE[1:3], 3), ([], 3)], 0, ["u0", "u1", "u2"]),  # the second adds what is missing
    ([(PEOPLE[:3], 5), ([], 5)], 1, ["u0", "u1", "u2"]),  # what the first said of the total is not forgotten
    ([(PEOPLE[:2], 4), ([], 3), (PEOPLE[:2], 3), (PEOPLE[3:4], 3), ([], 3)], 0, ["u0", "u1", "u3"]),  # one is deleted
    ([(PEOPLE[:2], 2), *[(None, 2)] * 6], 0, ["u0", "u1"]),  # null is an empty list
    ([(PEOPLE[:2], 4), ([], 3), (PEOPLE[:2], 4), ([], 4)], 1, ["u0", "u1"]),
])  # fmt: skip
def test_two_listings_complete_each_other(listed, serve, pages, code, names):
    left = iter(pages)
    serve(lambda *_: next(left, ([], None)))
    with FakeDatabricks(users=0) as server:
        assert listed(server)[:2] == (code, names)


@pytest.mark.parametrize(("most", "cap", "asked"), [
    (1, 100, [(1, 1)]), (15, 10, [(1, 15), (11, 5)]), (20, 10, [(1, 20), (11, 10)]),
])  # fmt: skip
def test_max_users_asks_for_no_more_than_it_needs(listed, queries, most, cap, asked):
    with FakeDatabricks(users=300, scim_page_cap=cap) as server:
        assert listed(server, "--max-users", most)[:2] == (0, server.user_names[:most])
    assert [(int(query["startIndex"]), int(query["count"])) for query in queries] == asked


def test_active_only_leaves_deactivated_users_out(listed):
    people = [{"userName": f"u{number}", "active": number % 3 != 0} for number in range(30)]
    active = [person["userName"] for person in people if person["active"]]
    with FakeDatabricks(users=people, scim_page_cap=7) as server:
        for most, words in ((30, ()), (4, ("--max-users", 4)), (100, ("--max-users", 100))):
            assert listed(server, "--active-only", *words)[:2] == (0, active[:most])


BAD_BODIES = (
    "[]", '{"Resources": {}}', '{"Resources": ["a"]}', "{}", '{"a": 1}',
    *(f'{{"Resources": [], "totalResults": {total}}}' for total in ('"1"', "NaN", "-1", "1.5", str(2**63))),
    *(f'{{"Resources": [{{"userName": "a", {field}}}]}}' for field in (
        '"userName": 5', '"id": {}', '"displayName": ["=x"]', '"active": "false"', '"active": 0')),
)  # fmt: skip


@pytest.mark.parametrize(("fault", "requests"), [
    *((Fault(kind, path=11), 1) for kind in ("403", "404", "redirect")),
    *((Fault(kind, path=11), 5) for kind in ("500", "html", "429", "truncated_json", "reset", "reset_body")),
    *((Fault("body", path=11, body=body), 5) for body in BAD_BODIES),
])  # fmt: skip
def test_a_page_that_fails_fails_the_command_and_an_older_file_stays(listed, tmp_path, fault, requests):
    (tmp_path / "users.csv").write_text(HEADER + "old@example.com,,,\n")
    with FakeDatabricks(users=25, scim_page_cap=10, faults=[fault]) as server:
        code, found, text = listed(server)
        assert (code, found, server.requests["scim", 11]) == (2, ["old@example.com"], requests)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "users.csv"]
    assert "nothing was written, the users of " in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(("users", "admin"), [(5, False), (0, True)])
def test_users_shown_without_their_names_are_an_error_that_says_why(listed, users, admin):
    with FakeDatabricks(users=users, admin=admin) as server:
        code, found, text = listed(server)
    assert (code, found) == (2, None)
    assert "admin" in text


@pytest.mark.parametrize("name", ["anna@x.com\u00a0", "a\u200bb", "a;b", "'a'", "../a"])
def test_a_name_that_the_scanner_would_refuse_is_left_out_with_a_warning(listed, name):
    with FakeDatabricks(users=["before", name, "after"]) as server:
        code, found, text = listed(server)
    assert (code, found) == (1, ["before", "after"])
    assert f"warning: left out, because the scanner would refuse it: {name!r}" in text
    assert list(read_usernames([], "users.csv")) == found


def test_the_files_bytes(listed, list_users, serve, tmp_path):
    users = [{"userName": "a@x.com", "displayName": 'Zo\u00eb, "Z"', "active": True, "id": "1"},
             {"userName": "b@x.com", "displayName": "=cmd()\r\x1b[m", "active": False, "id": 2},
             {"userName": "c"}]  # fmt: skip
    serve(lambda start, _: (users[start - 1 :], 3))
    expected = HEADER + 'a@x.com,"Zo\u00eb, ""Z""",true,1\nb@x.com,\'=cmd()  [m,false,2\nc,,,\n'
    with FakeDatabricks(users=0) as server:
        assert listed(server)[0] == 0
        assert list_users(server).out == list_users(server, "--output", "-").out == expected
    assert (tmp_path / "users.csv").read_bytes() == expected.encode()


def test_the_scanner_reads_the_list_and_every_name_as_it_is(listed):
    odd = ["=u", "\u00e9@x.com", "e\u0301", "\U0001f600", "a b", "o'neil", "#a", "corp\\anna"]
    with FakeDatabricks(users=odd) as server:
        assert listed(server)[:2] == (0, ["'=u", *odd[1:]])
        assert list(read_usernames([], "users.csv")) == odd


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("script", [USER_LIST, SCANNER])
def test_without_requests_a_line_names_the_remedy_and_uv_knows_what_is_needed(script):
    words = [sys.executable, "-S", ROOT / script]  # -S: without any package
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    remedy = "No module named 'requests': `python -m pip install requests`, or `uv run`, which brings it\n"
    assert (done.returncode, done.stderr) == (2, remedy)
    head = '# /// script\n# requires-python = ">=3.10"\n# dependencies = ["requests>=2.28.0", "tqdm"]\n# ///\n'
    assert (ROOT / script).read_text(encoding="utf-8").count(head) == 1
