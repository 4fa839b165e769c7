"""One request: what an answer is taken for, how often it is tried, and what harm a server or a proxy may do.

No token gets out, nothing goes on for ever, memory stays bounded.
"""

import base64
import codecs
import gzip
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import types
import zlib
from contextlib import suppress
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import chain, repeat, takewhile
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
import responses
import urllib3

import databricks_user_files_simple as scanner
import databricks_user_list

from databricks_user_list import (  # isort: skip
    DatabricksClient, DatabricksConfig, DatabricksError, MalformedAnswer, decode_body, parse_record, retry_wait,
)  # fmt: skip
from tests.fake import FORMS, FakeDatabricks, Fault, dbfs_directory, dbfs_file

from tests.helpers import (  # isort: skip
    NAME, SCANNER, USER_LIST, assert_kept, config_of, make_client, rows_of, set_constants,
)  # fmt: skip

HOST = "https://adb-1.azuredatabricks.net"
SECRET = "dapi-secret-0123456789"
TOKEN = "a+b(c)[d]*\\e$^|f?.{2}/=%20~\"'<b>&amp;"  # with all that patterns, URLs, JSON and HTML know
LIST = "/api/2.0/dbfs/list"
LIMITED = {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Request limit exceeded."}
SLOW = {"message": "The service at this URL is taking too long to process your request. Please try again later."}
SERVER_WAITS, LIMIT_WAITS = [2, 4, 8, 16], [4, 8, 16, 32]


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
        service.add(responses.GET, HOST + LIST, **(answer if isinstance(answer, dict) else {"body": answer}))


def fail(client, path="/Users/a"):
    with pytest.raises(DatabricksError) as caught:
        client.get(LIST, {"path": path}, parse_record)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in f"{caught.value} {caught.value!r}"
    return caught.value


# What came back decides how often it is tried


def error_of(code, message="x"):
    return {"error_code": code, "message": message}


@pytest.mark.parametrize(("answer", "waits", "kind"), [
    ({"status": 429, "json": LIMITED}, LIMIT_WAITS, "rate limit"),
    ({"status": 500, "json": {"detail": "REQUEST_LIMIT_EXCEEDED: token bucket"}}, LIMIT_WAITS, "rate limit"),
    ({"status": 500, "json": error_of("INTERNAL_ERROR")}, SERVER_WAITS, "server"),
    ({"status": 503, "json": error_of("TEMPORARILY_UNAVAILABLE")}, SERVER_WAITS, "server"),
    *(({"status": status, "body": b""}, SERVER_WAITS, "server") for status in (408, 425, 501, 504, 599)),
    ({"status": 503, "json": {"error_code": "TEMPORARILY_UNAVAILABLE", **SLOW}}, [2], "too slow"),
    ({"status": 200, "body": b"<html>Sign in</html>", "content_type": "text/html"}, SERVER_WAITS, "malformed"),
    ({"status": 200, "json": []}, SERVER_WAITS, "unexpected"),
    ({"status": 401, "body": b""}, [], "login"),
    ({"status": 403, "body": b"Error 403 Invalid access token."}, [], "login"),
    ({"status": 403, "json": error_of("403", "Invalid access token.")}, [], "login"),
    *(({"status": 403, "json": error_of("403", message)}, [], "login") for message in (
        "Token is expiring within 30 seconds. (token expired)", "The access token you provided is invalid",
        "Expired token", "JWT has expired", "token was revoked", "Invalid JWT", "Expired JWT token",
        "Invalid personal access token", "The token is no longer valid", "invalid_token")),
    ({"status": 400, "body": b"io.jsonwebtoken.ExpiredJwtException: JWT expired 3 s ago"}, [], "login"),
    ({"status": 400, "json": error_of("IO_ERROR", "403 of the store: the SAS token has expired")}, [], "refused"),
    ({"status": 403, "json": error_of("PERMISSION_DENIED", "You do not own an invalid token")}, [], "refused"),
    ({"status": 403, "json": error_of("403", "No access to /Users/invalid token")}, [], "refused"),  # the very path
    ({"status": 404, "json": error_of("RESOURCE_DOES_NOT_EXIST")}, [], "not found"),
    ({"status": 404, "json": error_of("ENDPOINT_NOT_FOUND")}, [], "refused"),
    ({"status": 404, "json": error_of("X", "DBFS root is disabled")}, [], "refused"),  # a page of something else
    ({"status": 404, "body": b'{"error_code": "RESOURCE_DOES_NOT_EX'}, SERVER_WAITS, "malformed"),  # cut short
    ({"status": 404, "body": gzip.compress(b"{}")[:-3]}, SERVER_WAITS, "malformed"),
    ({"status": 400, "json": error_of("INVALID_PARAMETER_VALUE")}, [], "refused"),
    *(({"status": status, "body": b""}, [], "refused") for status in (204, 418)),
    ({"status": 307, "headers": {"Location": HOST + LIST}}, [], "refused"),  # nobody follows it
    (requests.ConnectionError("Connection refused"), SERVER_WAITS, "connection"),
    (requests.ConnectTimeout("timed out"), [], "connection"),  # never reached: not asked again
])  # fmt: skip
def test_what_came_back_decides_how_often_it_is_tried(service, client, clock, answer, waits, kind):
    add(service, *[answer] * (len(waits) + 1), {"json": {"done": True}})
    assert fail(client, "/Users/invalid token").kind == kind
    assert len(service.calls) == client.statistics["requests"] == len(waits) + 1
    assert clock.waits == waits
    assert client.statistics["retries"] == len(waits)
    assert client.statistics["rate_limited"] == (len(waits) if kind == "rate limit" else 0)


@pytest.mark.parametrize(("kind", "attempts", "asked", "jitter", "wait"), [
    ("rate limit", 1, 0.0, 0.0, 2.0), ("server", 4, 0.0, 0.5, 12.0), ("too slow", 2, 0.0, 1.0, None),
    ("rate limit", 1, 30.0, 0.0, 30.0), ("rate limit", 4, 30.0, 1.0, 32.0), ("rate limit", 4, 30.0, 0.0, 30.0),
    ("rate limit", 0, 0.0, 1.0, 4.0),  # a 429 that used up no attempt
    ("server", 10_000, 0.0, 1.0, None), ("login", 1, 30.0, 1.0, None),
])  # fmt: skip
def test_a_wait_is_jittered_down_to_the_half_and_never_below_what_was_asked_for(kind, attempts, asked, jitter, wait):
    assert retry_wait(DatabricksError(kind, "failed", "/x", retry_after=asked), attempts, jitter) == wait


@pytest.mark.parametrize(("answer", "says"), [
    ({"status": 400, "json": {"error": "no such API"}}, "400: no such API"),
    ({"status": 400, "json": {"detail": "no", "scimType": "x"}}, "400 x: no"),
    ({"status": 400, "json": error_of("x", "a\r\n\r\n\x1b[31mb\x00c\u2028d")}, "400 x: a [31mb c d"),
    ({"status": 400, "json": error_of("x", "x" * 10_000)}, f"400 x: {'x' * 297}..."),
    ({"status": 300, "headers": {"Location": "/a"}}, "300: redirected to /a: is this the workspace's URL?"),
    ({"status": 404, "body": b'{"err'}, "404: the answer was cut short"),
    ({"status": 503, "json": SLOW},
     "503: /Users/a is too large to be listed over REST; dbutils.fs on a cluster can list it"),
])  # fmt: skip
def test_an_error_is_one_short_line(service, client, answer, says):
    add(service, *[answer] * 5)
    caught = fail(client)
    assert (str(caught), caught.status, caught.path) == (says, answer["status"], "/Users/a")


# What a body says

packed = partial(gzip.compress, mtime=0)  # the same bytes in every process: they name tests
RECORD = {"files": [{"path": "/Users/a/\u00e9\U0001f600", "is_dir": False, "file_size": 7}]}
TEXT = json.dumps(RECORD, ensure_ascii=False)
ENCODED = [TEXT.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")]
ENCODED.append(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"))
PACKED = packed(TEXT.encode())


@pytest.mark.parametrize("body", [
    *ENCODED, *map(packed, ENCODED), b" \r\n" + TEXT.encode() + b"\n", PACKED + b"\0\r\n",
    packed(TEXT[:9].encode()) + packed(TEXT[9:].encode()) + packed(b""),
])  # fmt: skip
def test_a_body_is_decoded_as_what_it_is(body):
    assert decode_body(body) == RECORD


@pytest.mark.parametrize(("body", "text"), [
    (b"", "not JSON"), (b"\xff\xfe", "not JSON"), (codecs.BOM_UTF8, "not JSON"), (packed(b""), "not JSON"),
    (b"{} {}", "not JSON"), (TEXT.encode("latin-1", "ignore"), "not JSON"), (b'"\xed\xa0\x80"', "not JSON"),
    (ENCODED[2][:-1], "not JSON"), (codecs.BOM_UTF16_LE + b'{"done": 1}', "not JSON"), (b"9" * 5000, "not JSON"),
    (b"[" * 200_000, "not JSON"), (packed(PACKED), "not JSON"), (zlib.compress(TEXT.encode()), "not JSON"),
    ("<HTML>Sign in</HTML>".encode("utf-16"), "an HTML page"), (packed(b"<html>"), "an HTML page"),
    (PACKED[:-8] + bytes(8), "cut short or damaged"), (PACKED + b"\0x", "cut short or damaged"),
    (PACKED + PACKED[:-3], "cut short or damaged"),
    (packed(bytes(33 * 1024**2)), "longer than 32 MB"),
], ids=lambda value: repr(value)[:30])  # fmt: skip
def test_a_body_that_is_none_is_refused_with_a_text_for_people(body, text):
    with pytest.raises(MalformedAnswer, match=text):
        decode_body(body)


# Real connections


@pytest.fixture
def one_home():
    """A server with the DBFS home of a, 500 files."""
    with FakeDatabricks(users=0) as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file(f"/Users/a/\u00e9\U0001f600{n}", 1) for n in range(500)]})
        yield server


