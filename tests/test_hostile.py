"""Hostile servers, proxies, files and names: no token gets out, nothing runs for ever, and memory stays bounded.

The commands run as real processes, against a fake workspace or a server that writes raw bytes.
"""

import base64
import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests

import databricks_user_files_simple as scanner
import databricks_user_list
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import ROOT, SCANNER, USER_LIST, free_port, needs_posix, program_with

TOKENS = ("dapi0123456789abcdef-2", "a+b(c)[d]*\\e$^|f?.{2}/=%20~", "dapi\"quoted'<b>&amp;")


# A server that writes raw bytes


def answer(body=b"{}", status="200 OK", *headers):
    """The bytes of an answer after which the connection is closed."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(f"Content-Length: {len(body)}", *headers, status=status) + body


def head(*headers, status="200 OK"):
    """The head of an answer whose body ends when the server closes the connection."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "\r\n"]).encode("latin-1")


ADMIN = answer({"groups": [{"display": "admins"}]})


class RawServer:
    """Asks script(api, path) for the pieces of bytes of every answer; api is dbfs, workspace, Me or Users."""

    def __init__(self, script, certificate=None):
        self.script, self.seen, self.heads, self.context = script, [], [], None
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate, certificate.with_name("key.pem"))
            self.url = self.url.replace("http://127.0.0.1", "https://localhost")
        self.ended, self.threads = threading.Event(), []
        self.start(self.accept)

    def start(self, *task):
        self.threads.append(threading.Thread(target=task[0], args=task[1:]))
        self.threads[-1].start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.start(self.serve, connection)

    def serve(self, plain):
        with plain, suppress(OSError, ValueError):
            plain.settimeout(20)
            connection = self.context.wrap_socket(plain, server_side=True) if self.context else plain
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    received = connection.recv(65536)
                    if not received:
                        return
                    request += received
                self.heads.append(request.decode("latin-1"))
                place = urlsplit(request.split(b" ")[1].decode())
                api = place.path.removesuffix("/list").rpartition("/")[2]
                path = parse_qs(place.query).get("path", [""])[0]
                self.seen.append((api, path))
                for piece in self.script(api, path):
                    if self.ended.is_set():
                        return
                    connection.sendall(piece)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()


def homes_of(names, script):
    """A server whose caller is an admin, with the homes of these; script(api, path) gives the pieces of listings."""
    fixed = {"Me": [ADMIN], "/Users": [folders(*[f"/Users/{name}" for name in names])]}
    return RawServer(lambda api, path: fixed.get(api) or fixed.get(path) or script(api, path))


# The commands as processes

HURRIED = {"READ_SECONDS": 0.4, "BODY_SECONDS": 0.8, "RETRIES": dict.fromkeys(databricks_user_list.RETRIES, (1, 0.0)),
           "LONGEST_OUTAGE": 0.2, "FIRST_PROBE": 0.1, "LAST_PROBE": 0.1}  # fmt: skip


@dataclass
class Ended:
    """A process that has ended: its exit code, what it wrote, seconds, its largest memory in MB, its command line."""

    code: int
    out: bytes
    err: str
    seconds: float
    megabytes: float
    shown: bytes

    def __repr__(self):
        return f"exit {self.code} after {self.seconds:.1f} s, {self.megabytes:.0f} MB\n{self.err[-3000:]}"


def start(script, words, environment, changes, **more):
    """The command with some of its constants changed, as a process."""
    code = program_with(script, **changes)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # fmt: skip


