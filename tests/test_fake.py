"""The fake workspace answers as the real one is documented to; all through real HTTP."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import requests

from tests.fake import (
    AWKWARD_NAMES,
    DEFAULT_TOKEN,
    FAULT_KINDS,
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

DBFS = "/api/2.0/dbfs/list"
WORKSPACE = "/api/2.0/workspace/list"
SCIM = "/api/2.0/preview/scim/v2/Users"
ME = "/api/2.0/preview/scim/v2/Me"
SLOW = "taking too long to process your request. Please try again later or try a faster operation."


class Client:
    """A session that knows the server and its token."""

    def __init__(self, server):
        self.server = server
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.update(server.headers)

    def get(self, url, timeout=5, headers=None, **params):
        return self.session.get(
            self.server.url + url, params=params, timeout=timeout, headers=headers, allow_redirects=False
        )

    def dbfs(self, path):
        return self.get(DBFS, path=path)

    def workspace(self, path):
        return self.get(WORKSPACE, path=path)


@pytest.fixture
def start():
    """Start servers that end with the test; gives a client of each."""
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


def walk(listing, key, path):
    """All entries below a path by plain recursion, and the number of directories; None when there is no home."""
    answer = listing(path)
    if answer.status_code == 404:
        return [], 0
    assert answer.status_code == 200, answer.text
    entries = answer.json().get(key, [])
    found, directories = list(entries), 1
    for entry in entries:
        assert entry["path"].startswith(path + "/")
        if is_folder(entry):
            below, count = walk(listing, key, entry["path"])
            found += below
            directories += count
    return found, directories


def assert_truth(client, username, home=None):
    """Compare the server's truth about a user with a walk."""
    truth = client.server.truth(username)
    path = f"/Users/{home or username}"
    in_dbfs, dbfs_directories = walk(client.dbfs, "files", path)
    in_workspace, workspace_directories = walk(client.workspace, "objects", path)
    objects = [entry for entry in in_workspace if not is_folder(entry)]
    assert truth.dbfs_files == sum(not entry["is_dir"] for entry in in_dbfs)
    assert truth.dbfs_bytes == sum(entry["file_size"] for entry in in_dbfs)
    assert (truth.dbfs_directories, truth.workspace_directories) == (dbfs_directories, workspace_directories)
    assert truth.workspace_objects == len(objects)
    assert truth.types == Counter(entry.get("object_type", "UNKNOWN") for entry in in_workspace)
    assert truth.file_count == truth.dbfs_files + len(objects)
    assert truth.total_size == truth.dbfs_bytes + 10_000 * len(objects)
    assert (truth.dbfs_home, truth.workspace_home) == (dbfs_directories > 0, workspace_directories > 0)


# Listings


def test_truth_of_a_mixed_workspace_equals_a_recursive_walk(start):
    client = start(users=50)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5_000)
    try:
        for index, username in enumerate(client.server.user_names):
            assert_truth(client, username, client.server.workspace.home_name(index))
    finally:
        sys.setrecursionlimit(limit)
    assert max(client.server.requests.values()) == 1


def test_mixed_workspace_has_every_kind_of_user():
    world = Workspace(users=50)
    truths = {world.shape_of(index): world.truth(name) for index, name in enumerate(world.user_names)}
    assert set(truths) == {"small", "dbfs", "workspace", "empty", "none", "giant", "deep", "awkward", "case"}
    assert truths["giant"].dbfs_directories + truths["giant"].workspace_directories == 3_000
    assert truths["giant"].dbfs_bytes > 2**32
    assert truths["dbfs"].workspace_home is False and truths["workspace"].dbfs_home is False
    assert truths["empty"].dbfs_home and truths["empty"].file_count == 0
    assert not truths["none"].dbfs_home and not truths["none"].workspace_home
    deepest = max(world.build(23, "workspace"), key=len)
    assert deepest.count("/") == 499 and len(deepest) * 3 < 8_000


def test_trees_depend_on_the_seed_only():
    first, again, other = (Workspace(users=3, seed=seed) for seed in (1, 1, 2))
    assert first.truth(first.user_names[1]) == again.truth(again.user_names[1])
    assert first.truth(first.user_names[1]) != other.truth(other.user_names[1])