@pytest.mark.parametrize("form", [*FORMS, "utf-16 bom gzip", "bom", "utf-16"])
@pytest.mark.parametrize("encoding", [None, "utf-8", "gzip", "br, gzip"])
def test_the_body_decides_and_not_its_headers(one_home, clock, form, encoding):
    """Of a listing, and of the error that says that a user has no home in the Workspace."""
    one_home.change(forms=(form,), encoding=encoding)
    client = make_client(one_home, clock)
    (result,) = scanner.scan_users(["a"], client.config, client=client)
    assert (result.status, result.total_size, result.workspace.files) == ("success", 500, 0)
    one_home.change(faults=[Fault("403", message="N\u00f6.")])
    assert (str(fail(client)), clock.waits) == ("403 PERMISSION_DENIED: N\u00f6.", [])


@pytest.mark.parametrize(("kind", "seconds", "says"), [
    ("hang", 20, "no answer within 0.1 s"), ("drip", 0.05, "the answer took longer than 0.2 s"),
])  # fmt: skip
def test_a_silent_or_dripping_server_times_out(one_home, monkeypatch, kind, seconds, says):
    set_constants(monkeypatch, READ_SECONDS=0.1, BODY_SECONDS=0.2)
    one_home.change(faults=[Fault(kind, seconds=seconds, times=1)])
    if kind == "drip" and not hasattr(urllib3.HTTPResponse, "read1"):
        pytest.skip("urllib3 1.26 waits for pieces of 16 KB")
    with pytest.raises(DatabricksError, match=says) as caught:
        DatabricksClient(config_of(one_home)).attempt(LIST, {"path": "/Users/a"}, parse_record)
    assert (caught.value.kind, caught.value.unreachable) == ("connection", False)


