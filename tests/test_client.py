"""One request, its retries and its pace: SPEC section 3."""

import codecs
import gzip
import json
import math
import os
import subprocess
import sys
import time
import zlib
from email.utils import formatdate
from functools import partial

import pytest
import requests
import responses
import urllib3

import databricks_user_files_simple as inventory
import databricks_user_list
from databricks_user_files_simple import next_rate
from databricks_user_list import (
    DatabricksClient,
    DatabricksConfig,
    DatabricksError,
    MalformedAnswer,
    decode_body,
    retry_wait,
)
from tests.fake import FORMS, FakeDatabricks, Fault, dbfs_file
from tests.helpers import ROOT, free_port, set_constants

HOST = "https://adb-1.azuredatabricks.net"
SECRET = "dapi-secret-0123456789"
LIST = "/api/2.0/dbfs/list"
URL = HOST + LIST
LIMITED = {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Request limit exceeded."}
SLOW = {"message": "The service at this URL is taking too long to process your request. Please try again later."}
DONE = {"status": 200, "json": {"done": True}}
CONNECTION_WAITS = SERVER_WAITS = [2, 4, 8, 16]
LIMIT_WAITS = [4, 8, 16, 32]


def error(kind, retry_after=0.0, **keywords):
    return DatabricksError(kind, "failed", "/x", retry_after=retry_after, **keywords)


@pytest.fixture
def service():
    """Gives the answers in the order in which they were added; an exception is one too."""
    ordered = responses.registries.OrderedRegistry
    with responses.RequestsMock(registry=ordered, assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def client(clock):
    return DatabricksClient(DatabricksConfig(HOST, SECRET), 1, clock=clock, sleep=clock.sleep, jitter=lambda: 1.0)


def add(service, *answers):
    for answer in answers:
        service.add(responses.GET, URL, **(answer if isinstance(answer, dict) else {"body": answer}))


def ask(client, path="/Users/a"):
    return client.get(LIST, {"path": path}, databricks_user_list.parse_record)


def fail(client, path="/Users/a"):
    with pytest.raises(DatabricksError) as caught:
        ask(client, path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert SECRET not in text
    assert SECRET not in repr(caught.value)
    return caught.value


def at_server(server, clock, path="/Users/a", threads=1):
    client = DatabricksClient(DatabricksConfig(server.url, server.settings.token), threads, clock=clock,
                              sleep=clock.sleep, jitter=lambda: 1.0)  # fmt: skip
    return client, lambda: client.get(LIST, {"path": path}, lambda body: body)


# The two rules, as tables


@pytest.mark.parametrize(("kind", "waits"), [
    ("rate limit", LIMIT_WAITS), ("server", SERVER_WAITS), ("connection", SERVER_WAITS), ("malformed", SERVER_WAITS),
    ("unexpected", SERVER_WAITS), ("too slow", [2]), ("login", []), ("not found", []), ("refused", []),
    ("dbfs disabled", []),
])  # fmt: skip
def test_waits_double_and_end(kind, waits):
    assert [retry_wait(error(kind), number, 1.0) for number in range(1, len(waits) + 2)] == [*waits, None]
    assert [retry_wait(error(kind), number, 0.0) for number in range(1, len(waits) + 1)] == [wait / 2 for wait in waits]
    assert retry_wait(error(kind), 10_000, 1.0) is None


@pytest.mark.parametrize(("attempts", "asked", "jitter", "wait"), [
    (1, 30.0, 0.0, 30.0), (1, 30.0, 1.0, 30.0), (4, 30.0, 1.0, 32.0), (4, 30.0, 0.0, 30.0), (1, 1.0, 0.0, 2.0),
    (0, 0.0, 0.0, 2.0), (0, 0.0, 1.0, 4.0),  # a 429 that used up no attempt
])  # fmt: skip
def test_retry_after_is_a_lower_bound(attempts, asked, jitter, wait):
    assert retry_wait(error("rate limit", asked), attempts, jitter) == wait


@pytest.mark.parametrize(("rate", "limited", "achieved", "quiet", "low", "high"), [
    (None, False, 100.0, math.inf, None, None),  # no delay before the first 429
    (None, True, 0.0, 0, 20, 20),  # 50 ms apart
    (None, True, 45.0, 0, 45, 45),  # less where more was just being achieved
    (20.0, True, 100.0, 9, 16, 18),  # 10 to 20 % less
    (1.0, True, 0.0, 0, 1, 1),  # never more than 1 s apart
    (1.05, True, 0.0, 0, 1, 1),
    (20.0, False, 0.0, 0, 20.01, 20.1),
    (20.0, False, 0.0, 4, 20.01, 20.1),
    (20.0, False, 0.0, 15, 21, 23),  # a limit that has been far away for a while
    (20.0, False, 0.0, 9000, 21, 23),  # nothing was asked for meanwhile
    (5000.0, False, 0.0, 0, None, None),  # eased to no delay at all
])  # fmt: skip
def test_the_rate_follows_the_answers(rate, limited, achieved, quiet, low, high):
    new = next_rate(rate, limited, achieved, quiet)
    assert new == low if low is None else low <= new <= high


def test_the_rate_comes_down_to_1_and_up_to_no_delay_in_the_end():
    rate = next_rate(None, True, 0, 0)
    for _ in range(100):
        rate = next_rate(rate, True, 0, 0)
    assert rate == 1
    for _ in range(100_000):
        rate = rate and next_rate(rate, False, rate, 0)
    assert rate is None


# The table of section 3


@pytest.mark.parametrize(("answer", "waits", "kind"), [
    ({"status": 429, "json": LIMITED}, LIMIT_WAITS, "rate limit"),
    ({"status": 429, "body": b""}, LIMIT_WAITS, "rate limit"),
    ({"status": 429, "body": b"<html>slow down</html>"}, LIMIT_WAITS, "rate limit"),
    ({"status": 500, "json": LIMITED}, LIMIT_WAITS, "rate limit"),
    ({"status": 500, "json": {"detail": "REQUEST_LIMIT_EXCEEDED: token bucket"}}, LIMIT_WAITS, "rate limit"),
    ({"status": 500, "json": {"error_code": "INTERNAL_ERROR", "message": "x"}}, SERVER_WAITS, "server"),
    ({"status": 502, "body": b"<html>Bad gateway</html>"}, SERVER_WAITS, "server"),
    ({"status": 503, "json": {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}}, SERVER_WAITS, "server"),
    ({"status": 504, "body": b""}, SERVER_WAITS, "server"),
    ({"status": 200, "body": b"<html>Sign in</html>", "content_type": "text/html"}, SERVER_WAITS, "malformed"),
    ({"status": 200, "body": b""}, SERVER_WAITS, "malformed"),
    ({"status": 200, "body": b'{"files": ['}, SERVER_WAITS, "malformed"),
    ({"status": 200, "body": b'\xff\xfe{"done": 1}'}, SERVER_WAITS, "malformed"),
    ({"status": 200, "body": b"[" * 200_000}, SERVER_WAITS, "malformed"),
    ({"status": 200, "json": []}, SERVER_WAITS, "unexpected"),
    ({"status": 200, "json": "text"}, SERVER_WAITS, "unexpected"),
    ({"status": 200, "json": None}, SERVER_WAITS, "malformed"),
    ({"status": 503, "json": {"error_code": "TEMPORARILY_UNAVAILABLE", **SLOW}}, [2], "too slow"),
    ({"status": 401, "json": {"error_code": "UNAUTHENTICATED", "message": "x"}}, [], "login"),
    ({"status": 401, "body": b""}, [], "login"),
    ({"status": 403, "body": b"Error 403 Invalid access token."}, [], "login"),
    ({"status": 403, "json": {"error_code": "403", "message": "Invalid access token."}}, [], "login"),
    ({"status": 403, "json": {"error_code": "PERMISSION_DENIED", "message": "No."}}, [], "refused"),
    ({"status": 404, "json": {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "x"}}, [], "not found"),
    ({"status": 404, "json": {"error_code": "ENDPOINT_NOT_FOUND", "message": "x"}}, [], "refused"),
    ({"status": 404, "body": b"<html>Not found</html>"}, [], "refused"),
    ({"status": 400, "json": {"error_code": "INVALID_PARAMETER_VALUE", "message": "x"}}, [], "refused"),
    ({"status": 418, "body": b""}, [], "refused"),
    *(({"status": status, "body": b""}, SERVER_WAITS, "server")
      for status in (408, 425, 501, 505, 520, 521, 522, 524, 529, 530, 598, 599)),
    ({"status": 500, "json": SLOW}, SERVER_WAITS, "server"),
    ({"status": 600, "body": b""}, [], "refused"),
    ({"status": 999, "body": b""}, [], "refused"),
    ({"status": 204, "body": b""}, [], "refused"),
    ({"status": 302, "headers": {"Location": "https://login.example.com/"}}, [], "refused"),
    ({"status": 307, "headers": {"Location": URL}}, [], "refused"),
    (requests.ConnectionError("Connection refused"), CONNECTION_WAITS, "connection"),
    (ConnectionResetError(104, "Connection reset by peer"), CONNECTION_WAITS, "connection"),
    (requests.ReadTimeout("timed out"), CONNECTION_WAITS, "connection"),
    (requests.exceptions.ChunkedEncodingError("broken"), CONNECTION_WAITS, "connection"),
])  # fmt: skip
def test_what_came_back_decides_how_often_it_is_tried(service, client, clock, answer, waits, kind):
    add(service, *[answer] * (len(waits) + 1), DONE)
    caught = fail(client)
    assert caught.kind == kind
    assert len(service.calls) == len(waits) + 1
    assert clock.waits == waits
    assert client.statistics["requests"] == len(waits) + 1
    assert client.statistics["retries"] == len(waits)


@pytest.mark.parametrize(("status", "header", "wait"), [
    (429, "30", 30), (503, "30", 30), (429, "3", 4), (429, "0", 4), (429, "-5", 4), (429, "500", 120),
    (503, "99999999999999999999", 120), (429, "9" * 5000, 4), (429, "soon", 4), (429, "", 4), (429, "1e9", 4),
    (429, "nan", 4), (500, "30", 2), (502, "30", 2),
])  # fmt: skip
def test_retry_after_in_seconds(service, client, clock, status, header, wait):
    add(service, {"status": status, "body": b"", "headers": {"Retry-After": header}}, DONE)
    ask(client)
    assert clock.waits == [wait]


@pytest.mark.parametrize(("ahead", "low", "high"), [(60, 57, 62), (-60, 4, 5), (3600, 120, 121)])
def test_retry_after_as_a_date(service, client, clock, ahead, low, high):
    add(service, {"status": 429, "body": b"", "headers": {"Retry-After": formatdate(time.time() + ahead, usegmt=True)}},
        DONE)  # fmt: skip
    ask(client)
    assert low <= sum(clock.waits) <= high


def test_too_large_a_directory_names_it_and_dbutils(service, client):
    add(service, {"status": 503, "json": SLOW}, {"status": 503, "json": SLOW})
    text = str(fail(client, "/Users/a/huge"))
    assert "/Users/a/huge" in text
    assert "dbutils.fs" in text


@pytest.mark.parametrize("message", [
    "No access to /Users/a/invalid token", "No access to dbfs:/Users/a/invalid token",
    "User a@x does not own /Users/a/invalid access token", "The caller may not list /Users/a/invalid token.",
])  # fmt: skip
@pytest.mark.parametrize("path", ["/Users/a/invalid token", "/Users/a/invalid access token", "/Users/a"])
def test_a_refused_path_that_says_invalid_token_is_no_login_error(service, client, message, path):
    add(service, {"status": 403, "json": {"error_code": "PERMISSION_DENIED", "message": message}})
    assert fail(client, path).kind == "refused"


def test_an_error_carries_status_code_message_and_path(service, client):
    add(service, {"status": 400, "json": {"error_code": "IO_ERROR", "message": "broken disk"}})
    caught = fail(client, "/Users/a/b")
    assert (caught.status, caught.error_code) == (400, "IO_ERROR")
    assert (caught.message, caught.path) == ("broken disk", "/Users/a/b")


@pytest.mark.parametrize("text", [
    "a\nb", "a\r\n\r\nb", "a\x1b[31mb", "a\x00b", "a\u2028b\u2029c", "a\x85b", "x" * 100_000,
])  # fmt: skip
def test_messages_are_one_short_line_without_control_characters(service, client, text):
    add(service, {"status": 400, "json": {"error_code": text, "message": text}})
    shown = str(fail(client))
    assert len(shown) < 500
    assert shown.isprintable()


# Real connections


GATEWAY_FORMS = (*FORMS, "utf-16 bom gzip", "bom", "utf-16")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["truncated", "truncated_json", "reset", "reset_body", "html"])
def test_a_broken_answer_is_asked_for_again(clock, kind, form):
    with FakeDatabricks(users=0, faults=[Fault(kind, times=2)], forms=(form,)) as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file(f"/Users/a/{number}", 1) for number in range(500)]})
        client, get = at_server(server, clock)
        client.reached = True
        assert len(get()["files"]) == 500
        assert server.requests["dbfs", "/Users/a"] == 3
    assert clock.waits == [2, 4]