def test_user_names_are_unique_and_some_are_odd():
    names = [make_user_name(index) for index in range(3_000)]
    assert len({name.lower() for name in names}) == 3_000
    for mark in "+'\u00e9":
        assert any(mark in name for name in names)
    assert any(name != name.lower() for name in names)


def test_empty_missing_and_single_file(start):
    client = start(users=["a@example.com"], shape="empty")
    client.server.add_tree("dbfs", {"/Users/b": [dbfs_file("/Users/b/f", 5)]})
    client.server.add_tree("workspace", {"/Users/b": [workspace_object("/Users/b/n")]})
    assert client.dbfs("/Users/a@example.com").content == client.workspace("/Users/a@example.com").content == b"{}"
    missing = client.dbfs("/Users/c")
    assert missing.status_code == 404
    assert missing.json() == {
        "error_code": "RESOURCE_DOES_NOT_EXIST",
        "message": "No file or directory exists on path /Users/c.",
    }
    missing = client.workspace("/Users/c")
    assert (missing.status_code, missing.json()["message"]) == (404, "Path (/Users/c) doesn't exist.")
    assert client.dbfs("/Users/b/f").json()["files"] == client.dbfs("/Users/b").json()["files"]
    assert client.workspace("/Users/b/n").json()["objects"] == client.workspace("/Users/b").json()["objects"]


def test_generated_files_and_bench_files_list_themselves(start):
    client = start(users=2, shape="dbfs", shapes={1: "bench"}, directories=30)
    for username in client.server.user_names:
        entries, _ = walk(client.dbfs, "files", f"/Users/{username}")
        file = next(entry for entry in reversed(entries) if not entry["is_dir"])
        assert client.dbfs(file["path"]).json() == {"files": [file]}
        assert client.dbfs(file["path"] + "/x").status_code == 404


def test_other_spellings_of_a_path(start):
    client = start(users=1, shape="workspace")
    client.server.add_tree("dbfs", {"/Users/b": [dbfs_file("/Users/b/f", 5)]})
    for spelling in ("/Users/b/", "dbfs:/Users/b"):
        assert client.dbfs(spelling).json()["files"][0]["path"] == "/Users/b/f"
    home = f"/Users/{client.server.user_names[0]}"
    plain = client.workspace(home).json()["objects"]
    assert client.workspace(home.replace("/", "//")).json()["objects"] == plain
    prefixed = client.workspace("/Workspace" + home).json()["objects"]
    assert [entry["path"] for entry in prefixed] == ["/Workspace" + entry["path"] for entry in plain]
    assert client.dbfs("Users").status_code == client.dbfs("").status_code == 400
    assert client.dbfs("/Volumes/x").json()["message"] == "No operations allowed on this path."


def test_homes_are_listed(start):
    client = start(users=50)
    client.server.add_tree("dbfs", {"/Users/left@example.com": []})
    assert "/Users" in [entry["path"] for entry in client.dbfs("/").json()["files"]]
    for listing, key, attribute in (
        (client.dbfs, "files", "dbfs_home"),
        (client.workspace, "objects", "workspace_home"),
    ):
        shown = {entry["path"] for entry in listing("/Users").json()[key]}
        world = client.server.workspace
        there = {f"/Users/{world.home_name(i)}" for i, name in enumerate(world.user_names)
                 if getattr(world.truth(name), attribute)}  # fmt: skip
        assert shown - {"/Users/left@example.com"} == there
    assert "/Users/left@example.com" in {entry["path"] for entry in client.dbfs("/Users").json()["files"]}


def test_home_in_other_letter_case(start):
    client = start(users=1, shape="case")
    username = client.server.user_names[0]
    assert client.workspace(f"/Users/{username}").status_code == 404
    (home,) = client.workspace("/Users").json()["objects"]
    assert home["path"] != f"/Users/{username}" and home["path"].lower() == f"/Users/{username}".lower()
    assert_truth(client, username, home["path"].removeprefix("/Users/"))
    assert client.server.truth(username).file_count > 0


def test_awkward_names_survive_the_way_through_http(start):
    client = start(users=1, shape="awkward")
    home = f"/Users/{client.server.user_names[0]}"
    for listing, key in ((client.dbfs, "files"), (client.workspace, "objects")):
        paths = [entry["path"] for entry in listing(home).json()[key]]
        assert paths == [f"{home}/{name}" for name in AWKWARD_NAMES]
        for path in paths:
            assert [entry["path"] for entry in listing(path).json()[key] if is_folder(entry)] == [
                f"{path}/{path.rpartition('/')[2]}"
            ]