@pytest.mark.skipif(os.name == "nt", reason="the message is the system's")
def test_a_refused_connection_is_final_at_first_and_tried_five_times_later(clock):
    with FakeDatabricks(users=0) as server:
        client, stranger = make_client(server, clock), make_client(server, clock)
        client.get("/api/2.0/preview/scim/v2/Me", {}, parse_record)
    assert (fail(client).kind, client.statistics["requests"], clock.waits) == ("connection", 6, SERVER_WAITS)
    caught = fail(stranger)
    assert (caught.unreachable, stranger.statistics["requests"], clock.waits) == (True, 1, SERVER_WAITS)
    assert str(caught) == "Connection refused; check the URL, the network and the proxy"


def test_a_name_that_is_no_unicode_is_refused_without_a_request(one_home, clock):
    assert fail(make_client(one_home, clock), "/Users/a/\ud800").kind == "refused"
    assert not one_home.total_requests


# A server that writes raw bytes


class RawServer(socketserver.ThreadingTCPServer):
    """Sends the pieces of bytes of script(api, path) as an answer; api is dbfs, workspace, Me or Users.

    `heads` is what came, `seen` are the places that were asked for.
    """

    request_queue_size = 200

    def __init__(self, script, certificate=None, address="127.0.0.1"):
        super().__init__((address, 0), None)
        self.script, self.seen, self.heads, self.ended = script, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_name("key.pem"))
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = f"https://localhost:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def finish_request(self, request, client_address):
        with suppress(OSError, ValueError, IndexError):  # it may send nothing
            request.settimeout(20)
            with request.makefile("rb") as lines:
                head = b"".join(takewhile(b"\r\n".__ne__, lines))
            self.heads.append(head.decode("latin-1"))
            place = urlsplit(head.split(b" ")[1].decode())
            api = place.path.removesuffix("/list").rpartition("/")[2]
            path = parse_qs(place.query).get("path", [""])[0]
            self.seen.append((api, path))
            for piece in self.script(api, path):
                if self.ended.is_set():
                    return
                request.sendall(piece)

    def __exit__(self, *error):
        self.ended.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


