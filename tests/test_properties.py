"""Whatever the bytes: files and answers give a right result or a clean error, and never a traceback or a hang.

Each property runs the code that both commands run, in this process. `INVENTORY_EXAMPLES` multiplies the examples.
"""

import csv
import io
import itertools
import json
import math
import os
import unicodedata
from contextlib import redirect_stdout

import pytest
import responses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databricks_user_files_simple import (
    UserResult,
    next_rate,
    open_checkpoint,
    parse_listing,
    read_usernames,
    scan_users,
)
from databricks_user_list import (
    RETRIES,
    USER_LIST_COLUMNS,
    DatabricksClient,
    DatabricksConfig,
    DatabricksError,
    InventoryError,
    check_username,
    classify_error,
    list_profiles,
    load_databricks_config,
    parse_error_body,
    parse_page,
    read_workspace_url,
    retry_wait,
    safe_cell,
    write_users,
)
from tests.fake import FakeDatabricks, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import HEADER, write_checkpoint
from tests.strategies import RESULTS, USERNAMES, flatten, plain_count, trees

MANY = int(os.environ.get("INVENTORY_EXAMPLES", "1"))
TOKEN = "dapi-5ecret-0123456789"
CONFIG = DatabricksConfig("https://adb-1.2.azuredatabricks.net", TOKEN)
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def property_of(*strategies, examples=100, **named):
    """given(), with examples that are the same in every run."""

    def decorate(function):
        return settings(max_examples=examples * MANY, deadline=None, derandomize=MANY == 1,
                        suppress_health_check=SUPPRESSED)(given(*strategies, **named)(function))  # fmt: skip

    return decorate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a property, each with a name of its own."""
    path, number = tmp_path_factory.mktemp("properties"), itertools.count()
    return lambda: path / str(next(number))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip
PIECES = st.sampled_from([
    b"\n", b"\r\n", b"\r", b",", b";", b'"', b"'", b"=", b"[", b"]", b"{", b"}", b"\x00", b" ", b"\t", b"%", b"#",
    b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"username", b"email", b"a@x.com", b"..", b"/",
    b"\\"])  # fmt: skip


def bytes_of(*pieces):
    """Any bytes, and such as are nearly right."""
    return st.binary(max_size=60) | st.lists(PIECES | st.sampled_from(pieces), max_size=14).map(b"".join)


def edited(draw, data):
    """The bytes with some of them cut out, doubled, or replaced by others."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(start + draw(st.integers(0, 40)), len(data))
        data = data[:start] + draw(st.binary(max_size=4) | st.just(data[start:end] * 2)) + data[end:]
    return data


# Trees


@property_of(
    trees(st.integers(0, 2**62)), trees(st.sampled_from(["NOTEBOOK", "FILE", None])), st.integers(1, 12), examples=15
)
def test_the_order_of_the_answers_does_not_matter(dbfs, workspace, threads):
    with FakeDatabricks(users=["a@x.com", "b@x.com"], shape="none", latency_spread=0.004) as server:
        for name in server.user_names:
            server.add_tree("dbfs", flatten(f"/Users/{name}", dbfs, dbfs_file, dbfs_directory))
            server.add_tree("workspace", flatten(f"/Users/{name}", workspace, workspace_object,
                                                 lambda path: workspace_object(path, "DIRECTORY")))  # fmt: skip
        config = DatabricksConfig(server.url, server.settings.token)
        results = list(scan_users(server.user_names, config, threads))
        counts = server.counts.requests
    assert {result.username for result in results} == {"a@x.com", "b@x.com"}
    for result in results:
        assert (result.dbfs.files, result.dbfs.bytes, result.dbfs.directories) == plain_count(dbfs)
        assert (result.workspace.files, result.workspace.directories) == plain_count(workspace)[::2]
        assert not result.error
    assert {number for (api, path), number in counts.items() if api != "scim" and path != "/Users"} == {1}


# Files that people give


@property_of(bytes_of(b"a@x.com\n", b"username,active\n", b"userName;x\n"), examples=400)
def test_any_bytes_as_users_file(folder, data):
    path = folder()
    path.write_bytes(data)
    try:
        names = read_usernames([], str(path))
    except InventoryError as error:
        assert str(path) in str(error)
    else:
        assert names
        assert len(set(names)) == len(names)
        for name in names:
            check_username(name)


@property_of(st.lists(USERNAMES, min_size=1, max_size=5, unique=True), examples=200)
def test_the_users_file_of_one_command_is_read_by_the_other(folder, names):
    path, rows = folder(), [dict.fromkeys(USER_LIST_COLUMNS, "=1") | {"username": name} for name in names]
    write_users(rows, str(path))
    assert read_usernames([], str(path)) == names