def test_added_trees_and_vanished_directories(start):
    client = start(users=["a"], shape="small")
    client.server.add_tree("dbfs", {"/Users/a": [dbfs_directory("/Users/a/gone"), dbfs_file("/Users/a/f", 2**33)]})
    client.server.add_tree("workspace", {"/Users/a": [workspace_object("/Users/a/x", None)]})
    assert client.dbfs("/Users/a/gone").status_code == 404
    assert "object_type" not in client.workspace("/Users/a").json()["objects"][0]
    assert_truth(client, "a")
    assert client.server.truth("a").total_size == 2**33 + 10_000


def test_bench_tree_is_computed(start):
    client = start(users=2, shape="bench", directories=91, files_per_directory=3, fan_out=4)
    for username in client.server.user_names:
        assert_truth(client, username)
    truth = client.server.truth(client.server.user_names[1])
    assert (truth.dbfs_directories, truth.workspace_directories, truth.file_count) == (46, 45, 273)
    huge = Workspace(users=1, shape="bench", directories=10**6, files_per_directory=0, file_systems=("dbfs",))
    home = f"/Users/{huge.user_names[0]}"
    assert len(huge.listing("dbfs", home + "/d9/d9/d9/d9")) == 10
    assert huge.listing("dbfs", home + "/d9/d9/d10") is None and huge.listing("dbfs", home + "/d9/d09") is None
    assert huge.truth(huge.user_names[0]).dbfs_directories == 10**6
    assert huge.cached_entries == 0


def test_the_cache_of_trees_is_bounded(monkeypatch):
    monkeypatch.setattr("tests.fake.workspace.CACHED_TREES", 5)
    world = Workspace(users=40, shape="small")
    before = [world.truth(name) for name in world.user_names]
    assert len(world.cache) == 5
    assert world.cached_entries == sum(weight for _, weight in world.cache.values())
    assert before == [world.truth(name) for name in world.user_names]


# SCIM


def all_pages(client, **params):
    """Every page until an empty one, advancing by what came back."""
    start, pages = 1, []
    while True:
        page = client.get(SCIM, startIndex=start, **params).json()
        pages.append(page)
        if not page.get("Resources"):
            return pages
        start += len(page["Resources"])


def test_scim_pages(start):
    client = start(users=25, scim_page_cap=10)
    pages = all_pages(client, count=10_000)
    assert [page["itemsPerPage"] for page in pages] == [10, 10, 5, 0]
    assert "Resources" not in pages[-1] and pages[-1]["totalResults"] == 25
    users = [user for page in pages for user in page.get("Resources", [])]
    assert [user["userName"] for user in users] == client.server.user_names
    assert len({user["id"] for user in users}) == 25 and all(user["id"].isdigit() for user in users)
    assert client.server.requests["scim", 11] == 1
    assert len(client.get(SCIM, count=3).json()["Resources"]) == 3


def test_scim_attributes(start):
    client = start(users=40)
    users = client.get(SCIM, attributes="id,username,active,name.givenName").json()["Resources"]
    assert {frozenset(user) for user in users} == {frozenset(("id", "userName", "active", "name"))}
    assert 0 < sum(not user["active"] for user in users) < 12
    assert "groups" not in client.get(SCIM, excludedAttributes="groups").json()["Resources"][0]
    names = [user["displayName"] for user in client.get(SCIM).json()["Resources"]]
    assert {"=SUM(1+1)", "+49 Anna", 'Berg, Anna "Ann"'} < set(names)


def test_scim_duplicates_and_wrong_total(start):
    client = start(users=25, scim_page_cap=10, scim_duplicates=True, total_results_offset=2)
    pages = all_pages(client)
    names = [user["userName"] for page in pages for user in page.get("Resources", [])]
    assert len(names) == 27 and sorted(set(names)) == sorted(client.server.user_names)
    assert pages[0]["Resources"][-1] == pages[1]["Resources"][0]
    assert pages[0]["totalResults"] == 27


