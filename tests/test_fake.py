"""The fake workspace answers as the real one is documented to; all through real HTTP."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.fake import (
    FORMS,
    FakeDatabricks,
    Fault,
    Workspace,
    dbfs_directory,
    dbfs_file,
    make_user_name,
    take_token,
    workspace_object,
)
from tests.helpers import ROOT, until

DBFS, WORKSPACE = "/api/2.0/dbfs/list", "/api/2.0/workspace/list"
SCIM, ME = "/api/2.0/preview/scim/v2/Users", "/api/2.0/preview/scim/v2/Me"


class Client:
    """A session that knows the server and its token."""

    def __init__(self, server):
        self.server = server
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.update(server.headers)

    def get(self, url, timeout=5, headers=None, **params):
        url = self.server.url + url
        return self.session.get(url, params=params, timeout=timeout, headers=headers, allow_redirects=False)

    def dbfs(self, path):
        return self.get(DBFS, path=path)

    def workspace(self, path):
        return self.get(WORKSPACE, path=path)


@pytest.fixture
def start():
    """Starts servers that end with the test; gives a client of each."""
    clients = []

    def starter(**settings):
        clients.append(Client(FakeDatabricks(**settings).start()))
        return clients[-1]

    yield starter
    for client in clients:
        client.session.close()
        client.server.stop()


def is_folder(entry):
    return entry.get("is_dir") or entry.get("object_type") in ("DIRECTORY", "REPO")


def walk(listing, key, home):
    """All entries below a home, and the number of directories."""
    found, directories, waiting = [], 0, [home]
    while waiting:
        path = waiting.pop()
        answer = listing(path)
        if answer.status_code == 404:
            continue
        entries = answer.json().get(key, [])
        assert all(entry["path"].startswith(path + "/") for entry in entries)
        found += entries
        directories += 1
        waiting += [entry["path"] for entry in entries if is_folder(entry)]
    return found, directories


def assert_truth(client, username, home=None):
    """The server's truth about a user is what a walk finds."""
    truth = client.server.truth(username)
    in_dbfs, dbfs_directories = walk(client.dbfs, "files", f"/Users/{home or username}")
    in_workspace, workspace_directories = walk(client.workspace, "objects", f"/Users/{home or username}")
    objects = [entry for entry in in_workspace if not is_folder(entry)]
    assert truth.dbfs_files == sum(not entry["is_dir"] for entry in in_dbfs)
    assert truth.dbfs_bytes == sum(entry["file_size"] for entry in in_dbfs)
    assert (truth.dbfs_directories, truth.workspace_directories) == (dbfs_directories, workspace_directories)
    assert truth.types == Counter(entry.get("object_type", "UNKNOWN") for entry in in_workspace)
    assert (truth.file_count, truth.total_size) == (
        truth.dbfs_files + len(objects), truth.dbfs_bytes + 10_000 * len(objects)
    )  # fmt: skip
    assert (truth.dbfs_home, truth.workspace_home) == (dbfs_directories > 0, workspace_directories > 0)


# Listings


def test_the_truth_of_a_mixed_workspace_is_what_a_walk_finds(start):
    client = start(users=36, shapes={17: "small"})
    for index, username in enumerate(client.server.user_names):
        assert_truth(client, username, client.server.workspace.home_name(index))
    assert max(client.server.requests.values()) == 1


def test_a_mixed_workspace_has_every_kind_of_user_and_depends_on_the_seed_only():
    world = Workspace(users=50)
    truths = {world.shape_of(index): world.truth(name) for index, name in enumerate(world.user_names)}
    assert set(truths) == {"small", "dbfs", "workspace", "empty", "none", "giant", "deep", "awkward", "case"}
    assert truths["giant"].dbfs_directories + truths["giant"].workspace_directories == 3_000
    assert truths["giant"].dbfs_bytes > 2**32
    assert truths["empty"].dbfs_home and truths["empty"].file_count == 0
    assert not truths["none"].dbfs_home and not truths["none"].workspace_home
    again, other = (Workspace(users=2, seed=seed).truth(world.user_names[1]) for seed in (1, 2))
    assert again == world.truth(world.user_names[1]) != other


def test_user_names_are_unique_and_some_are_odd():
    names = [make_user_name(index) for index in range(3_000)]
    assert len({name.lower() for name in names}) == 3_000
    assert [mark for mark in "+'\u00e9ABC" if not any(mark in name for name in names)] == []