def answer(body=b"{}", status="200 OK", *headers):
    """The bytes of an answer after which the connection is closed."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(f"Content-Length: {len(body)}", *headers, status=status) + body


def head(*headers, status="200 OK"):
    """The head of an answer whose body ends when the server closes the connection."""
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "\r\n"]).encode("latin-1")


def folders(*paths):
    return answer({"files": [dbfs_directory(path) for path in paths]})


ADMIN = answer({"groups": [{"display": "admins"}]})


def homes_of(answers):
    """A server whose caller is an admin; answers: user name -> function that makes the pieces of a home's answer."""
    fixed = {"Me": [ADMIN], "/Users": [folders(*[f"/Users/{name}" for name in answers])]}

    def script(api, path):
        name = path.rpartition("/")[2]
        return fixed.get(api) or fixed.get(path) or (answers[name]() if name in answers else [answer()])

    return RawServer(script)


def test_the_answer_that_comes_after_a_103_is_nobody_elses():
    """It comes late, on the same connection, and would be an empty directory to whoever asked next on that."""
    asked = threading.Event()

    def script(_, path):
        if path == "/Users/b":
            asked.set()
            yield folders("/Users/b/c")
            return
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
        asked.wait(1)
        yield answer()

    with RawServer(script) as server:
        client = DatabricksClient(DatabricksConfig(server.url, SECRET))
        with pytest.raises(DatabricksError, match="103"):
            client.attempt(LIST, {"path": "/Users/a"}, parse_record)
        assert client.attempt(LIST, {"path": "/Users/b"}, parse_record)["files"][0]["path"] == "/Users/b/c"


def empty_workspace(api, path):
    return [ADMIN if api == "Me" else answer()]


@pytest.fixture
def hurried(monkeypatch, run):
    """hurried(server or URL, *words, script=..., token=..., NAME=value of a variable): a command in this process."""
    retries = dict.fromkeys(databricks_user_list.RETRIES, (1, 0.0))
    questions = {"FIRST_QUESTION": 0.1, "LAST_QUESTION": 0.1, "LONGEST_OUTAGE": 0.2}
    set_constants(monkeypatch, RETRIES=retries, READ_SECONDS=2, **questions)

    def call(server, *words, script=SCANNER, token=SECRET, **variables):
        variables |= {"DATABRICKS_HOST": getattr(server, "url", server), "DATABRICKS_TOKEN": token}
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return run(script, *words)

    return call