def test_explicit_users(start):
    client = start(users=["a@example.com", {"userName": "b@example.com", "active": False, "id": "7"}], shape="none")
    client.server.add_user("c@example.com", shape="small", displayName="See")
    users = client.get(SCIM).json()["Resources"]
    assert [user["userName"] for user in users] == ["a@example.com", "b@example.com", "c@example.com"]
    assert (users[1]["id"], users[1]["active"], users[2]["displayName"]) == ("7", False, "See")
    assert client.server.truth("c@example.com").file_count > 0


def test_not_an_admin(start):
    client = start(users=3, shape="empty", admin=False)
    own, other, _ = client.server.user_names
    assert {frozenset(user) for user in client.get(SCIM).json()["Resources"]} == {frozenset(("id", "displayName"))}
    assert client.workspace(f"/Users/{own}").status_code == 200
    assert client.workspace(f"/Users/{other}").status_code == 404
    assert len(client.workspace("/Users").json()["objects"]) == 1
    assert [group["display"] for group in client.get(ME).json()["groups"]] == ["users"]
    client.server.change(admin=True)
    assert "admins" in [group["display"] for group in client.get(ME).json()["groups"]]
    client.server.change(groups=None, caller=other)
    assert "groups" not in client.get(ME).json() and client.get(ME).json()["userName"] == other


# Refusals and limits


def test_token(start):
    client = start(users=1)
    wrong = client.get(ME, headers={"Authorization": "Bearer other"})
    assert (wrong.status_code, wrong.text) == (403, "Error 403 Invalid access token.")
    client.server.change(bad_token=401)
    wrong = client.get(ME, headers={"Authorization": ""})
    assert wrong.status_code == 401 and "error_code" in wrong.json()


def test_token_expires_and_is_renewed(start):
    client = start(users=1, expire_after_requests=2)
    assert [client.get(ME).status_code for _ in range(3)] == [200, 200, 403]
    client.server.change(token="second", expire_after_requests=None)
    assert client.get(ME).status_code == 403
    assert client.get(ME, headers=client.server.headers).status_code == 200


def test_unknown_endpoint(start):
    answer = start(users=1).get("/api/2.0/clusters/list")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


def test_dbfs_disabled(start):
    client = start(users=1, shape="empty", dbfs_disabled=True)
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert answer.json()["message"] == "Public DBFS root is disabled. Access is denied on path: /Users"
    assert client.workspace("/Users").status_code == 200


def test_token_bucket_holds_one_second():
    bucket = [10, 0.0]
    assert [take_token(bucket, 10, 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert take_token(bucket, 10, 0.05) is False
    assert take_token(bucket, 10, 0.11) is True
    assert [take_token(bucket, 10, 60.0) for _ in range(11)].count(True) == 10


def test_rate_limit_per_family(start):
    client = start(users=1, shape="empty", limits={"dbfs": 5})
    answers = [client.dbfs("/Users") for _ in range(8)]
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    assert answers[-1].status_code == 429
    assert answers[-1].json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert "Retry-After" not in answers[-1].headers
    assert client.workspace("/Users").status_code == client.get(SCIM).status_code == 200
    time.sleep(0.25)
    assert client.dbfs("/Users").status_code == 200
    client.server.change(limits={"dbfs": None})
    assert {client.dbfs("/Users").status_code for _ in range(20)} == {200}


def test_retry_after_and_scim_that_answers_500(start):
    client = start(users=1, limit=1, retry_after="seconds", retry_after_seconds=3)
    assert [client.get(SCIM).headers.get("Retry-After") for _ in range(2)] == [None, "3"]
    client.server.change(retry_after="date")
    ahead = parsedate_to_datetime(client.get(SCIM).headers["Retry-After"]).timestamp() - time.time()
    assert 2 < ahead <= 4.1
    client.server.change(scim_limit_status=500)
    answer = client.get(SCIM)
    assert answer.status_code == 500 and "REQUEST_LIMIT_EXCEEDED" in answer.text
    assert "detail" in answer.json()


def test_requests_in_flight(start):
    client = start(users=1, shape="empty", latency=0.1, in_flight_limit=2)
    headers = client.server.headers
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: requests.get(client.server.url + ME, headers=headers, timeout=5), range(6)))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 2 and statuses[429] >= 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "exceeded the concurrent limit of 2 requests." in refused.json()["message"]
    assert 2 < client.server.max_in_flight <= 6 and client.server.counts.connections == 6
    assert client.server.in_flight == client.server.working == 0