@property_of(bytes_of(
    b"[DEFAULT]\n", b"[__settings__]\n", b"host = https://a.net\n", b"\ntoken = " + TOKEN.encode(), b"\n[p]\n",
    b"default_profile = p\n", b"auth_type = pat\n", b"host = "), examples=400)  # fmt: skip
def test_any_bytes_as_profile_file(folder, data):
    path = folder()
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.setenv("DATABRICKS_CONFIG_FILE", str(path))
        for read in (load_databricks_config, list_profiles):
            try:
                print(repr(read()))
            except InventoryError as error:
                print(error)
    assert TOKEN not in shown.getvalue()


# Checkpoints


def loaded(path):
    """What a run with --resume would keep, or None if it refuses; what it keeps it can also go on with."""
    try:
        with open_checkpoint(path, HEADER, resume=True) as checkpoint:
            results = {name: checkpoint.load(name) for name in checkpoint.lines}
            checkpoint.save(UserResult("new", "2026-11-23T04:00:00Z"))
    except InventoryError as error:
        assert str(path) in str(error)
        return None
    again = json.loads(path.read_bytes())
    kept = {record["username"]: UserResult.from_dict(record) for record in again["results"]}
    assert kept == results | {"new": UserResult("new", "2026-11-23T04:00:00Z")}
    return results


SOME = st.lists(RESULTS, min_size=1, max_size=3, unique_by=lambda result: result.username)


@property_of(results=SOME, share=st.floats(0, 1), examples=150)
def test_a_checkpoint_cut_anywhere_keeps_every_whole_result(folder, results, share):
    path = folder()
    data = write_checkpoint(path, results)
    first = data.index(b"\n")
    cut = first + round(share * (len(data) - first))
    path.write_bytes(data[:cut])
    whole, end = 0, first
    for line in data.split(b"\n")[1 : len(results) + 1]:
        end += 1 + len(line.removesuffix(b","))
        whole += end <= cut
        end += line.endswith(b",")
    assert list(loaded(path)) == [result.username for result in results[:whole]]


@property_of(results=SOME, data=st.data(), examples=300)
def test_an_edited_checkpoint_is_refused_or_read_as_what_it_says(folder, results, data):
    path = folder()
    path.write_bytes(edited(data.draw, write_checkpoint(path, results)))
    loaded(path)


HEADER_LINE = json.dumps({"version": 1, "run": "1f", **HEADER, "results": []})[:-2].encode() + b"\n"


@property_of(bytes_of(HEADER_LINE, b"]}", b'{"username": "a"}'), examples=200)  # fmt: skip
def test_any_bytes_as_checkpoint(folder, data):
    path = folder()
    path.write_bytes(data)
    loaded(path)


@property_of(RESULTS)
def test_a_result_survives_json(result):
    assert UserResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


@property_of(
    JSON | st.fixed_dictionaries({"username": JSON, "scanned_at": JSON, "status": JSON, "dbfs": JSON}), examples=300
)
def test_any_json_as_a_result(record):
    try:
        result = UserResult.from_dict(record)
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    result.row()


# Answers


PATHS = ["/Users/a", "/Users/a/b", "/Users/a/c", "/Users/a/b/c", "/Users", "/Users/a/..", "/", "/Users/b/x"]
TYPES = st.sampled_from(["DIRECTORY", "REPO", "FILE"])
GOOD = st.fixed_dictionaries({"path": st.sampled_from(PATHS[1:3] * 5 + PATHS), "is_dir": st.booleans(),
                              "object_type": TYPES, "file_size": st.sampled_from([0, 1, 2**40, -1])})  # fmt: skip
ENTRY = st.fixed_dictionaries({"path": st.sampled_from(PATHS) | JSON}, optional={
    "is_dir": st.booleans() | JSON, "file_size": st.integers(-1, 2**63) | JSON,
    "object_type": TYPES | JSON})  # fmt: skip
LISTING = st.fixed_dictionaries({}, optional={
    "files": st.lists(GOOD | ENTRY, max_size=4) | JSON, "objects": st.lists(GOOD | ENTRY, max_size=4) | JSON,
    "error_code": JSON, "message": JSON})  # fmt: skip
GOOD_LISTING = st.lists(GOOD, min_size=1, max_size=3).map(lambda entries: {"files": entries, "objects": entries})
BODIES = GOOD_LISTING.map(json.dumps) | (LISTING | JSON).map(json.dumps) | bytes_of(b"{}", b'{"files": [', b"<html>")
STATUSES = st.just(200) | st.sampled_from([204, 206, 301, 302, 400, 401, 403, 404, 418, 429, 500, 502, 503, 504])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "Location", "Content-Type"]), VALUES) | st.dictionaries(
    st.just("Content-Encoding"), VALUES)  # fmt: skip