def run(server, *words, token="dapi-fake-token", script=SCANNER, limit=25, changes=(), environment=None, **more):
    """Runs a command to its end; fails if that takes more than `limit` seconds."""
    login = {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": token} | (environment or {})
    began = time.monotonic()
    with start(script, words, login, dict(changes), **more) as process:
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes() if os.path.exists("/proc/self/cmdline") else b""
        guard = threading.Timer(limit, process.kill)
        guard.start()
        texts = []
        reader = threading.Thread(target=lambda: texts.append(process.stderr.read()))
        reader.start()
        out = process.stdout.read()
        reader.join()
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode, memory = os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024
        else:
            process.wait()
            memory = 0
        guard.cancel()
    ended = Ended(process.returncode, out, texts[0].decode("utf-8", "replace"), time.monotonic() - began, memory, shown)
    assert ended.code in (0, 1, 2, 130), ended
    return ended


def rows_of(data):
    """username -> row of a CSV."""
    return {row["username"]: row for row in csv.DictReader(io.StringIO(data.decode(), newline=""))}


# Answers that do not end, or that are more than they look


def dripping(data, seconds):
    for number in range(len(data)):
        yield data[number : number + 1]
        time.sleep(seconds)


def entries(api, piece, size=70_000_000):
    """A listing of about so many bytes with nothing but this piece."""
    yield head() + (b'{"files": [' if api == "dbfs" else b'{"objects": [')
    for _ in range(size // len(piece) // 1000):
        yield piece * 1000
    yield piece.rstrip(b",") + b"]}"


def gzipped(size):
    return gzip.compress(bytes(size), 1)


ENDLESS = {
    "body": lambda _: chain([head()], repeat(b"x" * 65536)),
    "body of an error": lambda _: chain([head(status="500 Oops")], repeat(b"x" * 65536)),
    "body of a redirect": lambda _: chain([head("Location: /x", status="302 Found")], repeat(b"x" * 65536)),
    "body of a listing": lambda api: entries(api, b'{"path": "/Users/a/1234567", "is_dir": false, "file_size": 1234},'),
    "headers": lambda _: chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"a: b\r\n")),
    "header": lambda _: chain([b"HTTP/1.1 200 OK\r\na: "], repeat(b"x" * 65536)),
    "status line": lambda _: chain([b"HTTP/1.1 200 "], repeat(b"x" * 65536)),
    "cookies": lambda _: [answer(b"{}", "500 Oops", *[f"Set-Cookie: c{n}={'x' * 60_000}" for n in range(90)])],
    "drip of a body": lambda _: dripping(head() + b"x" * 1000, 0.02),
    "chunks": lambda _: chain([head("Transfer-Encoding: chunked")], repeat(b"1\r\nx\r\n" * 10_000)),
    "chunk extension": lambda _: chain([head("Transfer-Encoding: chunked"), b"1;"], repeat(b"x" * 65536)),
    "gzip": lambda _: [answer(gzipped(200_000_000), "200 OK", "Content-Encoding: gzip")],
    "gzip in gzip": lambda _: [answer(gzip.compress(gzipped(2_000_000_000)), "200 OK", "Content-Encoding: gzip, gzip")],
    "nesting": lambda _: [answer(b"[" * 900_000)],
    "nesting of objects": lambda _: [answer(b'{"files":' * 90_000)],
    "empty objects": lambda api: entries(api, b"{},", 60_000_000),
    "empty lists": lambda api: entries(api, b"[],", 60_000_000),
    "small numbers": lambda api: entries(api, b"300,", 60_000_000),
    "small texts": lambda api: entries(api, b'"ab",', 60_000_000),
    "digits": lambda _: [answer(b'{"files": [' + b"9" * 10_000_000 + b"]}")],
    "markup": lambda _: [answer(b"<title>" * 14_000, "400 Bad")],
}
SLOW_TO_MAKE = ("gzip in gzip",)


def script_of(kinds):
    """What a server does whose user u0 has an answer of the first kind, and so on."""
    homes = {f"/Users/u{number}": ENDLESS[kind] for number, kind in enumerate(kinds)}
    return lambda api, path: [ADMIN] if api == "Me" else homes[path](api) if path in homes else [answer()]


@pytest.mark.usefixtures("processes")
@needs_posix
@pytest.mark.parametrize("kinds", [
    pytest.param([kind for kind in ENDLESS if kind not in SLOW_TO_MAKE], id="all at once"),
    *(pytest.param([kind], id=kind, marks=pytest.mark.soak) for kind in ENDLESS),
])  # fmt: skip
def test_an_answer_that_does_not_end_is_an_error_in_bounded_time_and_memory(kinds):
    names = [f"u{number}" for number in range(len(kinds))]
    with RawServer(script_of(kinds)) as server:
        ended = run(server, *names, "--dbfs-only", changes=HURRIED | {"LONGEST_OUTAGE": 60.0})
    assert ended.code == 1, ended
    assert [(row["username"], row["file_count"], row["status"]) for row in rows_of(ended.out).values()] == [
        (name, "0", "error") for name in names]  # fmt: skip
    assert "Traceback" not in ended.err
    assert ended.seconds < 12 + len(kinds), ended
    assert ended.megabytes < 350 * (1 + len(kinds) // 10), ended


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("script", "kind"), [
    (SCANNER, "body"), (USER_LIST, "chunks"), (SCANNER, "drip of a body"), (USER_LIST, "drip of a body"),
])  # fmt: skip
def test_a_server_whose_first_answer_does_not_end_ends_the_run(script, kind):
    with RawServer(lambda api, _: ENDLESS[kind](api)) as server:
        ended = run(server, *(["a"] if script == SCANNER else []), script=script, changes=HURRIED)
    assert ended.code == 2, ended
    assert ended.out == b""
    assert "error: " in ended.err
    assert "Traceback" not in ended.err
    assert ended.seconds < 10, ended