def test_latency(start):
    client = start(users=1, latency=0.1)
    began = time.monotonic()
    client.get(ME)
    assert 0.1 <= time.monotonic() - began < 0.5


# Faults


@pytest.mark.parametrize(("kind", "status", "code", "text"), [
    ("500", 500, "INTERNAL_ERROR", "Timed out after 5 seconds"),
    ("502", 502, "BAD_GATEWAY", ""),
    ("503", 503, "TEMPORARILY_UNAVAILABLE", ""),
    ("slow", 503, "TEMPORARILY_UNAVAILABLE", SLOW),
    ("403", 403, "PERMISSION_DENIED", ""),
    ("404_other", 404, "FEATURE_DISABLED", ""),
    ("401", 401, "UNAUTHENTICATED", ""),
    ("429", 429, "REQUEST_LIMIT_EXCEEDED", ""),
])  # fmt: skip
def test_error_faults(start, kind, status, code, text):
    client = start(users=1, shape="empty", faults=[Fault(kind, times=2, headers={"Retry-After": "1"})])
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert text in answer.json()["message"] and answer.headers["Retry-After"] == "1"
    scim = client.get(SCIM).json()
    assert scim["status"] == str(status) and scim["detail"] and scim["schemas"]
    assert client.dbfs("/Users").status_code == 200
    assert client.server.counts.faults == {kind: 2}


@pytest.mark.parametrize("form", FORMS)
def test_answers_come_in_the_form_that_is_set(start, form):
    client = start(users=["a"], shape="none")
    names = [f"/Users/a/{number}" for number in range(50)]
    client.server.add_tree("dbfs", {"/Users/a": [dbfs_file(name, 1) for name in names]})
    client.server.change(forms=(form,))
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


def test_reset_before_the_answer_leaves_nothing_to_read(start):
    client = start(users=1, faults=[Fault("reset")])
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=5) as connection:
        connection.sendall(f"GET {ME} HTTP/1.1\r\nAuthorization: Bearer {DEFAULT_TOKEN}\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert client.server.statuses == {"reset": 1}


def test_bodies_that_are_not_json(start):
    client = start(users=20)
    client.server.change(faults=[Fault("truncated_json")])
    answer = client.dbfs("/Users")
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        answer.json()
    client.server.change(faults=[Fault("html")])
    answer = client.dbfs("/Users")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html")
    client.server.change(faults=[Fault("empty_429")], retry_after="seconds")
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.content, answer.headers["Retry-After"]) == (429, b"", "1")
    client.server.change(faults=[Fault("redirect", location="https://example.com/x")])
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.headers["Location"]) == (302, "https://example.com/x")
    client.server.change(faults=[Fault("body", body='{"files": 3}', status=203)])
    answer = client.dbfs("/Users")
    assert (answer.status_code, answer.json()) == (203, {"files": 3})


def test_drip(start):
    client = start(users=1, shape="empty", faults=[Fault("drip", seconds=0.05)])
    began = time.monotonic()
    assert client.workspace(f"/Users/{client.server.user_names[0]}").json() == {}
    assert 0.05 <= time.monotonic() - began < 1


def test_faults_by_api_path_and_rate(start):
    client = start(users=20, shape="empty", faults=[Fault("500", api="dbfs", path="/Users")])
    assert client.dbfs("/Users").status_code == 500
    assert client.dbfs("/").status_code == client.workspace("/Users").status_code == 200
    client.server.change(faults=[Fault("503", api="scim", path=11)])
    assert [client.get(SCIM, startIndex=index).status_code for index in (1, 11)] == [200, 503]
    client.server.change(faults=[Fault("500", rate=0.3)])
    failed = sum(client.get(ME).status_code == 500 for _ in range(200))
    assert 30 < failed < 90
    with pytest.raises(ValueError, match="unknown fault"):
        Fault("nonsense")


def test_outage(start):
    client = start(users=1, outage="503")
    assert client.get(ME).status_code == 503
    client.server.change(outage="close")
    with pytest.raises(requests.ConnectionError):
        client.get(ME)
    client.server.change(outage=None)
    assert client.get(ME).status_code == 200


# Counts, control, HTTP