def answered(parse, status, body, headers):
    """What attempt() returns for this answer, or its error."""
    with responses.RequestsMock() as mocked:
        mocked.get(f"{CONFIG.host}/x", body=body, status=status, headers=headers)
        try:
            return DatabricksClient(CONFIG).attempt("/x", {"path": "/Users/a"}, parse)
        except DatabricksError as error:
            assert TOKEN not in str(error)
            assert "\n" not in str(error)
            assert 0 <= error.retry_after <= 120
            return error


@property_of(st.sampled_from(["dbfs", "workspace"]), STATUSES, BODIES, HEADERS, examples=500)
def test_any_answer_to_a_listing_is_the_listing_or_an_error(file_system, status, body, headers):
    result = answered(lambda value: parse_listing(file_system, "/Users/a", value), status, body, headers)
    if isinstance(result, DatabricksError):
        return
    entries = json.loads(body).get("files" if file_system == "dbfs" else "objects", [])
    listing = result
    counted = [*(entry.path for entry in listing.files), *listing.directories, *listing.odd]
    assert status == 200
    assert sorted(counted) == sorted({entry["path"] for entry in entries})
    assert len(counted) == len(entries)
    assert all(path.startswith("/Users/a/") for path in counted) or listing.is_file and len(entries) == 1
    assert not [path for path in listing.directories if "/" in path.removeprefix("/Users/a/")]
    if file_system == "dbfs":
        assert 0 <= listing.bytes == sum(entry.size for entry in listing.files)


USER = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | JSON,
        "userName": st.text(max_size=5) | JSON,
        "active": JSON,
        "displayName": JSON,
    },
)
PAGE = st.fixed_dictionaries({}, optional={
    "Resources": st.lists(USER, max_size=3) | JSON, "totalResults": st.integers() | JSON})  # fmt: skip


@property_of(STATUSES, BODIES | PAGE.map(json.dumps), HEADERS, examples=300)
def test_any_answer_to_a_page_of_users_is_the_page_or_an_error(status, body, headers):
    page = answered(parse_page, status, body, headers)
    if not isinstance(page, DatabricksError):
        assert status == 200
        assert len(page["Resources"]) == len(json.loads(body).get("Resources", []))
        assert page["totalResults"] >= 0


@property_of(st.integers(100, 999), st.text(max_size=200))
def test_any_text_as_an_error(status, text):
    error_code, message = parse_error_body(text)
    assert isinstance(classify_error(status, error_code, message), str)


# Texts and numbers


@property_of(st.text(max_size=30) | st.builds(
    "{}{}{}{}".format, st.sampled_from(["", "https://", "http://", "HTTPS:", "ftp://"]),
    st.sampled_from(["", "user:pw@", "@"]),
    st.sampled_from(["adb-1.net", "localhost", "127.0.0.1", "[::1]", "10.0.0.1", "x..y"]),
    st.sampled_from(["", ":443", ":x", "/?o=1#a", "\\", ":99999", "@evil.net"])), examples=500)  # fmt: skip
def test_any_text_as_workspace_url(text):
    try:
        host, _ = read_workspace_url(text, "x")
    except InventoryError as error:
        assert "pw" not in str(error)
        return
    scheme, _, name = host.partition("://")
    assert scheme == "https" or name.split(":")[0] in ("localhost", "127.0.0.1") or name.startswith("[::1]")
    assert not set(name) & set("/?#@\\ ")
    assert read_workspace_url(host, "x") == (host, "")


@property_of(st.text(max_size=6) | st.text("=+-@\t\r\n;,\"' a", max_size=6), st.sampled_from(",;\t"), examples=500)
def test_no_cell_is_a_formula(text, delimiter):
    file = io.StringIO()
    csv.writer(file).writerow(["a", safe_cell(text), "b"])
    for row in csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter):
        for cell in row:
            assert not cell.lstrip("\t\r\n").startswith(("=", "+", "-", "@"))
    assert not [sign for sign in safe_cell(text) if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"]


KINDS = st.sampled_from([*RETRIES, "refused", "login", "not found"])


@property_of(KINDS, st.integers(0, 9), st.floats(0, 1), st.floats(0, 120))
def test_a_wait_is_none_or_at_least_what_was_asked_for(kind, attempts, jitter, asked):
    wait = retry_wait(DatabricksError(kind, "", "", retry_after=asked), attempts, jitter)
    assert wait is None or asked <= wait <= max(asked, 32)
    assert wait is None or attempts < 5


@property_of(st.lists(st.tuples(st.booleans(), st.floats(0, 500), st.floats(0, 1e6) | st.just(math.inf)), max_size=300))
def test_the_rate_stays_in_its_bounds(answers):
    rate = None
    for limited, achieved, quiet in answers:
        before, rate = rate, next_rate(rate, limited, achieved, quiet)
        assert rate is None or 1 <= rate <= 1000
        if limited:
            assert rate is not None
            assert before is None or rate <= before
        else:
            assert rate is None or rate > before or rate == before >= 2 * max(achieved, 20)