def test_empty_missing_and_single_file(start):
    client = start(users=["a"], shape="empty", shapes={1: "bench"})
    client.server.add_user("bench")
    client.server.add_tree("dbfs", {"/Users/b": [dbfs_file("/Users/b/f", 5)]})
    client.server.add_tree("workspace", {"/Users/b": [workspace_object("/Users/b/n")]})
    assert client.dbfs("/Users/a").content == client.workspace("/Users/a").content == b"{}"
    message = "No file or directory exists on path /Users/c."
    assert client.dbfs("/Users/c").json() == {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": message}
    missing = client.workspace("/Users/c")
    assert (missing.status_code, missing.json()["message"]) == (404, "Path (/Users/c) doesn't exist.")
    assert client.dbfs("/Users/b/f").json()["files"] == client.dbfs("/Users/b").json()["files"]
    assert client.workspace("/Users/b/n").json()["objects"] == client.workspace("/Users/b").json()["objects"]
    assert client.dbfs("/Users/bench/f1").json()["files"][0]["path"] == "/Users/bench/f1"
    assert client.dbfs("/Users/bench/f1/x").status_code == 404
    assert client.dbfs("Users").status_code == 400
    assert client.get("/api/2.0/clusters/list").json()["error_code"] == "ENDPOINT_NOT_FOUND"


def test_homes_are_listed_also_in_other_letter_case(start):
    client = start(users=40, shapes={17: "small", 23: "small"})
    client.server.add_tree("dbfs", {"/Users/left@example.com": []})
    world = client.server.workspace
    for listing, key, attribute, more in (
        (client.dbfs, "files", "dbfs_home", {"/Users/left@example.com"}),
        (client.workspace, "objects", "workspace_home", set()),
    ):
        truths = enumerate(map(world.truth, world.user_names))
        there = {f"/Users/{world.home_name(index)}" for index, truth in truths if getattr(truth, attribute)}
        assert {entry["path"] for entry in listing("/Users").json()[key]} == there | more
        assert "/Users" in [entry["path"] for entry in listing("/").json()[key]]
    assert world.home_name(35) != world.user_names[35]


def test_added_trees_and_vanished_directories(start):
    client = start(users=["a"], shape="small")
    client.server.add_tree("dbfs", {"/Users/a": [dbfs_directory("/Users/a/gone"), dbfs_file("/Users/a/f", 2**33)]})
    client.server.add_tree("workspace", {"/Users/a": [workspace_object("/Users/a/x", None)]})
    assert client.dbfs("/Users/a/gone").status_code == 404
    assert "object_type" not in client.workspace("/Users/a").json()["objects"][0]
    assert_truth(client, "a")


def test_bench_trees_are_computed(start):
    client = start(users=2, shape="bench", directories=251, files_per_directory=3)
    for username in client.server.user_names:
        assert_truth(client, username)
    huge = Workspace(users=["a"], shape="bench", directories=10**6, files_per_directory=0, file_systems=("dbfs",))
    assert len(huge.listing("dbfs", "/Users/a/d9/d9/d9/d9")) == 10
    assert [huge.listing("dbfs", f"/Users/a/d9/{name}") for name in ("d10", "d09", "x1")] == [None] * 3


# SCIM


def test_scim_pages(start):
    client = start(users=25, scim_page_cap=10, total_results_offset=2)
    first, start_at, users = client.get(SCIM, count=10_000, attributes="id,userName").json(), 1, []
    while page := client.get(SCIM, startIndex=start_at, count=10_000).json().get("Resources"):
        users += page
        start_at += len(page)
    assert (first["itemsPerPage"], first["totalResults"], set(first["Resources"][0])) == (10, 27, {"id", "userName"})
    assert [user["userName"] for user in users] == client.server.user_names
    assert len({user["id"] for user in users}) == 25 and all(user["id"].isdigit() for user in users)
    assert 0 < sum(not user["active"] for user in users) < 12
    assert client.server.requests["scim", 11] == 1
    assert len(client.get(SCIM, count=3).json()["Resources"]) == 3
    assert "Resources" not in client.get(SCIM, startIndex=26).json()


def test_explicit_users(start):
    client = start(users=["a@example.com", {"userName": "b@example.com", "active": False, "id": "7"}], shape="none")
    client.server.add_user("c@example.com", shape="small", displayName="See")
    users = client.get(SCIM).json()["Resources"]
    assert [user["userName"] for user in users] == ["a@example.com", "b@example.com", "c@example.com"]
    assert (users[1]["id"], users[1]["active"], users[2]["displayName"]) == ("7", False, "See")
    assert client.server.truth("c@example.com").file_count > 0


def test_who_is_no_admin(start):
    client = start(users=3, shape="empty", admin=False)
    own, other, _ = client.server.user_names
    assert {frozenset(user) for user in client.get(SCIM).json()["Resources"]} == {frozenset(("id", "displayName"))}
    assert [client.workspace(f"/Users/{name}").status_code for name in (own, other)] == [200, 404]
    assert len(client.workspace("/Users").json()["objects"]) == 1
    assert [group["display"] for group in client.get(ME).json()["groups"]] == ["users"]
    client.server.change(groups=None, caller=other)
    assert "groups" not in client.get(ME).json() and client.get(ME).json()["userName"] == other


# Refusals and limits


def test_tokens(start):
    client = start(users=1, expire_after_requests=2)
    wrong = client.get(ME, headers={"Authorization": "Bearer other"})
    assert (wrong.status_code, wrong.text) == (403, "Error 403 Invalid access token.")
    assert [client.get(ME).status_code for _ in range(3)] == [200, 200, 403]
    client.server.change(token="second", expire_after_requests=None, bad_token=401)
    assert client.get(ME).json()["error_code"] == "UNAUTHENTICATED"
    assert client.get(ME, headers=client.server.headers).status_code == 200


def test_dbfs_disabled(start):
    client = start(users=1, shape="empty", dbfs_disabled=True)
    message = "Public DBFS root is disabled. Access is denied on path: /Users"
    assert client.dbfs("/Users").json() == {"error_code": "PERMISSION_DENIED", "message": message}
    assert client.workspace("/Users").status_code == 200


def test_a_token_bucket_holds_one_second():
    bucket = [10, 0.0]
    assert [take_token(bucket, 10, 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert [take_token(bucket, 10, now) for now in (0.05, 0.11)] == [False, True]
    assert [take_token(bucket, 10, 60.0) for _ in range(11)].count(True) == 10


def test_rate_limits_are_those_of_each_family(start):
    client = start(users=1, shape="empty", limits={"dbfs": 5}, retry_after=3)
    assert [client.dbfs("/Users").status_code for _ in range(5)] == [200] * 5
    while (limited := client.dbfs("/Users")).status_code == 200:
        pass
    assert (limited.json()["error_code"], limited.headers["Retry-After"]) == ("REQUEST_LIMIT_EXCEEDED", "3")
    assert client.workspace("/Users").status_code == client.get(SCIM).status_code == 200
    until(lambda: client.dbfs("/Users").status_code == 200)
    client.server.change(limits={"dbfs": None})
    assert {client.dbfs("/Users").status_code for _ in range(20)} == {200}


def test_requests_in_flight(start):
    client = start(users=1, shape="empty", latency=0.2, in_flight_limit=2)
    headers = client.server.headers
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: requests.get(client.server.url + ME, headers=headers, timeout=5), range(6)))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 2 and statuses[429] >= 1
    assert 2 < client.server.max_in_flight <= 6 and client.server.counts.connections == 6
    assert client.server.in_flight == client.server.working == 0


# Faults


def test_errors(start):
    client = start(users=1, shape="empty", faults=[Fault("slow", times=2, headers={"Retry-After": "1"})])
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert "taking too long to process" in answer.json()["message"] and answer.headers["Retry-After"] == "1"
    scim = client.get(SCIM).json()
    assert scim["status"] == "503" and scim["detail"] and scim["schemas"]
    assert client.dbfs("/Users").status_code == 200
    assert client.server.counts.faults == {"slow": 2}
    with pytest.raises(ValueError, match="unknown fault"):
        Fault("nonsense")
    with pytest.raises(TypeError, match="unknown setting: nonsense"):
        client.server.change(nonsense=1)


@pytest.mark.parametrize("form", FORMS)
def test_answers_come_in_the_form_that_is_set(start, form):
    client = start(users=["a"], shape="none", forms=(form,))
    names = [f"/Users/a/{number}" for number in range(50)]
    client.server.add_tree("dbfs", {"/Users/a": [dbfs_file(name, 1) for name in names]})
    answer = client.dbfs("/Users/a")
    assert [entry["path"] for entry in answer.json()["files"]] == names
    assert (answer.headers.get("Content-Encoding") == "gzip") == ("gzip" in form)
    assert (answer.headers.get("Transfer-Encoding") == "chunked") == ("chunked" in form)
    assert ("Content-Length" in answer.headers) == ("chunked" not in form)


@pytest.mark.parametrize("kind", ["reset", "reset_body", "truncated", "hang"])
def test_broken_connections(start, kind):
    client = start(users=20, faults=[Fault(kind, times=1, seconds=0.05)])
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)) as caught:
        client.dbfs("/Users")
    assert ("ConnectionResetError" in repr(caught.value)) == kind.startswith("reset")
    assert client.dbfs("/Users").status_code == 200
    assert client.server.in_flight == client.server.working == 0