def test_counts(start):
    client = start(users=3, shape="empty")
    client.dbfs("/Users/")
    client.dbfs("dbfs:/Users")
    client.workspace("/nothing")
    client.get(SCIM, startIndex=2)
    server = client.server
    assert server.requests == {("dbfs", "/Users"): 2, ("workspace", "/nothing"): 1, ("scim", 2): 1}
    assert server.statuses == {200: 3, 404: 1} and server.total_requests == 4
    assert server.counts.path_statuses["dbfs", "/Users", 200] == 2
    assert server.counts.api_statuses["workspace", 404] == 1
    assert server.counts.first_request_at <= server.counts.last_request_at <= server.counts.last_answer_at
    assert server.counts.connections == server.max_in_flight == 1
    server.counts_reset()
    server.change(count_paths=False)
    client.dbfs("/Users")
    assert not server.requests and server.statuses == {200: 1}


def test_control_over_http(start):
    client = start(users=1)
    client.get(ME)
    url = client.server.url
    counts = requests.get(url + "/_fake/counts", timeout=5).json()
    assert counts["requests"] == {"scim": {"Me": 1}} and counts["statuses"] == {"200": 1}
    values = {"faults": [{"kind": "500"}], "limits": {"scim": 1}, "latency": 0.01, "reset_counts": True}
    assert requests.post(url + "/_fake/settings", json=values, timeout=5).status_code == 200
    assert [client.get(ME).status_code for _ in range(2)] == [500, 429]
    assert requests.get(url + "/_fake/counts", timeout=5).json()["total_requests"] == 2
    answer = requests.post(url + "/_fake/settings", json={"nonsense": 1}, timeout=5)
    assert answer.status_code == 400 and "nonsense" in answer.text
    with pytest.raises(TypeError, match="nonsense"):
        FakeDatabricks(users=1, nonsense=1)


def read_all(connection):
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def test_requests_sent_ahead_are_answered_in_order(start):
    client = start(users=1, shape="empty", latency=0.001)
    text = "".join(
        f"GET {DBFS}?path=%2F{number} HTTP/1.1\r\nAuthorization: Bearer {DEFAULT_TOKEN}\r\nConnection: {kept}\r\n\r\n"
        for number, kept in [(n, "keep-alive") for n in range(50)] + [(50, "close")]
    )
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=5) as connection:
        for start_at in range(0, len(text), 1_000):
            connection.sendall(text[start_at : start_at + 1_000].encode())
        answers = read_all(connection).split(b"HTTP/1.1 404")[1:]
    assert len(answers) == 51
    assert all(f"exists on path /{number}." in answer.decode() for number, answer in enumerate(answers))


@pytest.mark.parametrize("text", ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "a" * 70_000])
def test_what_is_no_http_is_refused(start, text):
    client = start(users=1)
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=5) as connection:
        connection.sendall(text.encode())
        assert connection.recv(20).startswith(b"HTTP/1.1 400")


def test_a_client_that_goes_away_is_counted(start):
    client = start(users=1, latency=0.2)
    with pytest.raises(requests.ReadTimeout):
        client.get(ME, timeout=0.05)
    client.session.close()
    deadline = time.monotonic() + 2
    while client.server.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.server.statuses == {"gone": 1}


# As a program


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_program(tmp_path, number):
    truth_file = tmp_path / "truth.csv"
    command = [sys.executable, "-m", "tests.fake", "--users", "12", "--token", "t", "--fault", "500:1",
               "--truth", str(truth_file), "--dbfs-limit", "1", "--limit", "2", "--retry-after", "seconds"]  # fmt: skip
    folder = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as program:
        url, token = program.stdout.readline().split()
        answers = [requests.get(url + ME, headers={"Authorization": f"Bearer {token}"}, timeout=5) for _ in range(3)]
        program.send_signal(number)
        output, errors = program.communicate(timeout=5)
    assert (program.returncode, output, errors) == (0, "", "")
    assert [answer.status_code for answer in answers] == [500, 500, 429]
    assert answers[2].headers["Retry-After"] == "1"
    world = Workspace(users=12)
    with truth_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [world.truth(name) for name in world.user_names]
    assert rows == [{"username": truth.username, "file_count": str(truth.file_count),
                     "total_size": str(truth.total_size)} for truth in expected]  # fmt: skip


def test_every_kind_of_fault_can_come_from_json():
    for kind in FAULT_KINDS:
        FakeDatabricks(users=1, faults=[json.loads(json.dumps({"kind": kind, "rate": 0.5}))])