TOO_LONG, PIECE = "the answer is longer than", b"x" * 65536
CHUNKED = head("Transfer-Encoding: chunked")
ODD_ANSWERS = {  # of a home: pieces, the status of its row, and what is said
    "endless body": (lambda path: chain([head()], repeat(PIECE)), "error", TOO_LONG),
    "endless body of an error": (lambda path: chain([head(status="500 Oops")], repeat(PIECE)), "error", TOO_LONG),
    "endless headers": (lambda path: chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"a: b\r\n")), "error", "broke off"),
    "endless chunks": (lambda path: chain([CHUNKED], repeat(b"1\r\nx\r\n" * 10_000)), "error", TOO_LONG),
    "a bomb": (lambda path: [answer(gzip.compress(bytes(9_000_000)))], "error", TOO_LONG),
    "much markup": (lambda path: [answer(b"<title>" * 14_000, "400 Bad")], "error", "400: <title>"),
    "a length of no digits": (lambda path: [answer().replace(b"Length: 2", b"Length: \xb2")], "empty", ""),
    "a location that is no URL": (lambda path: [answer(b"", "302 Found", "Location: http://[x")], "error", "redirect"),
    "cut to an empty listing": (lambda path: [head("Content-Length: 20") + b"{}"], "error", ""),
    "chunks cut to an empty listing": (lambda path: [CHUNKED + b"2\r\n{}\r\n"], "error", ""),
    "two lengths": (lambda path: [answer(b"{}", "200 OK", "Content-Length: 3")], "error", ""),
    "another home": (lambda path: [folders("/Users/other")], "error", ""),
    "inner dots": (lambda path: [folders(f"{path}/../other")], "partial", ""),
}  # fmt: skip


def test_an_odd_answer_is_no_empty_listing_and_nothing_outside_the_home_is_asked_for(hurried, monkeypatch):
    set_constants(monkeypatch, LONGEST_BODY=2**17, LONGEST_OUTAGE=60.0)
    names = {f"u{number}": kind for number, kind in enumerate(ODD_ANSWERS)}
    with homes_of({name: partial(ODD_ANSWERS[kind][0], f"/Users/{name}") for name, kind in names.items()}) as server:
        done = hurried(server, *names, "--dbfs-only", "-o", "out.csv")
    assert done.code == 1, done
    for row in rows_of():
        _, status, said = ODD_ANSWERS[names[row["username"]]]
        assert (row["status"], said in row["error"]) == (status, True), (names[row["username"]], row)
    homes = {f"/Users/{name}" for name in names}
    assert {path for _, path in server.seen} <= {"", "/", "/Users", *homes}  # these show homes and outages


def test_a_tree_without_an_end_ends_the_run_and_names_the_user(hurried, monkeypatch):
    set_constants(monkeypatch, MOST_WAITING=20_000)
    fixed = {"Me": [ADMIN], "/Users": [folders("/Users/a", "/Users/b")], "/Users/b": [answer()]}

    def script(api, path):
        return fixed.get(api) or fixed.get(path) or [folders(*[f"{path}/{number}" for number in range(500)])]

    with RawServer(script) as server:
        done = hurried(server, "b", "a", "--dbfs-only", "-o", "out.csv")
        assert done.code == 2, done
        assert "/Users/a" in done.err
        assert not Path("out.csv").exists()
        assert hurried(server, "b", "--dbfs-only").code == 0


# Where the token goes, and where it does not

