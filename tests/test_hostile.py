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
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest

import databricks_user_files_simple as scanner
from tests.conftest import ROOT, SCANNER, USER_LIST
from tests.fake_databricks import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object

needs_posix = pytest.mark.skipif(os.name == "nt", reason="measures with POSIX")


# A server that writes raw bytes


def answer(body=b"{}", status="200 OK", *headers):
    """The bytes of an answer after which the connection is closed."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "\r\n"]).encode("latin-1") + body


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


def homes_only(script):
    """A server whose caller is an admin; script(api, path) gives the pieces of listings."""
    return RawServer(lambda api, path: [ADMIN] if api == "Me" else script(api, path))


# The commands as processes

HURRIED = {"READ_SECONDS": 0.4, "RETRIES": dict.fromkeys(scanner.RETRIES, (1, 0.0)), "LONGEST_OUTAGE": 0.2,
           "FIRST_PROBE": 0.1, "LAST_PROBE": 0.1}  # fmt: skip


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
    changed = "".join(f"scanner.{name} = {value!r}\n" for name, value in changes.items())
    code = f"import sys\nimport databricks_user_files_simple as scanner\nimport {script[:-3]} as script\n{changed}" \
           "raise SystemExit(script.main(sys.argv[1:]))"  # fmt: skip
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
        yield data[number:number + 1]
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
    "flood of 1xx": lambda _: repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "flood of 1xx with headers": lambda _: repeat(b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n" * 1000),
    "drip of a head": lambda _: dripping(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90, 0.1),
    "drip of a body": lambda _: dripping(head() + b"x" * 1000, 0.02),
    "chunks": lambda _: chain([head("Transfer-Encoding: chunked")], repeat(b"1\r\nx\r\n" * 10_000)),
    "chunk extension": lambda _: chain([head("Transfer-Encoding: chunked"), b"1;"], repeat(b"x" * 65536)),
    "trailers": lambda _: chain([head("Transfer-Encoding: chunked"), b"0\r\n"], repeat(b"a: b\r\n" * 1000)),
    "gzip": lambda _: [answer(gzipped(200_000_000), "200 OK", "Content-Encoding: gzip")],
    "gzip in gzip": lambda _: [answer(gzip.compress(gzipped(2_000_000_000)), "200 OK",
                                      "Content-Encoding: gzip, gzip")],  # fmt: skip
    "nesting": lambda _: [answer(b"[" * 900_000)],
    "nesting of objects": lambda _: [answer(b'{"files":' * 90_000)],
    "empty objects": lambda api: entries(api, b"{},", 60_000_000),
    "empty lists": lambda api: entries(api, b"[],", 60_000_000),
    "small numbers": lambda api: entries(api, b"300,", 60_000_000),
    "small texts": lambda api: entries(api, b'"ab",', 60_000_000),
    "digits": lambda _: [answer(b'{"files": [' + b"9" * 10_000_000 + b"]}")],
    "markup": lambda _: [answer(b"<title>" * 14_000, "400 Bad")],
}  # fmt: skip
SLOW_TO_MAKE = ("gzip in gzip",)


def script_of(kinds):
    """What a server does whose user u0 has an answer of the first kind, and so on."""
    homes = {f"/Users/u{number}": ENDLESS[kind] for number, kind in enumerate(kinds)}
    return lambda api, path: [ADMIN] if api == "Me" else homes[path](api) if path in homes else [answer()]


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


@pytest.mark.parametrize(("script", "kind"), [
    (SCANNER, "flood of 1xx"), (USER_LIST, "flood of 1xx"), (SCANNER, "body"), (USER_LIST, "drip of a head"),
])  # fmt: skip
def test_a_server_whose_first_answer_does_not_end_ends_the_run(script, kind):
    with RawServer(lambda api, _: ENDLESS[kind](api)) as server:
        ended = run(server, *(["a"] if script == SCANNER else []), script=script, changes=HURRIED)
    assert ended.code == (2 if script == SCANNER else 1), ended
    assert ended.out == b""
    assert "error: " in ended.err
    assert "Traceback" not in ended.err
    assert ended.seconds < 10, ended


@needs_posix
@pytest.mark.soak
def test_large_listings_for_all_threads_at_once_take_bounded_memory():
    """Sixteen listings of 60 MB, of half a million files each."""
    piece = b'{"path": "%s/%010d", "is_dir": false, "file_size": 1234, "modification_time": 1700000000000},'

    def script(api, path):
        if api == "Me":
            yield ADMIN
            return
        yield head() + b'{"files": ['
        for start in range(0, 500_000, 1000):
            yield b"".join(piece % (path.encode(), number) for number in range(start, start + 1000))
        yield (piece % (path.encode(), 500_000)).rstrip(b",") + b"]}"

    with RawServer(script) as server:
        ended = run(server, *[f"u{number}" for number in range(16)], "--dbfs-only", limit=300)
    assert ended.code == 0, ended
    assert {row["file_count"] for row in rows_of(ended.out).values()} == {"500001"}
    assert ended.megabytes < 1000, ended


# Listings that lead astray


def files(path, *values):
    """A DBFS listing with a file for each value, which is JSON or text."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return answer(("{\"files\": [%s]}" % ", ".join(
        f'{{"path": "{path}/{number}", "is_dir": false, "file_size": {value}}}'
        for number, value in enumerate(shown))).encode())  # fmt: skip


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
    "itself": lambda path: folders(path),
    "itself with a slash": lambda path: folders(f"{path}/"),
    "dots": lambda path: folders(f"{path}/.."),
    "dot": lambda path: folders(f"{path}/."),
    "inner dots": lambda path: folders(f"{path}/../other"),
    "grandchild": lambda path: folders(f"{path}/a/b"),
    "twice": lambda path: folders(f"{path}/a", f"{path}/a"),
    "relative": lambda path: folders("a"),
    "scheme": lambda path: folders(f"dbfs:{path}/a"),
    "10,001 characters": lambda path: folders(f"{path}/" + "x" * 10_000),
    "no text": lambda path: answer({"files": [{"path": 1, "is_dir": True}]}),
    "content length of no digits": lambda path: answer().replace(b"Content-Length: 2", b"Content-Length: \xb2"),
    "location that is no URL": lambda path: answer(b"", "302 Found", "Location: http://[x"),
    "status 999": lambda path: answer(b"{}", "999 X"),
    "HTTP/3": lambda path: answer().replace(b"HTTP/1.1", b"HTTP/3"),
    "two lengths": lambda path: answer(b"{}", "200 OK", "Content-Length: 3"),
    "unknown encoding": lambda path: answer(b"{}", "200 OK", "Content-Encoding: gzip"),
    "half a name": lambda path: answer(b'{"files": [{"path": "%s/\\ud800", "is_dir": true}]}' % path.encode()),
    "retry after for ever": lambda path: answer(b"", "400 Bad", "Retry-After: " + "9" * 5000),
}  # fmt: skip


