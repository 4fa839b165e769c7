"""The server: settings, counts, HTTP over asyncio, and what each API answers."""

import asyncio
import base64
import binascii
import json
import math
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from email.utils import formatdate
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote
from zlib import crc32

from tests.fake.faults import (
    FAMILIES,
    FAULT_ERRORS,
    REASONS,
    Answer,
    Fault,
    error_answer,
    fault_answer,
    in_form,
)
from tests.fake.trees import FILE_SYSTEMS, encode
from tests.fake.workspace import Workspace, asked_for, repeated_index

DEFAULT_TOKEN = "dapi-fake-token"
MAX_HEAD = 65_536
MAX_BODY = 1_000_000
USERS_URL = "/api/2.0/preview/scim/v2/Users"
SERVICE_PRINCIPALS_URL = "/api/2.0/preview/scim/v2/ServicePrincipals"
ME_URL = "/api/2.0/preview/scim/v2/Me"
CLUSTER_URL = "/api/2.1/clusters/get"
METADATA_URL = "/.well-known/databricks-config"
DISCOVERY_URL = "/oidc/.well-known/oauth-authorization-server"
TOKEN_URL = "/oidc/v1/token"
LOGIN_URLS = (METADATA_URL, DISCOVERY_URL, TOKEN_URL)
ROUTES = {"/api/2.0/dbfs/list": "dbfs", "/api/2.0/workspace/list": "workspace", USERS_URL: "scim", ME_URL: "scim",
          SERVICE_PRINCIPALS_URL: "scim", CLUSTER_URL: "clusters"}  # fmt: skip


# Settings and counts


@dataclass
class Settings:
    """What a test can change while the server runs.

    latency: seconds before each answer, and up to latency_spread more, so that answers overtake each other.
    limits: requests per second and family; `limit` in change() sets all three. in_flight_limit: of all together.
    retry_after: `none`, `seconds` or `date`, on the answers of the limits, retry_after_seconds ahead.
    scim_limit_status: 429, or 500 as SCIM has done. bad_token: 403 (plain text) or 401 (JSON).
    expire_after_requests: the token is refused after so many; setting it or token starts the count again.
    clients: id -> secret of those that may have OAuth tokens (client_credentials), as may who has the refresh_token;
    such tokens live for token_lifetime seconds, then they get a 401, or so much earlier than they say.
    workspace_ids: of a unified host: a request has to name one of them in X-Databricks-Workspace-Id.
    forms: in which answers come, each path in one of them: see in_form(). encoding: what Content-Encoding claims.
    outage: None, `close` or `503`. groups: `auto` follows admin, None leaves them out, or a list of names.
    clusters: id -> what clusters/get shows of it, or a list of what it shows in turn, the last one for good.
    """

    latency: float = 0.0
    latency_spread: float = 0.0
    limits: dict = field(default_factory=dict)
    in_flight_limit: int | None = None
    retry_after: str = "none"
    retry_after_seconds: int = 1
    faults: list = field(default_factory=list)
    forms: tuple = ("plain",)
    outage: str | None = None
    token: str = DEFAULT_TOKEN
    bad_token: int = 403
    workspace_ids: tuple = ()
    expire_after_requests: int | None = None
    admin: bool = True
    caller: str | None = None
    clients: dict = field(default_factory=dict)
    refresh_token: str | None = None
    token_lifetime: float = 3600.0
    token_dies_early: float = 0.0
    groups: str | list | None = "auto"
    clusters: dict = field(default_factory=dict)
    encoding: str | None = None
    dbfs_disabled: bool = False
    scim_limit_status: int = 429
    scim_page_cap: int = 100
    scim_duplicates: bool = False
    total_results_offset: int = 0
    count_paths: bool = True


SETTING_NAMES = {setting.name for setting in fields(Settings)}