@pytest.mark.usefixtures("processes")
@needs_posix
@pytest.mark.soak
def test_large_listings_for_all_threads_at_once_take_bounded_memory():
    """Sixteen listings of 30 MB, of a quarter of a million files each."""
    piece = b'{"path": "%s/%010d", "is_dir": false, "file_size": 1234, "modification_time": 1700000000000},'

    def script(_, path):
        yield head() + b'{"files": ['
        for start in range(0, 250_000, 1000):
            yield b"".join(piece % (path.encode(), number) for number in range(start, start + 1000))
        yield (piece % (path.encode(), 250_000)).rstrip(b",") + b"]}"

    names = [f"u{number}" for number in range(16)]
    with homes_of(names, script) as server:
        ended = run(server, *names, "--dbfs-only", limit=300)
    assert ended.code == 0, ended
    assert {row["file_count"] for row in rows_of(ended.out).values()} == {"250001"}
    assert ended.megabytes < 1000, ended


# Listings that lead astray


def files(path, *values):
    """A DBFS listing with a file for each value, which is JSON or text."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    entries = (f'{{"path": "{path}/{number}", "is_dir": false, "file_size": {value}}}'
               for number, value in enumerate(shown))  # fmt: skip
    return answer(f'{{"files": [{", ".join(entries)}]}}'.encode())


def folders(*paths):
    return answer({"files": [dbfs_directory(path) for path in paths]})


BAD_LISTINGS = {
    "10**5000": lambda path: files(path, "9" * 5000),
    "10**400": lambda path: files(path, "9" * 400),
    "1e400": lambda path: files(path, "1e400"),
    "2**63": lambda path: files(path, 2**63),
    "-1": lambda path: files(path, -1),
    "1.0": lambda path: files(path, 1.0),
    "NaN": lambda path: files(path, "NaN"),
    "Infinity": lambda path: files(path, "-Infinity"),
    "true": lambda path: files(path, True),
    "null": lambda path: files(path, None),
    "text": lambda path: files(path, '"1"'),
    "outside": lambda path: folders("/Shared/x"),
    "another home": lambda path: folders("/Users/other"),
    "alike": lambda path: folders(f"{path}x/y"),
    "parent": lambda path: folders("/Users"),
    "root": lambda path: folders("/"),
    "itself": folders,
    "itself with a slash": lambda path: folders(f"{path}/"),
    "dots": lambda path: folders(f"{path}/.."),
    "dot": lambda path: folders(f"{path}/."),
    "inner dots": lambda path: folders(f"{path}/../other"),
    "grandchild": lambda path: folders(f"{path}/a/b"),
    "twice": lambda path: folders(f"{path}/a", f"{path}/a"),
    "relative": lambda path: folders("a"),
    "scheme": lambda path: folders(f"dbfs:{path}/a"),
    "no text": lambda path: answer({"files": [{"path": 1, "is_dir": True}]}),
    "content length of no digits": lambda path: answer().replace(b"Content-Length: 2", b"Content-Length: \xb2"),
    "location that is no URL": lambda path: answer(b"", "302 Found", "Location: http://[x"),
    "status 999": lambda path: answer(b"{}", "999 X"),
    "HTTP/3": lambda path: answer().replace(b"HTTP/1.1", b"HTTP/3"),
    "cut to an empty listing": lambda path: head("Content-Length: 20") + b"{}",
    "cut to nothing": lambda path: head("Content-Length: 20"),
    "chunks cut to an empty listing": lambda path: head("Transfer-Encoding: chunked") + b"2\r\n{}\r\n",
    "nothing": lambda path: answer(b""),
    "no content": lambda path: answer(b"", "204 No Content"),
    "two lengths": lambda path: answer(b"{}", "200 OK", "Content-Length: 3"),
    "half a name": lambda path: answer(b'{"files": [{"path": "%s/\\ud800", "is_dir": true}]}' % path.encode()),
    "retry after for ever": lambda path: answer(b"", "400 Bad", "Retry-After: " + "9" * 5000),
}  # fmt: skip


ODD_NAMES = ("half a name", "dot", "dots", "inner dots", "grandchild", "itself with a slash")  # which fail alone
BAD_STATUSES = {**dict.fromkeys(BAD_LISTINGS, "error"), **dict.fromkeys(ODD_NAMES, "partial"),
                "content length of no digits": "empty"}  # fmt: skip


@pytest.mark.usefixtures("processes")
def test_a_listing_that_leads_astray_is_an_error_and_nothing_outside_the_home_is_asked_for():
    names = [f"u{number}" for number in range(len(BAD_LISTINGS))]
    scripts = dict(zip((f"/Users/{name}" for name in names), BAD_LISTINGS.values(), strict=True))

    def script(_, path):
        return [scripts[path](path) if path in scripts else answer(b"{}", "403 Forbidden")]

    with homes_of(names, script) as server:
        ended = run(server, *names, "--dbfs-only", changes=HURRIED | {"LONGEST_OUTAGE": 60.0})
    assert ended.code == 1, ended
    assert "Traceback" not in ended.err
    found = {kind: rows_of(ended.out)[name]["status"] for kind, name in zip(BAD_LISTINGS, names, strict=True)}
    assert {kind: status for kind, status in found.items() if BAD_STATUSES[kind] != status} == {}
    assert {path for _, path in server.seen} - {"", "/", "/Users"} <= set(scripts)  # these show homes and outages


@pytest.mark.usefixtures("processes")
def test_of_a_key_given_twice_the_last_one_counts():
    body = b'{"files": [{"path": "/Shared", "path": "/Users/a/x", "is_dir": true, "is_dir": false, "file_size": 7}]}'
    with homes_of("a", lambda *_: [answer(body)]) as server:
        ended = run(server, "a", "--dbfs-only")
    assert ended.code == 0, ended
    assert rows_of(ended.out)["a"]["total_size"] == "7"


def test_a_large_listing_of_names_full_of_commas_and_braces_is_a_listing(command, login):
    with FakeDatabricks(users=["a"], shape="none") as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file(f"/Users/a/{n}{',{[' * 60}", 1) for n in range(9000)]})
        ended = command(SCANNER, "a", "--dbfs-only", env=login(server))
    assert ended.out.splitlines()[1].startswith("a,9000,9000,"), ended


def test_sums_beyond_64_bits_are_saved_and_written(command, login):
    with FakeDatabricks(users=["a"], shape="none") as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file(f"/Users/a/{number}", 2**63 - 1) for number in range(4)]})
        ended = command(SCANNER, "a", env=login(server))
    assert ended.code == 0, ended
    assert f",{4 * (2**63 - 1)}," in ended.out


@pytest.mark.usefixtures("processes")
def test_a_tree_without_an_end_ends_the_run_and_names_the_user():
    def script(_, path):
        return [folders(*[f"{path}/{number}" for number in range(500 * (path[-1] != "b"))])]

    with homes_of("ab", script) as server:
        ended = run(server, "b", "a", "--dbfs-only", "-o", "out.csv", changes={"MOST_WAITING": 20_000})
        assert ended.code == 2, ended
        assert "/Users/a" in ended.err
        assert "Traceback" not in ended.err
        assert not os.path.exists("out.csv")
        ended = run(server, "b", "--dbfs-only", "-o", "out.csv")
    assert ended.code == 0, ended


@pytest.mark.usefixtures("processes")
@needs_posix
@pytest.mark.soak
def test_a_million_waiting_directories_take_bounded_memory():
    def script(_, path, number=300_000):
        yield head() + b'{"files": ['
        yield b",".join(b'{"path": "%s/%010d", "is_dir": true, "file_size": 0}' % (path.encode(), at)
                        for at in range(number)) + b"]}"  # fmt: skip

    with homes_of("a", script) as server:
        ended = run(server, "a", "--dbfs-only", "--threads", "1", limit=120)
    assert ended.code == 2, ended
    assert "1,000,000 directories" in ended.err
    assert ended.megabytes < 700, ended


# Where the token goes, and where it does not


def spellings(token):
    """The token as it is, percent-encoded, in JSON, in HTML, and within base64 at any position."""
    within = [base64.b64encode(b"x" * shift + token.encode()).decode()[4:-4] for shift in range(3)]
    return {token, quote(token), quote(token, safe=""), json.dumps(token)[1:-1], *within}


def assert_kept(token, *texts):
    """That no text and no file of the working directory has it."""
    files = [path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != ".databrickscfg"]
    names = [str(path).encode() for path in Path().rglob("*")]
    for data in (*files, *names, *(text if isinstance(text, bytes) else text.encode() for text in texts)):
        assert not [spelling for spelling in spellings(token) if spelling.encode() in data], data[-3000:]


def escaped(text):
    return "".join(f"\\u{ord(sign):04x}" for sign in text)


def echoes(token):
    """Answers that repeat the token."""
    shown = json.dumps(token)
    return [
        answer(f'{{"message": {shown}, "error_code": {shown}}}'.encode(), "400 Bad"),
        answer(f'{{"message": "{escaped(token)}", "error_code": "{escaped(token)}"}}'.encode(), "400 Bad"),
        answer(f'{{"detail": "your token is {escaped(token)}"}}'.encode(), "403 Forbidden"),
        answer(f'{{"error": "{"x" * 280} {token}"}}'.encode(), "400 Bad"),
        answer(f"<title>Bearer {token}</title>".encode(), "400 Bad"),
        answer(f"Bearer {token}".encode(), "400 Bad"),
        answer(f"?token={quote(token, safe='')}".encode(), "400 Bad"),
        answer(f"Bearer {token}".encode()),
        answer(b"", f"400 {token}"),
        answer(b"", f"400 {'x' * 290} {token}"),
        answer(b"", "302 Found", f"Location: https://evil.net/?token={token}"),
        answer(b"", "302 Found", f"Location: https://evil.net/?token={quote(token, safe='')}"),
        answer(b"", "307 Found", f"Location: https://x:{token}@evil.net/"),
        f"Bearer {token}\r\n\r\n".encode(),
        f"HTTP/1.1 {token} OK\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\n{token}\r\nContent-Length: 2\r\n\r\n[]".encode(),
        head("Transfer-Encoding: chunked") + f"{token}\r\n".encode(),
        answer(token.encode(), "200 OK", f"Content-Encoding: {token}"),
        answer(json.dumps({"files": [{"path": f"/Shared/{token}", "is_dir": True}]})),
        answer(json.dumps({"files": [{"path": "/Users/x", "is_dir": token, "file_size": token}]})),
    ]  # fmt: skip


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("words", [(), ("--debug",)], ids=["", "debug"])
def test_a_token_that_answers_repeat_is_shown_and_saved_nowhere(token, words):
    answers = {f"/Users/u{number}": data for number, data in enumerate(echoes(token))}
    names = [path.rpartition("/")[2] for path in answers]

    with homes_of(names, lambda _, path: [answers.get(path, answer())]) as server:
        outputs = ("-o", "out.csv", "--details", "details", "--checkpoint", scanner.CHECKPOINT_FILE)
        ended = run(server, *names, "--dbfs-only", *outputs, *words, token=token,
                    changes=HURRIED | {"LONGEST_OUTAGE": 60.0})  # fmt: skip
        assert all(f"authorization: Bearer {token}" in sent for sent in map(lower_names, server.heads))
    assert ended.code == 1, ended
    assert {row["status"] for row in rows_of(Path("out.csv").read_bytes()).values()} == {"error"}
    assert Path(scanner.CHECKPOINT_FILE).exists()
    assert "Traceback" not in ended.err
    assert_kept(token, ended.out, ended.err, ended.shown)


def lower_names(sent):
    return re.sub("^[^:\n]+:", lambda match: match[0].lower(), sent, flags=re.M)


def login_refused(token):
    return [answer(f'{{"error_code": "X", "message": "{escaped(token)}"}}'.encode(), "401 Unauthorized")]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("script", [SCANNER, USER_LIST])
@pytest.mark.parametrize("kind", ["bad status line", "refused", "redirected", "no JSON"])
def test_a_token_that_ends_the_run_is_not_in_its_tracebacks(kind, script):
    token = TOKENS[1]
    data = {
        "bad status line": [f"Bearer {token}\r\n\r\n".encode()],
        "refused": login_refused(token),
        "redirected": [answer(b"", "302 Found", f"Location: /{token}")],
        "no JSON": [answer(token.encode())],
    }
    with RawServer(lambda *_: data[kind]) as server:
        ended = run(server, *(["a"] if script == SCANNER else []), "--debug", token=token, script=script,
                    changes=HURRIED)  # fmt: skip
    assert ended.code in (1, 2), ended
    assert script == USER_LIST or "Traceback" in ended.err
    assert_kept(token, ended.out, ended.err, ended.shown)


@pytest.mark.usefixtures("processes")
@needs_posix
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_token_is_in_nothing_that_an_interrupted_run_leaves_or_shows(ending):
    token = TOKENS[1]
    with FakeDatabricks(users=30, shape="small", token=token) as server:
        hang = Fault("hang", seconds=60)
        hang.applies = lambda *_: server.total_requests > 60
        server.change(faults=[hang])
        login = {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": token}
        words = [*server.user_names, "--debug", "--checkpoint", scanner.CHECKPOINT_FILE]
        with start(SCANNER, words, login, {}) as process:
            while hang.hits < 4:
                time.sleep(0.01)
            processes = subprocess.run(["ps", "axww"], capture_output=True, check=True).stdout
            assert b"import databricks_user_files_simple" in processes
            process.send_signal(ending)
            out, err = process.communicate(timeout=10)
    assert out == b""
    assert Path(scanner.CHECKPOINT_FILE).exists()
    assert_kept(token, err, processes)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("kind", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_is_an_error_and_takes_no_token_along(kind):
    with RawServer(lambda *_: [ADMIN]) as other:
        location = f"Location: {other.url}/api/2.0/preview/scim/v2/Me"
        with RawServer(lambda *_: [answer(b"", f"{kind} Moved", location, "Set-Cookie: a=b")]) as server:
            ended = run(server, "a", changes=HURRIED)
        assert other.heads == []
    assert ended.code == 2, ended
    assert "redirected to" in ended.err


@pytest.mark.usefixtures("processes")
def test_cookies_are_not_sent_back():
    with RawServer(lambda *_: [answer({"groups": []}, "200 OK", "Set-Cookie: session=1; Path=/")]) as server:
        run(server, "a", "b", changes=HURRIED)
        assert len(server.heads) > 3
        assert not [sent for sent in server.heads if "cookie" in sent.lower()]


@pytest.mark.usefixtures("processes")
@needs_posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_made_with_the_users_umask(umask, mode):
    with FakeDatabricks(users=["a"], shape="small", faults=[Fault("403", api="dbfs")]) as server:
        words = ("-o", "out.csv", "--details", "details", "--checkpoint", scanner.CHECKPOINT_FILE)
        ended = run(server, "a", *words, umask=umask)
    assert ended.code == 1, ended
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path().iterdir() if path.is_file()}
    assert modes == dict.fromkeys(["out.csv", "details", scanner.CHECKPOINT_FILE], mode)


@needs_posix
def test_another_users_link_at_the_temporary_file_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, f".out.csv.{os.getpid()}.tmp")
    with databricks_user_list.open_output("out.csv") as file:
        file.write("x")
    assert (victim.read_text(), Path("out.csv").read_text()) == ("mine", "x")


# TLS, proxies and netrc


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


def empty_workspace(api, path):
    return [ADMIN if api == "Me" else answer()]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("variables", [
    {}, {"SSL_CERT_FILE": "CERTIFICATE", "SSL_CERT_DIR": "FOLDER"}, {"PYTHONHTTPSVERIFY": "0"},
    {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}, {"DATABRICKS_INSECURE_SKIP_VERIFY": "1", "NODE_TLS_REJECT": "0"},
    {"REQUESTS_CA_BUNDLE": "OTHER"}, {"REQUESTS_CA_BUNDLE": "/missing.pem"}, {"REQUESTS_CA_BUNDLE": "EMPTY"},
    {"REQUESTS_CA_BUNDLE": "HTML"}, {"CURL_CA_BUNDLE": "DER"},
], ids=" ".join)  # fmt: skip
def test_a_server_with_an_unknown_certificate_is_refused_and_gets_no_token(certificate, variables, tmp_path):
    words = {"CERTIFICATE": str(certificate), "FOLDER": str(certificate.parent), "OTHER": requests.certs.where()}
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    for name, data in (("EMPTY", b""), ("HTML", b"<html></html>"), ("DER", der)):
        words[name] = str(tmp_path / name)
        Path(words[name]).write_bytes(data)
    with RawServer(empty_workspace, certificate) as server:
        ended = run(server, "a", environment={name: words.get(text, text) for name, text in variables.items()})
        assert server.heads == []
    assert ended.code == 2, ended
    assert "certificate" in ended.err.lower()
    assert "cannot be reached" in ended.err
    bundle = variables.get("REQUESTS_CA_BUNDLE") or variables.get("CURL_CA_BUNDLE") or "none"
    assert f"REQUESTS_CA_BUNDLE (now: {words.get(bundle, bundle)}) has to name" in ended.err
    assert ended.seconds < 5, ended


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_of_the_ca_bundle_is_accepted(certificate, variable):
    with RawServer(empty_workspace, certificate) as server:
        ended = run(server, "a", environment={variable: str(certificate)})
    assert ended.code == 0, ended


@pytest.mark.usefixtures("processes")
def test_a_certificate_for_another_name_is_refused(certificate):
    with RawServer(empty_workspace, certificate) as server:
        server.url = server.url.replace("localhost", "127.0.0.2")
        ended = run(server, "a", environment={"REQUESTS_CA_BUNDLE": str(certificate)})
        assert server.heads == []
    assert ended.code == 2, ended


class Proxy(RawServer):
    """An honest one: it makes a tunnel to one port, whatever is asked for."""

    def __init__(self, port):
        self.port = port
        super().__init__(None)

    def serve(self, plain):
        with plain, suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as upstream:
            self.heads.append(plain.recv(65536).decode("latin-1"))
            plain.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.start(pump, upstream, plain)
            pump(plain, upstream)


def pump(source, target):
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


@pytest.mark.usefixtures("processes")
def test_an_https_proxy_gets_a_tunnel_and_no_token(certificate):
    with RawServer(empty_workspace, certificate) as server, Proxy(urlsplit(server.url).port) as proxy:
        ended = run(server, "a", token=TOKENS[0], environment={
            "HTTPS_PROXY": proxy.url.replace("http://", "http://me:pass-word@"), "HTTP_PROXY": proxy.url,
            "REQUESTS_CA_BUNDLE": str(certificate)})  # fmt: skip
        sent = "".join(proxy.heads)
    assert ended.code == 0, ended
    assert sent.startswith("CONNECT localhost:")
    assert f"Basic {base64.b64encode(b'me:pass-word').decode()}" in sent
    assert_kept(TOKENS[0], sent)


PAGE = b"<html><head><title>Access denied by policy</title></head></html>"
PROXIES = {
    "a page with 200": lambda: [answer(PAGE, "200 OK", "Content-Type: text/html")],
    "a page with 403": lambda: [answer(PAGE, "403 Forbidden", "Content-Type: text/html")],
    "a page with 407": lambda: [answer(PAGE, "407 Proxy Authentication Required", "Proxy-Authenticate: Basic")],
    "a page and no HTTP": lambda: [PAGE],
    "nothing": lambda: [],
}  # fmt: skip


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("kind", PROXIES)
def test_a_proxy_that_answers_a_page_ends_the_run_in_a_line(kind):
    with RawServer(lambda *_: PROXIES[kind]()) as proxy:

        class Workspace:
            url = "https://adb-1.invalid"

        ended = run(Workspace, "a", token=TOKENS[1], changes=HURRIED,
                    environment={"HTTPS_PROXY": proxy.url.replace("http://", "http://me:pass-word@")})  # fmt: skip
        assert proxy.heads
        assert_kept(TOKENS[1], *proxy.heads, ended.err)
    assert ended.code == 2, ended
    assert "cannot be reached" in ended.err or "gave no proper answer" in ended.err
    assert "pass-word" not in ended.err
    assert ("REQUESTS_CA_BUNDLE" in ended.err) == (kind == "a page with 200")  # which is no TLS
    assert "Traceback" not in ended.err
    assert ended.seconds < 10, ended


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(("url", "says"), [
    ("socks5://me:pass-word@127.0.0.1:9", "pip install 'requests[socks]'"),
    ("http://me:pass-word@", "is no URL of a proxy"), ("ftp://pass-word:1", "is no URL of a proxy"),
    ("127.0.0.1:pass-word", "is no URL of a proxy"), ("http://[pass-word", "is no URL of a proxy"),
])  # fmt: skip
def test_a_proxy_that_is_none_is_told_from_the_network_and_not_shown(command, name, url, says):
    if says.startswith("pip") and find_spec("socks"):
        pytest.skip("the package for SOCKS is there")
    words = ("--workspace-url", "https://127.0.0.1:9", "--token", "t")
    done = command(USER_LIST, *words, env={name: url})
    assert done.code == 2, done
    assert says in done.err
    assert "pass-word" not in done.err
    assert len(done.err.splitlines()) == 2


@pytest.mark.usefixtures("processes")
def test_no_proxy_is_obeyed_and_a_loopback_address_never_goes_through_one(certificate):
    dead = f"http://127.0.0.1:{free_port()}"
    with RawServer(empty_workspace, certificate) as server:
        ended = run(server, "a", environment={"HTTPS_PROXY": dead, "NO_PROXY": "localhost",
                                              "REQUESTS_CA_BUNDLE": str(certificate)})  # fmt: skip
        assert ended.code == 0, ended
        assert run(server, "a", environment={"HTTPS_PROXY": dead}).code == 2
    with RawServer(empty_workspace) as server, RawServer(empty_workspace) as proxy:
        ended = run(server, "a", environment={"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "ALL_PROXY": proxy.url})
        assert ended.code == 0, ended
        assert proxy.heads == []  # the token would travel to it unencrypted


@pytest.mark.usefixtures("processes")
def test_a_netrc_that_names_the_host_changes_nothing(tmp_path):
    path = tmp_path / "home" / ".netrc"
    path.write_text("machine 127.0.0.1 login someone password wrong\ndefault login someone password wrong\n")
    path.chmod(0o600)
    with FakeDatabricks(users=["a"], shape="small", token=TOKENS[1]) as server:
        for words in ({"script": USER_LIST}, {"environment": {"NETRC": str(path)}}):
            ended = run(server, *([] if "script" in words else ["a"]), token=TOKENS[1], **words)
            assert ended.code == 0, ended
        assert server.statuses[403] == 0


# Names


NAMES_WITHIN = ("a%2F..%2F..%2FShared", "..%2f", "%2e%2e", "...", "..a", "a?path=%2FShared", "a&path=%2FShared", "a#b",
                "~", "\uff0e\uff0e", "a\u2215b", "a\uff0fb", "..\\..", "*", "a%00b", "{a}", "dbfs:",
                "a+b", "a b", "a%20b", "a\u2028b")  # fmt: skip


def test_a_name_does_not_leave_users():
    with FakeDatabricks(users=list(NAMES_WITHIN), shape="small") as server:
        config = databricks_user_list.DatabricksConfig(server.url, server.settings.token)
        results = {result.username: result for result in scanner.scan_users(NAMES_WITHIN, config)}
        paths = {path for api, path in server.requests if api != "scim"}
        assert {path for path in paths if path.split("/")[:2] != ["", "Users"]} == set()
        assert {path.split("/")[2] for path in paths if path != "/Users"} == set(NAMES_WITHIN)
        for name in NAMES_WITHIN:
            assert results[name].file_count == server.truth(name).file_count
            assert results[name].status in ("success", "empty")


FORMULAS = ("=cmd()", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201",
            "a;=cmd()", "a\t@x", "a\n=1", "a;-1;+1", "a\r\n=1", ";=1", "a;\"=1", "a;\"\"=1")  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_a_formula_whatever_separates_the_cells(text):
    cells = re.split("[;\t\r\n]", databricks_user_list.safe_cell(text))
    assert not [cell for cell in cells if cell.lstrip('"').startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))]


@pytest.mark.parametrize("text", ["Anna", "a-b", "a = b", "1+1", "x@y", "", " ", "it's", "a;b", "a, b", "e\u0301"])
def test_other_cells_stay_as_they_are(text):
    assert databricks_user_list.safe_cell(text) == text


STEERING = ("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "a\rb", "a\x08\x08b", "\u202egnp.exe", "\u2066x",
            "a\nerror: forged", "=HYPERLINK(1)", "x;=cmd()")  # fmt: skip


@pytest.mark.usefixtures("processes")
def test_names_and_messages_neither_steer_a_terminal_nor_forge_lines_nor_run_in_a_spreadsheet():
    with FakeDatabricks(users=["a", "b"], shape="none") as server:
        for user in "ab":
            server.add_tree("dbfs", {f"/Users/{user}": [dbfs_directory(f"/Users/{user}/{name}") for name in STEERING],
                                     **{f"/Users/{user}/{name}": [dbfs_file(f"/Users/{user}/{name}/{name}", 1)]
                                        for name in STEERING}})  # fmt: skip
            server.add_tree("workspace", {f"/Users/{user}": [workspace_object(f"/Users/{user}/{number}", name)
                                                             for number, name in enumerate(STEERING)]})  # fmt: skip
        server.change(faults=[Fault("403", path=f"/Users/{user}/{name}", error_code=name, message=f"{name} {name}")
                              for name in STEERING for user in "a"])  # fmt: skip
        for words in (["a"], ["b"], ["a", "b"]):
            ended = run(server, *words, "--debug")
            shown = ended.err + ended.out.decode()
            assert ended.code == (0 if words == ["b"] else 1), ended
            assert re.sub("[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", shown) == ""
            assert [line for line in shown.splitlines() if line.startswith("error:")] == []
            for row in rows_of(ended.out).values():
                assert not re.search("(^|;)[=+@-]", row["error"])