ESCAPED = "".join(f"\\u{ord(sign):04x}" for sign in TOKEN)
ECHOES = [  # answers that repeat the token
    answer(f'{{"message": "{ESCAPED}", "error_code": "{ESCAPED}"}}'.encode(), "400 Bad"),
    answer(f'{{"error": "{"x" * 280} {TOKEN}"}}'.encode(), "400 Bad"),
    answer(f"<title>Bearer {TOKEN}</title>".encode(), "400 Bad"),
    answer(f"?token={quote(TOKEN, safe='').lower()}".encode(), "400 Bad"),
    *(answer(f"Basic{sign}{base64.b64encode(f'id:{TOKEN}'.encode()).decode()}".encode(), "400 Bad") for sign in " /"),
    answer(f"Bearer {TOKEN}".encode()),
    answer(b"", f"400 {'x' * 290} {TOKEN}"),
    answer(b"", "307 Found", f"Location: https://x:{TOKEN}@evil.net/?token={quote(TOKEN, safe='')}"),
    f"Bearer {TOKEN}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\n{TOKEN}\r\nContent-Length: 2\r\n\r\n[]".encode(),
    head("Transfer-Encoding: chunked") + f"{TOKEN}\r\n".encode(),
    answer({"files": [{"path": f"/Shared/{TOKEN}", "is_dir": True}]}),
]  # fmt: skip


def test_a_token_that_answers_repeat_is_shown_and_saved_nowhere(hurried, monkeypatch):
    set_constants(monkeypatch, LONGEST_OUTAGE=60.0)
    answers = {f"u{number}": lambda data=data: [data] for number, data in enumerate(ECHOES)}
    outputs = ("-o", "out.csv", "--details", "details", "--checkpoint", NAME, "--debug")
    with homes_of(answers) as server:
        done = hurried(server, *answers, "--dbfs-only", *outputs, token=TOKEN)
        assert all(f"Bearer {TOKEN}\r\n" in sent for sent in server.heads)
    assert done.code == 1, done
    assert {row["status"] for row in rows_of()} == {"error"}
    assert Path(NAME).exists()
    assert_kept(TOKEN, done.out, done.err)


def test_a_token_that_ends_the_run_is_not_in_its_traceback(hurried):
    for data in (*ECHOES, answer({"error_code": "X", "message": TOKEN}, "401 Unauthorized")):
        with RawServer(lambda *_, data=data: [data]) as server:
            done = hurried(server, "--debug", script=USER_LIST, token=TOKEN)
        assert (done.code, "Traceback" in done.err) == (2, True), done
        assert_kept(TOKEN, done.out, done.err)


def test_neither_cookies_nor_a_netrc_nor_beside_a_loopback_address_a_proxy_change_what_is_sent(hurried, tmp_path):
    path = tmp_path / "home" / ".netrc"
    path.write_text("machine 127.0.0.1 login someone password wrong\ndefault login someone password wrong\n")
    path.chmod(0o600)
    cookie = answer({"groups": []}, "200 OK", "Set-Cookie: session=1; Path=/")
    with RawServer(lambda *_: [cookie]) as server, RawServer(empty_workspace) as proxy:
        hurried(server, "a", "b", NETRC=str(path), HTTP_PROXY=proxy.url, http_proxy=proxy.url, ALL_PROXY=proxy.url)
        assert len(server.heads) > 3
        assert not [sent for sent in server.heads if "cookie" in sent.lower() or f"Bearer {SECRET}\r" not in sent]
        assert proxy.heads == []  # the token would travel to it unencrypted


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate with openssl, which is not there")
    folder = tmp_path_factory.mktemp("certificate")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", names, "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
                   check=True, capture_output=True)  # fmt: skip
    return folder / "certificate.pem"


@pytest.mark.parametrize(("variables", "host", "says"), [
    ({}, "localhost", "REQUESTS_CA_BUNDLE (now: none) has to name"),
    ({"REQUESTS_CA_BUNDLE": requests.certs.where()}, "localhost", "has to name a PEM file"),
    ({"REQUESTS_CA_BUNDLE": "/missing.pem"}, "localhost", "REQUESTS_CA_BUNDLE (now: /missing.pem) has to name"),
    ({"CURL_CA_BUNDLE": __file__}, "localhost", f"REQUESTS_CA_BUNDLE (now: {__file__}) has to name"),
    ({"REQUESTS_CA_BUNDLE": "CERTIFICATE"}, "127.0.0.2", "it is another host's certificate"),
    ({"REQUESTS_CA_BUNDLE": "CERTIFICATE"}, "localhost", ""),
])  # fmt: skip
def test_only_a_server_with_a_known_certificate_of_its_own_gets_the_token(hurried, certificate, variables, host, says):
    named = {name: text.replace("CERTIFICATE", str(certificate)) for name, text in variables.items()}
    with RawServer(empty_workspace, certificate, "127.0.0.2" if host == "127.0.0.2" else "127.0.0.1") as server:
        done = hurried(server.url.replace("localhost", host), "a", **named)
        assert (done.code, bool(server.heads)) == ((2, False) if says else (0, True)), done
    assert says in done.err.replace("\n", " ")
    assert not says or "cannot be reached" in done.err