def changed_settings(settings, values):
    """The values to set, checked; a short form is spelled out."""
    values = dict(values)
    if "limit" in values:
        values["limits"] = {**dict.fromkeys(FAMILIES, values.pop("limit")), **values.get("limits", {})}
    unknown = (set(values) - SETTING_NAMES) | (set(values.get("limits", ())) - set(FAMILIES))
    if unknown:
        raise TypeError(f"unknown setting: {', '.join(sorted(unknown))}")
    if "limits" in values:
        values["limits"] = {**settings.limits, **values["limits"]}
    if "faults" in values:
        values["faults"] = [Fault(**fault) if isinstance(fault, dict) else fault for fault in values["faults"]]
    if "outage" in values:
        values["outage"] = {True: "503", False: None}.get(values["outage"], values["outage"])
    return values


@dataclass
class Counts:
    """What was asked and answered since the start or the last reset; times are of time.monotonic().

    requests is keyed (api, path), path_statuses (api, path, status), api_statuses (api, status). The status of a
    request that got none is how it ended: reset, hang, close, or gone (the client went away first).
    workers: process number of each worker of a cluster -> how many requests it made.
    """

    requests: Counter = field(default_factory=Counter)
    path_statuses: Counter = field(default_factory=Counter)
    api_statuses: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    workers: Counter = field(default_factory=Counter)
    api_times: dict = field(default_factory=dict)
    total_requests: int = 0
    max_in_flight: int = 0
    connections: int = 0
    first_request_at: float | None = None
    last_request_at: float | None = None
    last_answer_at: float | None = None

    def arrived(self, api, path, now, in_flight):
        """Count a request."""
        self.total_requests += 1
        self.max_in_flight = max(self.max_in_flight, in_flight)
        if path is not None:
            self.requests[api, path] += 1
        if self.first_request_at is None:
            self.first_request_at = now
        self.last_request_at = now
        self.api_times.setdefault(api, [now, now])[1] = now

    def answered(self, api, path, status, now):
        """Count how a request ended."""
        self.last_answer_at = now
        self.api_statuses[api, status] += 1
        if path is not None:
            self.path_statuses[api, path, status] += 1

    @property
    def statuses(self):
        """Status -> number of answers."""
        result = Counter()
        for (_, status), number in self.api_statuses.items():
            result[status] += number
        return result

    def as_json(self):
        """The counts as a dictionary with text keys: requests by api and path, statuses also by api."""
        simple = ("total_requests", "max_in_flight", "connections", "first_request_at", "last_request_at",
                  "last_answer_at", "api_times", "faults", "workers")  # fmt: skip
        result = {name: getattr(self, name) for name in simple}
        result["statuses"] = {str(status): number for status, number in self.statuses.items()}
        result["requests"] = {}
        result["api_statuses"] = {}
        for (api, path), number in self.requests.items():
            result["requests"].setdefault(api, {})[str(path)] = number
        for (api, status), number in self.api_statuses.items():
            result["api_statuses"].setdefault(api, {})[str(status)] = number
        return result


def take_token(bucket, rate, now):
    """Take one from a token bucket [tokens, time of the last look]; it holds one second's worth, at least one."""
    capacity = max(rate, 1)
    bucket[0] = min(bucket[0] + (now - bucket[1]) * rate, capacity)
    bucket[1] = now
    if bucket[0] < 1:
        return False
    bucket[0] -= 1
    return True


# HTTP


class Request(NamedTuple):
    """One request, its query decoded."""

    method: str
    path: str
    query: dict
    authorization: str
    workspace_id: str
    worker: str
    body: bytes
    keep_alive: bool


def parse_head(head):
    """Method, target, version and the headers with lower-case names."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return method, target, version, headers


def take_request(buffer):
    """Take one request off the front of the buffer; None when it is not there yet, ValueError when it is no HTTP."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0 or end > MAX_HEAD:
        if len(buffer) > MAX_HEAD:
            raise ValueError("head too large")
        return None
    method, target, version, headers = parse_head(bytes(buffer[:end]))
    length = int(headers.get("content-length", 0))
    if not 0 <= length <= MAX_BODY or "transfer-encoding" in headers or version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError("not supported")
    if len(buffer) < end + 4 + length:
        return None
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    path, _, query = target.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    signs = (headers.get(name, "") for name in ("authorization", "x-databricks-workspace-id", "x-worker"))
    return Request(method, unquote(path), pairs, *signs, body, keep_alive)