@pytest.mark.parametrize("form", GATEWAY_FORMS)
@pytest.mark.parametrize("encoding", [None, "", "utf-8", "x-gzip", "gzip", "br, gzip", "identity"])
def test_the_body_decides_and_not_its_headers(clock, form, encoding):
    """Of a listing, and of the error that says that a user has no home in the Workspace."""
    with FakeDatabricks(users=0, forms=(form,), encoding=encoding) as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file("/Users/a/\u00e9\U0001f600", 7)]})
        client, _ = at_server(server, clock)
        (result,) = inventory.scan_users(["a"], client.config, client=client)
        assert (result.status, result.total_size, result.workspace.files) == ("success", 7, 0)
        server.change(faults=[Fault("403", message="N\u00f6.")])
        with pytest.raises(DatabricksError, match="403 PERMISSION_DENIED: N\u00f6"):
            client.attempt(LIST, {"path": "/Users/a"}, databricks_user_list.parse_record)
    assert clock.waits == []


def test_a_silent_server_times_out(clock, monkeypatch):
    set_constants(monkeypatch, READ_SECONDS=0.1)
    with FakeDatabricks(users=0, faults=[Fault("hang", seconds=2, times=1)]) as server:
        server.add_tree("dbfs", {"/Users/a": []})
        client, get = at_server(server, clock)
        client.reached = True
        assert get() == {}
        assert server.requests["dbfs", "/Users/a"] == 2