@pytest.mark.parametrize(("text", "says"), [
    ("certificate verify failed: certificate has expired", "is this machine's clock right (now 20"),
    ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "wrong version number; what answers"),
    ("certificate verify failed: Missing Authority Key Identifier", "Python 3.13 checks more strictly"),
])  # fmt: skip
def test_what_openssl_says_decides_about_the_remedy(service, client, text, says):
    error = requests.exceptions.SSLError()
    error.__cause__ = ssl.SSLError(1, text)
    add(service, error)
    caught = fail(client)
    assert says in str(caught)
    assert (caught.unreachable, "REQUESTS_CA_BUNDLE" in str(caught)) == (True, False)


def test_a_port_that_does_not_speak_tls_is_said_at_once(hurried, monkeypatch):
    set_constants(monkeypatch, CONNECT_SECONDS=0.1)
    with socket.create_server(("127.0.0.1", 0)) as port:
        done = hurried(f"https://127.0.0.1:{port.getsockname()[1]}", "a")
    assert (done.code, "cannot be reached: no TLS within 0.1 s" in done.err) == (2, True), done


def test_the_systems_certificates_serve_where_truststore_is_installed(hurried, certificate, monkeypatch):
    truststore = types.ModuleType("truststore")
    truststore.__spec__ = ModuleSpec("truststore", None)
    truststore.SSLContext = lambda protocol: ssl.create_default_context(cafile=certificate)
    monkeypatch.setitem(sys.modules, "truststore", truststore)
    with RawServer(empty_workspace, certificate) as server:
        assert hurried(server, "a").code == 0
        assert hurried(server, "a", REQUESTS_CA_BUNDLE=requests.certs.where()).code == 2  # a file that is named wins


def test_a_proxy_is_asked_for_a_tunnel_and_gets_no_token(hurried):
    with RawServer(lambda *_: [answer(b"", "407 Proxy Authentication Required")]) as proxy:
        done = hurried("https://adb-1.invalid", "a", HTTPS_PROXY=proxy.url.replace("http://", "http://me:pass-word@"))
    assert (done.code, "pass-word" in done.err, "REQUESTS_CA_BUNDLE" in done.err) == (2, False, False), done
    assert proxy.heads[0].startswith("CONNECT adb-1.invalid:443 ")
    assert f"Basic {base64.b64encode(b'me:pass-word').decode()}" in proxy.heads[0]
    assert_kept(SECRET, *proxy.heads, done.err)


@pytest.mark.parametrize(("name", "url", "says"), [
    ("ALL_PROXY", "socks5://me:pass-word@127.0.0.1:9", 'pip install "requests[socks]"'),
    ("HTTPS_PROXY", "http://me:pass-word@", "is no URL of a proxy"),
    ("HTTPS_PROXY", "http://pass-word..host:1", "is no URL of a proxy"),
])  # fmt: skip
def test_a_proxy_that_is_none_is_told_from_the_network_and_not_shown(hurried, name, url, says):
    if says.startswith("pip") and find_spec("socks"):
        pytest.skip("the package for SOCKS is there")
    done = hurried("https://127.0.0.1:9", script=USER_LIST, **{name: url})
    assert (done.code, len(done.err.splitlines())) == (2, 2)
    assert says in done.err
    assert "cannot be reached" in done.err
    assert "pass-word" not in done.err