def head_bytes(answer, keep_alive):
    """Status line and headers."""
    lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}"]
    length = "Transfer-Encoding: chunked" if answer.chunked else f"Content-Length: {len(answer.body)}"
    lines.append(f"Content-Type: {answer.content_type}\r\n{length}")
    lines.extend(f"{name}: {value}" for name, value in answer.headers)
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


class Connection(asyncio.Protocol):
    """One client connection; it has at most one request at a time, later ones wait in the buffer."""

    def __init__(self, server):
        self.server = server
        self.loop = server.loop
        self.transport = None
        self.buffer = bytearray()
        self.request = None
        self.key = None
        self.working = False
        self.timer = None

    def connection_made(self, transport):
        """A client has connected."""
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self)
        self.server.counts.connections += 1

    def connection_lost(self, error):
        """The connection is gone, whoever ended it."""
        self.server.connections.discard(self)
        self.finish("gone")

    def data_received(self, data):
        """Bytes have come; a client that sends ahead of the answers is held back."""
        self.buffer += data
        if self.request is None:
            self.next_request()
        elif len(self.buffer) > MAX_HEAD:
            self.transport.pause_reading()

    def next_request(self):
        """Begin with the next request if it is complete."""
        if self.request is not None or self.transport.is_closing():
            return
        try:
            self.request = take_request(self.buffer)
        except ValueError as error:
            answer = error_answer("http", 400, "MALFORMED_REQUEST", f"Malformed request: {error}")
            self.transport.write(head_bytes(answer, False) + answer.body)
            self.transport.close()
            return
        if self.request is not None:
            self.server.begin(self, self.request)

    def later(self, seconds, action, *values):
        """Do something after a while, unless the connection ends before."""
        self.timer = self.loop.call_later(seconds, action, *values)

    def send(self, answer):
        """Send an answer, or fail to in the way it says."""
        if self.transport.is_closing():
            return
        if answer.cut:
            CUTS[answer.cut](self, answer)
            return
        self.end_answer(answer.status, head_bytes(answer, self.request.keep_alive) + answer.body)

    def end_answer(self, status, data):
        """Send the last bytes of an answer, then go on with what has come meanwhile, or close.

        Counted first: a test that has its answer finds it in the counts.
        """
        keep_alive = self.request.keep_alive
        self.finish(status)
        self.transport.write(data)
        if not keep_alive:
            self.transport.close()
            return
        self.transport.resume_reading()
        if self.buffer:
            self.loop.call_soon(self.next_request)

    def finish(self, status):
        """Count the request as over; does nothing when there is none."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.request is not None:
            self.request = None
            self.server.ended(self, status)

    def close(self, status):
        """End the request and the connection."""
        self.finish(status)
        self.transport.close()

    def reset(self, status):
        """End the request and reset the connection: with a linger time of 0 the system sends RST in place of FIN."""
        self.finish(status)
        linger = struct.pack("hh" if hasattr(socket, "SIO_RCVALL") else "ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def send_half(self, answer):
        """Send the head and half of the body."""
        self.transport.write(head_bytes(answer, True) + answer.body[: len(answer.body) // 2])


def cut_reset_body(connection, answer):
    """Reset in the middle of the body, once the first half has had time to leave."""
    connection.send_half(answer)
    connection.later(0.02, connection.reset, answer.status)


def cut_truncated(connection, answer):
    """Close cleanly in the middle of the body."""
    connection.finish(answer.status)
    connection.send_half(answer)
    connection.transport.close()


def cut_drip(connection, answer):
    """Send the head, then the body byte by byte."""
    connection.transport.write(head_bytes(answer, connection.request.keep_alive))
    drip(connection, answer, 0)


def drip(connection, answer, position):
    """Send one byte and come back for the next."""
    byte = answer.body[position : position + 1]
    if position + 1 >= len(answer.body):
        connection.end_answer(answer.status, byte)
        return
    connection.transport.write(byte)
    connection.later(answer.seconds, drip, connection, answer, position + 1)


CUTS = {
    "reset": lambda connection, answer: connection.reset("reset"),
    "close": lambda connection, answer: connection.close("close"),
    "hang": lambda connection, answer: connection.later(answer.seconds, connection.close, "hang"),
    "reset_body": cut_reset_body,
    "truncated": cut_truncated,
    "drip": cut_drip,
}


# The server


def plain_path(api, path):
    """A path as the trees know it: no scheme, no trailing slash, in the Workspace no doubled slashes."""
    if api == "dbfs" and path.startswith("dbfs:/"):
        path = path[len("dbfs:") :]
    while api == "workspace" and "//" in path:
        path = path.replace("//", "/")
    return path.rstrip("/") or path[:1]


def request_key(request):
    """The family of a request and what it asks for: a path, for scim as in Fault."""
    if request.path in LOGIN_URLS:
        return "oidc", request.path
    api = ROUTES.get(request.path) if request.method == "GET" else None
    if api is None:
        return "other", request.path
    if request.path == ME_URL:
        return api, "Me"
    if request.path in (USERS_URL, SERVICE_PRINCIPALS_URL):
        start = max(whole_number(request.query.get("startIndex"), 1), 1)
        return api, start if request.path == USERS_URL else f"ServicePrincipals {start}"
    if request.path == CLUSTER_URL:
        return api, request.query.get("cluster_id", "")
    return api, plain_path(api, request.query.get("path", ""))


def whole_number(text, default):
    """A number from a query, or the default when it is none."""
    try:
        return int(text)
    except (TypeError, ValueError):
        return default


class FakeDatabricks:
    """The server. Keywords are those of Workspace, those of Settings, and `limit` for all families at once."""

    def __init__(self, users=50, port=0, seed=1, shape="mixed", shapes=None, directories=40, files_per_directory=5,
                 fan_out=10, file_systems=FILE_SYSTEMS, service_principals=0, unlisted_homes=0,
                 **settings):  # fmt: skip
        """port 0 takes any free one; the server runs from start() or `with` on."""
        self.workspace = Workspace(users, seed, shape, shapes, directories, files_per_directory, fan_out, file_systems,
                                   service_principals, unlisted_homes)  # fmt: skip
        self.port = port
        self.settings = Settings()
        self.counts = Counts()
        self.generator = random.Random(seed)
        self.buckets = {}
        self.authorised = 0
        self.issued = {}  # OAuth token -> when it expires (time.monotonic())
        self.in_flight = 0
        self.working = 0
        self.connections = set()
        self.loop = None
        self.thread = None
        self.change(**settings)

    # For tests

    def start(self):
        """Listen, and serve from a thread of its own."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(listener, ready), name="fake-databricks", daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def stop(self):
        """Drop every connection and end the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def serve(self, listener, ready):
        """The thread: serve until the loop is stopped."""
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(self.loop.create_server(partial(Connection, self), sock=listener))
        ready.set()
        self.loop.run_forever()
        server.close()
        for _ in range(3):  # a connection may have come with the last turn, and closes its socket in the next
            for connection in list(self.connections):
                connection.transport.abort()
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        self.stop()

    @property
    def url(self):
        """Where the server is, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self):
        """The header with the token that is valid now."""
        return {"Authorization": f"Bearer {self.settings.token}"}

    @property
    def user_names(self):
        """All user names, in the order in which SCIM lists them."""
        return self.workspace.user_names

    @property
    def requests(self):
        """(api, path) -> number of requests; for scim the path is as in Fault."""
        return self.counts.requests

    @property
    def statuses(self):
        """Status -> number of answers."""
        return self.counts.statuses

    @property
    def workers(self):
        """Process number of each worker of a cluster that made requests -> how many."""
        return self.counts.workers

    @property
    def total_requests(self):
        """Number of requests."""
        return self.counts.total_requests

    @property
    def max_in_flight(self):
        """The most requests that were in work at once."""
        return self.counts.max_in_flight

    def counts_reset(self):
        """Begin counting anew."""
        self.counts = Counts()

    def change(self, **values):
        """Change settings while the server runs; limits are merged, faults replaced."""
        values = changed_settings(self.settings, values)
        if "token" in values or "expire_after_requests" in values:
            self.authorised = 0
        for name, value in values.items():
            setattr(self.settings, name, value)

    def add_tree(self, file_system, listings):
        """Add listings: path -> entries from dbfs_file, dbfs_directory, workspace_object. See Workspace.add_tree."""
        self.workspace.add_tree(file_system, listings)

    def add_user(self, user, shape=None, **scim_fields):
        """Add a user by name or SCIM dictionary; kind="service_principal" or "unlisted": another owner of a home."""
        self.workspace.add_user(user, shape, **scim_fields)

    def drop_connections(self):
        """End every connection, as a network that goes away does."""
        for connection in list(self.connections):
            self.loop.call_soon_threadsafe(connection.transport.abort)

    def revoke(self):
        """Refuse all OAuth tokens that were issued until now."""
        self.issued = dict.fromkeys(self.issued, -math.inf)

    def truth(self, username, home=None):
        """What a complete scan of the user finds."""
        return self.workspace.truth(username, home)

    # A request's way through

    def begin(self, connection, request):
        """Decide on the answer to a request and send it after the latency."""
        self.in_flight += 1
        if request.path.startswith("/_fake/"):
            connection.key = None
            connection.send(self.control(request))
            return
        api, path = request_key(request)
        settings = self.settings
        now = self.loop.time()
        connection.key = api, path if settings.count_paths else None
        self.counts.arrived(*connection.key, now, self.in_flight)
        if request.worker:
            self.counts.workers[request.worker] += 1
        answer = self.refusal(api, request, now)
        if answer is None:
            connection.working = True
            self.working += 1
            answer = self.fault(api, path, request) or self.content(api, path, request)
            form = settings.forms[crc32(str(path).encode()) % len(settings.forms)]
            answer = in_form(answer, form, settings.encoding)
        latency = settings.latency + settings.latency_spread * random.random()
        if latency:
            connection.later(latency, connection.send, answer)
        else:
            connection.send(answer)

    def ended(self, connection, status):
        """A request is over."""
        self.in_flight -= 1
        if connection.working:
            connection.working = False
            self.working -= 1
        if connection.key:
            self.counts.answered(*connection.key, status, self.loop.time())

    def refusal(self, api, request, now):
        """The answer that keeps a request from being served, or None: outage, token, limits."""
        settings = self.settings
        if settings.outage == "close":
            return Answer(0, cut="close")
        if settings.outage:
            return error_answer(api, 503, "TEMPORARILY_UNAVAILABLE", "The service is down for maintenance.")
        if api == "oidc":
            return None
        if not self.is_authorised(request):
            if settings.bad_token == 401 or request.authorization.removeprefix("Bearer ") in self.issued:
                return error_answer("http", *FAULT_ERRORS["401"])
            return Answer(403, b"Error 403 Invalid access token.", "text/plain; charset=utf-8")
        if settings.in_flight_limit is not None and self.working >= settings.in_flight_limit:
            message = f"Workspace 1234567890 exceeded the concurrent limit of {settings.in_flight_limit} requests."
            return error_answer("http", 429, "REQUEST_LIMIT_EXCEEDED", message)
        return self.over_limit(api, now)

    def is_authorised(self, request):
        """Whether the token is right and not used up."""
        settings = self.settings
        token = request.authorization.removeprefix("Bearer ")
        if settings.workspace_ids and request.workspace_id not in settings.workspace_ids:
            return False
        if token in self.issued:
            return self.loop.time() < self.issued[token]
        if request.authorization != f"Bearer {settings.token}":
            return False
        if settings.expire_after_requests is not None and self.authorised >= settings.expire_after_requests:
            return False
        self.authorised += 1
        return True

    def over_limit(self, api, now):
        """The answer to a request above the rate limit of its family, or None."""
        rate = self.settings.limits.get(api)
        if not rate:
            self.buckets.pop(api, None)
            return None
        if take_token(self.buckets.setdefault(api, [max(rate, 1), now]), rate, now):
            return None
        message = f"{api} RPC token bucket limit has been exceeded."
        if api == "scim" and self.settings.scim_limit_status == 500:
            return error_answer(api, 500, "", f"REQUEST_LIMIT_EXCEEDED: {message}")
        return error_answer("http", 429, "REQUEST_LIMIT_EXCEEDED", message, self.retry_headers())

    def retry_headers(self):
        """The Retry-After header as the settings want it."""
        seconds = self.settings.retry_after_seconds
        if self.settings.retry_after == "seconds":
            return (("Retry-After", str(seconds)),)
        if self.settings.retry_after == "date":
            return (("Retry-After", formatdate(math.ceil(time.time() + seconds), usegmt=True)),)
        return ()

    def fault(self, api, path, request):
        """The answer of the first fault that applies, or None."""
        for fault in self.settings.faults:
            if (request.worker or not fault.of_workers) and fault.applies(api, path, self.generator):
                fault.hits += 1
                self.counts.faults[fault.kind] += 1
                return fault_answer(fault, api, partial(self.content, api, path, request), self.retry_headers())
        return None

    def content(self, api, path, request):
        """The answer of a service in good order."""
        if api == "scim":
            kind = "user" if isinstance(path, int) else "service_principal"
            return self.me() if path == "Me" else self.scim_page(int(str(path).split()[-1]), request.query, kind)
        if api == "oidc":
            return self.issue_token(request) if path == TOKEN_URL else Answer(200, encode(self.login_endpoints(path)))
        if api == "other":
            message = f"No API found for '{request.method} {request.path}'"
            return error_answer(api, 404, "ENDPOINT_NOT_FOUND", message)
        if api == "clusters":
            return self.cluster(path)
        if not path.startswith("/"):
            return error_answer(api, 400, "INVALID_PARAMETER_VALUE", f"Path must be absolute: {path}")
        return self.dbfs(path) if api == "dbfs" else self.workspace_listing(path)

    def dbfs(self, path):
        """A DBFS listing."""
        if self.settings.dbfs_disabled:
            message = f"Public DBFS root is disabled. Access is denied on path: {path}"
            return error_answer("dbfs", 403, "PERMISSION_DENIED", message)
        if path == "/Volumes" or path.startswith("/Volumes/"):
            return error_answer("dbfs", 403, "PERMISSION_DENIED", "No operations allowed on this path.")
        if path == "/Users" and path not in self.workspace.explicit["dbfs"]:
            return Answer(200, self.workspace.homes_body("dbfs", "files"))
        entries = self.workspace.listing("dbfs", path)
        if entries is None:
            message = f"No file or directory exists on path {path}."
            return error_answer("dbfs", 404, "RESOURCE_DOES_NOT_EXIST", message)
        return Answer(200, encode({"files": entries}) if entries else b"{}")

    def workspace_listing(self, path):
        """A Workspace listing; /Workspace/Users is /Users, and its answers keep the prefix."""
        prefix = "/Workspace" if path == "/Workspace" or path.startswith("/Workspace/") else ""
        plain = path[len(prefix) :] or "/"
        if path == "/Users" and self.settings.admin and path not in self.workspace.explicit["workspace"]:
            return Answer(200, self.workspace.homes_body("workspace", "objects"))
        entries = self.visible_objects(plain)
        if entries is None:
            return error_answer("workspace", 404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")
        if prefix:
            entries = [{**entry, "path": prefix + entry["path"]} for entry in entries]
        return Answer(200, encode({"objects": entries}) if entries else b"{}")

    def visible_objects(self, path):
        """What the caller sees at a path: an admin everything, others no home but their own."""
        if self.settings.admin or not (path == "/Users" or path.startswith("/Users/")):
            return self.workspace.listing("workspace", path)
        own = self.caller()
        if path == "/Users":
            return self.workspace.homes("workspace", only=own)
        return self.workspace.listing("workspace", path) if path.split("/")[2] == own else None

    def caller(self):
        """The user name of the one whose token it is."""
        names = self.user_names
        return self.settings.caller or (names[0] if names else "admin@example.com")

    def me(self):
        """The caller as SCIM shows it, with groups as the settings say."""
        groups = self.settings.groups
        if groups == "auto":
            groups = ("admins", "users") if self.settings.admin else ("users",)
        name = self.caller()
        resource = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
            "id": "4000000000000000",
            "userName": name,
            "displayName": name.partition("@")[0],
            "active": True,
        }
        if groups is not None:
            resource["groups"] = [{"display": group, "type": "direct", "value": str(100 + number)}
                                  for number, group in enumerate(groups)]  # fmt: skip
        return Answer(200, encode(resource))

    def cluster(self, cluster_id):
        """A cluster, in the next of its states."""
        shown = self.settings.clusters.get(cluster_id)
        if not shown:
            return error_answer("clusters", 400, "INVALID_PARAMETER_VALUE", f"Cluster {cluster_id} does not exist")
        if isinstance(shown, list):
            shown = shown.pop(0) if len(shown) > 1 else shown[0]
        return Answer(200, encode({"cluster_id": cluster_id, **shown}))

    def login_endpoints(self, path):
        """Where databricks-sdk finds what: HostMetadata and OidcEndpoints in its oauth.py."""
        if path == METADATA_URL:
            return {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1234567890", "cloud": "AWS"}
        return {"authorization_endpoint": f"{self.url}/oidc/v1/authorize", "token_endpoint": self.url + TOKEN_URL}

    def issue_token(self, request):
        """A new token for a client with its secret (HTTP Basic), or for the refresh token that a CLI holds."""
        form, settings = dict(parse_qsl(request.body.decode())), self.settings
        try:
            client, _, secret = base64.b64decode(request.authorization.removeprefix("Basic ")).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client = secret = ""
        known = {
            "client_credentials": client in settings.clients and settings.clients[client] == secret,
            "refresh_token": settings.refresh_token and form.get("refresh_token") == settings.refresh_token,
        }.get(form.get("grant_type"))
        if not known:
            error = {"error": "invalid_client", "error_description": "Client authentication failed"}
            return Answer(401, encode(error))
        token = f"eyJ.fake-{len(self.issued)}-{self.generator.getrandbits(64):x}"
        self.issued[token] = self.loop.time() + settings.token_lifetime - settings.token_dies_early
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": int(settings.token_lifetime)}
        return Answer(200, encode({**answer, "scope": "all-apis"}))

    def scim_page(self, start, query, kind="user"):
        """A page of users or service principals; without any, the key Resources is missing."""
        settings, listed = self.settings, self.workspace.indexes[kind]
        cap = settings.scim_page_cap
        count = max(0, min(whole_number(query.get("count"), cap), cap))
        positions = range(start - 1, start - 1 + count)
        indexes = [repeated_index(position, cap) for position in positions] if settings.scim_duplicates else positions
        resources = [self.scim_resource(listed[index], query, kind) for index in indexes if index < len(listed)]
        page = {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
            "totalResults": len(listed) + settings.total_results_offset,
            "startIndex": start,
            "itemsPerPage": len(resources),
        }
        if resources:
            page["Resources"] = resources
        return Answer(200, encode(page))

    def scim_resource(self, index, query, kind):
        """A user as the caller may see it; who is no admin gets id and display name only."""
        show = self.workspace.scim_user if kind == "user" else self.workspace.scim_service_principal
        resource = show(index)
        if not self.settings.admin:
            resource = {key: resource[key] for key in ("id", "displayName")}
        return asked_for(resource, query.get("attributes"), query.get("excludedAttributes"))

    # The test's own endpoints

    def control(self, request):
        """Counts and settings over HTTP, for a server in another process."""
        if (request.method, request.path) == ("GET", "/_fake/counts"):
            return Answer(200, encode(self.counts.as_json()))
        if (request.method, request.path) != ("POST", "/_fake/settings"):
            return error_answer("http", 404, "ENDPOINT_NOT_FOUND", "GET /_fake/counts, POST /_fake/settings")
        try:
            values = json.loads(request.body)
            reset = values.pop("reset_counts", False)
            self.change(**values)
        except (TypeError, ValueError, AttributeError) as error:
            return error_answer("http", 400, "INVALID_PARAMETER_VALUE", str(error))
        if reset:
            self.counts_reset()
        return Answer(200, encode({"changed": sorted(values), "reset_counts": bool(reset)}))