def test_a_listing_that_leads_astray_is_an_error_and_nothing_outside_the_home_is_asked_for():
    names = [f"u{number}" for number in range(len(BAD_LISTINGS))]
    scripts = dict(zip((f"/Users/{name}" for name in names), BAD_LISTINGS.values(), strict=True))

    def script(api, path):
        if api == "Me":
            return [ADMIN]
        return [scripts[path](path) if path in scripts else answer(b"{}", "403 Forbidden")]

    with RawServer(script) as server:
        ended = run(server, *names, "--dbfs-only", changes=HURRIED | {"LONGEST_OUTAGE": 60.0})
    assert ended.code == 1, ended
    assert "Traceback" not in ended.err
    found = {kind: rows_of(ended.out)[name]["status"] for kind, name in zip(BAD_LISTINGS, names, strict=True)}
    expected = dict.fromkeys(BAD_LISTINGS, "error") | {"half a name": "partial", "content length of no digits": "empty"}
    assert {kind: status for kind, status in found.items() if expected[kind] != status} == {}
    assert {path for _, path in server.seen} - {"", "/"} <= set(scripts)  # / is what probes of an outage list


def test_of_a_key_given_twice_the_last_one_counts():
    body = b'{"files": [{"path": "/Shared", "path": "/Users/a/x", "is_dir": true, "is_dir": false, "file_size": 7}]}'
    with RawServer(lambda api, _: [ADMIN if api == "Me" else answer(body)]) as server:
        ended = run(server, "a", "--dbfs-only")
    assert ended.code == 0, ended
    assert rows_of(ended.out)["a"]["total_size"] == "7"