@pytest.mark.parametrize(("fault", "status", "body"), [
    (Fault("html"), 200, b"<!DOCTYPE html>"), (Fault("empty_429"), 429, b""), (Fault("redirect"), 302, b""),
    (Fault("truncated_json"), 200, b'{"files'), (Fault("body", body='{"files": 3}', status=203), 203, b'{"files": 3}'),
    (Fault("drip", seconds=0.001), 200, b'{"files'),
], ids=lambda value: getattr(value, "kind", ""))  # fmt: skip
def test_bodies(start, fault, status, body):
    answer = start(users=20, faults=[fault]).dbfs("/Users")
    assert (answer.status_code, answer.content[: len(body)]) == (status, body)


def test_faults_by_api_path_and_rate(start):
    client = start(users=20, shape="empty", faults=[Fault("500", api="dbfs", path="/Users")])
    assert client.dbfs("/Users").status_code == 500
    assert client.dbfs("/").status_code == client.workspace("/Users").status_code == 200
    client.server.change(faults=[Fault("503", api="scim", path=11)])
    assert [client.get(SCIM, startIndex=index).status_code for index in (1, 11)] == [200, 503]
    client.server.change(faults=[Fault("500", rate=0.3)])
    assert 30 < sum(client.get(ME).status_code == 500 for _ in range(200)) < 90
    client.server.change(faults=[], outage="503")
    assert client.get(ME).status_code == 503
    client.server.change(outage="close")
    with pytest.raises(requests.ConnectionError):
        client.get(ME)