def test_a_dripping_server_times_out(clock, monkeypatch):
    set_constants(monkeypatch, BODY_SECONDS=0.2)
    if not hasattr(urllib3.HTTPResponse, "read1"):
        pytest.skip("urllib3 1.26 looks at the clock only after each piece of 16 KB")
    with FakeDatabricks(users=0, faults=[Fault("drip", seconds=0.05, times=1)]) as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file("/Users/a/f", 1)]})  # about 5 s long
        client = DatabricksClient(DatabricksConfig(server.url, server.settings.token))
        started = time.monotonic()
        with pytest.raises(DatabricksError, match="the answer took longer than") as caught:
            client.attempt(LIST, {"path": "/Users/a"}, lambda body: body)
        assert caught.value.kind == "connection"
        assert time.monotonic() - started < 2


# What a body says


packed = partial(gzip.compress, mtime=0)  # the same bytes in every process: they name tests
RECORD = {"files": [{"path": "/Users/a/\u00e9\U0001f600", "is_dir": False, "file_size": 7}]}
TEXT = json.dumps(RECORD, ensure_ascii=False)
ENCODED = [TEXT.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")]
ENCODED.append(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"))


@pytest.mark.parametrize("body", [
    *ENCODED, *map(packed, ENCODED), b" \r\n" + TEXT.encode() + b"\n",
])  # fmt: skip
def test_a_body_is_decoded_as_what_it_is(body):
    assert decode_body(body) == RECORD


PACKED = packed(TEXT.encode())


@pytest.mark.parametrize(("body", "text"), [
    (b"", "not JSON"), (b" ", "not JSON"), (b"\xff\xfe", "not JSON"), (codecs.BOM_UTF8, "not JSON"),
    (packed(b""), "not JSON"), (b"{} {}", "not JSON"), (TEXT.encode("latin-1", "ignore"), "not JSON"),
    (b'"\xed\xa0\x80"', "not JSON"), (b'{"files": [', "not JSON"), (ENCODED[2][:-1], "not JSON"),
    (codecs.BOM_UTF16_LE + b'{"done": 1}', "not JSON"), (b"9" * 5000, "not JSON"), (b"[" * 200_000, "not JSON"),
    (packed(PACKED), "not JSON"), (zlib.compress(TEXT.encode()), "not JSON"),
    ("<HTML>Sign in</HTML>".encode("utf-16"), "an HTML page"), (packed(b"<html>"), "an HTML page"),
    (PACKED[:-8] + bytes(8), "cut short or damaged"), (PACKED + b"x", "cut short or damaged"),
    (packed(TEXT[:9].encode()) + packed(TEXT[9:].encode()), "cut short or damaged"),
    (b"[" + b"{}," * 2_000_000 + b"{}]", "more than 4,000,000 values"),
    (packed(b"[" + b"{}," * 2_000_000 + b"{}]"), "more than 4,000,000 values"),
    (packed(bytes(33 * 1024**2)), "longer than 32 MB"),
], ids=lambda value: repr(value)[:30])  # fmt: skip
def test_a_body_that_is_none_is_refused_with_a_text_for_people(body, text):
    with pytest.raises(MalformedAnswer, match=text):
        decode_body(body)


def test_a_gzipped_body_that_is_cut_anywhere_is_refused():
    for length in range(2, len(PACKED)):
        with pytest.raises(MalformedAnswer, match="cut short or damaged"):
            decode_body(PACKED[:length])


@pytest.mark.parametrize(("length", "fits"), [(1000, True), (1001, False)])
@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_body_over_the_limit_is_refused(service, client, monkeypatch, length, fits, pack):
    set_constants(monkeypatch, LONGEST_BODY=1000)
    add(service, *[{"status": 200, "body": pack(b'{"a": "' + b"x" * (length - 9) + b'"}')}] * 5)
    if fits:
        assert len(ask(client)["a"]) == 991
    else:
        assert fail(client).kind == "malformed"
        assert len(service.calls) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB")
def test_a_gzip_bomb_takes_no_memory():
    """Of 300 MB; what is measured is a process's own peak."""
    code = (
        "import resource, zlib, databricks_user_files_simple as scanner\n"
        "stream = zlib.compressobj(1, wbits=31)\n"
        "bomb = b''.join(stream.compress(bytes(10**6)) for _ in range(300)) + stream.flush()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    scanner.decode_body(bomb)\n"
        "except scanner.MalformedAnswer as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text, megabytes = done.stdout.splitlines()
    assert text == "the answer is longer than 32 MB"
    assert int(megabytes) < 150


def client_of(url, clock, token=SECRET):
    return DatabricksClient(DatabricksConfig(url, token), clock=clock, sleep=clock.sleep, jitter=lambda: 1.0)


def test_the_first_request_to_an_unreachable_host_is_not_repeated(clock):
    client = client_of(f"http://127.0.0.1:{free_port()}", clock)
    caught = fail(client)
    assert caught.unreachable
    assert clock.waits == []
    assert client.statistics["requests"] == 1


def test_a_refused_connection_later_is_tried_five_times(clock):
    with FakeDatabricks(users=0) as server:
        server.add_tree("dbfs", {"/Users/a": []})
        client, get = at_server(server, clock)
        get()
    with pytest.raises(DatabricksError) as caught:
        get()
    assert caught.value.kind == "connection"
    assert clock.waits == SERVER_WAITS
    assert client.statistics["requests"] == 6


def test_a_name_that_is_no_unicode_is_refused_without_a_request(clock):
    with FakeDatabricks(users=0) as server:
        client, _ = at_server(server, clock)
        with pytest.raises(DatabricksError) as caught:
            client.get(LIST, {"path": "/Users/a/\ud800"}, lambda body: body)
        assert caught.value.kind == "refused"
        assert not server.total_requests


@pytest.mark.parametrize("name", [
    "a b", "a+b", "a&b=c", "100%", "%2F", "#1", "what?", "\u00e9", "\U0001f600", "a\tb", "a\nb", " a", "a ",
])  # fmt: skip
def test_names_reach_the_service_as_they_are(clock, name):
    with FakeDatabricks(users=0) as server:
        server.add_tree("dbfs", {f"/Users/{name}": []})
        _, get = at_server(server, clock, f"/Users/{name}")
        assert get() == {}


def test_connections_are_used_again(clock):
    with FakeDatabricks(users=0) as server:
        server.add_tree("dbfs", {"/Users/a": []})
        _, get = at_server(server, clock)
        for _ in range(20):
            get()
        assert server.counts.connections == 1


@pytest.mark.skipif(os.name == "nt", reason="the message is the system's")
def test_a_refused_connection_is_named_in_few_words(clock):
    client = client_of(f"http://127.0.0.1:{free_port()}", clock)
    assert str(fail(client)) == "Connection refused; check the URL, the network and the proxy"