def test_sums_beyond_64_bits_are_saved_and_written(command, login):
    with FakeDatabricks(users=["a"], shape="none") as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_file(f"/Users/a/{number}", 2**63 - 1) for number in range(4)]})
        ended = command(SCANNER, "a", env=login(server))
    assert ended.code == 0, ended
    assert f",{4 * (2**63 - 1)}," in ended.out


def test_a_chain_of_directories_without_an_end_ends():
    with RawServer(lambda api, path: [ADMIN if api == "Me" else folders(f"{path}/{'a' * 99}")]) as server:
        ended = run(server, "a", "--dbfs-only", changes={"RETRIES": HURRIED["RETRIES"]})
    assert ended.code == 1, ended
    row = rows_of(ended.out)["a"]
    assert row["status"] == "partial"
    assert "more than 10,000 characters" in ended.err
    assert len(server.seen) < 110


def test_a_tree_without_an_end_ends_the_run_and_names_the_user():
    def script(api, path):
        return [ADMIN if api == "Me" else folders(*[f"{path}/{number}" for number in range(500 * (path[-1] != "b"))])]

    with RawServer(script) as server:
        ended = run(server, "b", "a", "--dbfs-only", "-o", "out.csv", changes={"MOST_WAITING": 20_000})
        assert ended.code == 2, ended
        assert "/Users/a" in ended.err
        assert "Traceback" not in ended.err
        assert not os.path.exists("out.csv")
        ended = run(server, "b", "--dbfs-only", "--resume", "-o", "out.csv")
    assert ended.code == 0, ended


@needs_posix
@pytest.mark.soak
def test_a_million_waiting_directories_take_bounded_memory():
    def script(api, path):
        if api == "Me":
            return [ADMIN]
        return entries_of(path, 400_000)

    def entries_of(path, number):
        yield head() + b'{"files": ['
        yield b",".join(b'{"path": "%s/%010d", "is_dir": true, "file_size": 0}' % (path.encode(), at)
                        for at in range(number)) + b"]}"  # fmt: skip

    with RawServer(script) as server:
        ended = run(server, "a", "--dbfs-only", "--threads", "1", limit=120)
    assert ended.code == 2, ended
    assert "1,000,000 directories" in ended.err
    assert ended.megabytes < 700, ended


# User lists


def page(*users, total=10**6):
    return answer({"totalResults": total, "Resources": list(users)})


def test_a_list_of_users_without_an_end_ends(tmp_path):
    numbers = count()

    def script(*_):
        return [page(*[{"id": str(next(numbers)), "userName": f"u{next(numbers)}", "groups": ["x" * 1000]}
                       for _ in range(500)])]  # fmt: skip

    with RawServer(script) as server:
        code = {"MOST_USERS": 5000, "TOLD_SECONDS": 0}
        ended = run(server, "-o", "users.csv", script=USER_LIST,
                    changes={f"sys.modules['databricks_user_list'].{name}": value for name, value in code.items()})
    assert ended.code == 2, ended
    assert "more than 5,000 users" in ended.err
    assert "500 users so far" in ended.err
    assert not os.path.exists("users.csv")


@pytest.mark.parametrize("user", [
    {"userName": {"a": 1}}, {"userName": ["a"]}, {"userName": 5}, {"userName": "a", "id": {}},
    {"userName": "a", "displayName": ["=x"]}, {"userName": "a", "active": "false"}, {"userName": "a" * 1001},
    {"userName": "a", "displayName": "x" * 10_000},
])  # fmt: skip
def test_a_user_of_another_kind_fails_the_list(user, tmp_path):
    with RawServer(lambda *_: [page({"id": "1", **user})]) as server:
        ended = run(server, "-o", "users.csv", script=USER_LIST, changes=HURRIED)
    assert ended.code == 1, ended
    assert not os.path.exists("users.csv")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("total", ["NaN", "1e400", "-1", "9" * 4000, "9" * 5000])
def test_a_number_of_users_that_is_none_fails_the_list(total):
    body = f'{{"totalResults": {total}, "Resources": []}}'.encode()
    with RawServer(lambda *_: [answer(body)]) as server:
        ended = run(server, script=USER_LIST, changes=HURRIED)
    assert ended.code == 1, ended
    assert len(ended.err) < 1000