# Counts, and as a program


def test_counts(start):
    client = start(users=3, shape="empty")
    client.dbfs("/Users")
    client.workspace("/nothing")
    client.get(SCIM, startIndex=2)
    server = client.server
    assert server.requests == {("dbfs", "/Users"): 1, ("workspace", "/nothing"): 1, ("scim", 2): 1}
    assert server.statuses == {200: 2, 404: 1} and server.total_requests == 3
    assert server.counts.api_statuses["workspace", 404] == 1
    assert server.counts.first_request_at <= server.counts.api_times["scim"][1] <= server.counts.last_answer_at
    assert server.counts.connections == server.max_in_flight == 1
    server.counts_reset()
    server.change(count_paths=False, latency=1)
    with pytest.raises(requests.ReadTimeout):
        client.get(ME, timeout=0.05)
    client.session.close()
    until(lambda: server.in_flight == 0)
    assert not server.requests and server.statuses == {"gone": 1}


@pytest.mark.usefixtures("processes")
def test_as_a_program():
    words = ["--users", "3", "--token", "t", "--fault", "500:1", "--dbfs-limit", "1000", "--limit", "0.01"]
    command = [sys.executable, "-m", "tests.fake", *words, "--retry-after", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as program:
        url, token = program.stdout.readline().split()
        headers = {"Authorization": f"Bearer {token}"}
        answers = [requests.get(url + path, headers=headers, timeout=5) for path in (ME, ME, DBFS, DBFS)]
        program.terminate()
        output, errors = program.communicate(timeout=20)
    assert (program.returncode, output, errors) == (0, "", "")
    assert [answer.status_code for answer in answers] == [500, 429, 500, 500]
    assert answers[1].headers["Retry-After"] == "4"
