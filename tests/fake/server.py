"""The server: settings, counts, and what each API answers."""

import asyncio
import base64
import binascii
import math
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

from tests.fake.faults import FAULT_ERRORS, Answer, Fault, Headers, Key, error_answer, fault_answer, in_form
from tests.fake.http import Connection, Request
from tests.fake.trees import encode
from tests.fake.world import World

FAMILIES = ("dbfs", "workspace", "scim")
DEFAULT_TOKEN = "dapi-fake-token"
METADATA_URL = "/.well-known/databricks-config"
DISCOVERY_URL = "/oidc/.well-known/oauth-authorization-server"
TOKEN_URL = "/oidc/v1/token"
ROUTES = {  # path: API, and the parameter that says what is asked for
    "/api/2.0/dbfs/list": ("dbfs", "path"),
    "/api/2.0/workspace/list": ("workspace", "path"),
    "/api/2.0/preview/scim/v2/Users": ("scim", "startIndex"),
    "/api/2.0/preview/scim/v2/Me": ("scim", ""),
    "/api/2.1/clusters/get": ("clusters", "cluster_id"),
    **dict.fromkeys((METADATA_URL, DISCOVERY_URL, TOKEN_URL), ("oidc", "")),
}


@dataclass(slots=True)
class Settings:
    """What a test can change while the server runs.

    latency: seconds before each answer, and up to latency_spread more: answers overtake each other.
    slow: seconds more before an answer about what is in a home, and a fifth of it before one to a cluster's worker.
    limits: requests per second and family; `limit` in change() sets all three.
    windows: limits hold from each whole second to the next. retry_after: whole seconds, on the answers of the limits.
    expire_after_requests: the token is refused after so many; setting it or token starts the count again.
    clients: id -> secret of those that may have OAuth tokens (client_credentials), which live for token_lifetime
    seconds, then they get a 401, or so much earlier than they say.
    workspace_ids: of a unified host: a request has to name one of them in X-Databricks-Workspace-Id.
    forms: in which answers come, each path in one of them: see in_form(). encoding: what Content-Encoding claims.
    outage: None, `close` or `503`. groups: None leaves them out of Me; else names, by default those that admin implies.
    clusters: id -> what clusters/get shows of it.
    """

    latency: float = 0.0
    latency_spread: float = 0.0
    slow: float = 0.0
    limits: dict[str, float | None] = field(default_factory=dict)
    windows: bool = False
    retry_after: int | None = None
    faults: list[Fault] = field(default_factory=list)
    forms: tuple[str, ...] = ("plain",)
    encoding: str | None = None
    outage: str | None = None
    token: str = DEFAULT_TOKEN
    workspace_ids: tuple[str, ...] = ()
    expire_after_requests: int | None = None
    admin: bool = True
    groups: list[str] | str | None = "auto"
    clients: dict[str, str] = field(default_factory=dict)
    token_lifetime: float = 3600.0
    token_dies_early: float = 0.0
    clusters: dict[str, Any] = field(default_factory=dict)
    dbfs_disabled: bool = False
    scim_page_cap: int = 100
    total_results_offset: int = 0
    count_paths: bool = True


@dataclass
class Counts:
    """What was asked and answered since the start or the last reset; times are of time.monotonic().

    requests is keyed (api, path), api_statuses (api, status). The status of a request that got none is how it ended:
    reset, hang, close, or gone (the client went away first). workers: process number of each -> its requests.
    """

    requests: Counter[tuple[str, Key]] = field(default_factory=Counter)
    api_statuses: Counter[tuple[str, int | str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    api_times: dict[str, list[float]] = field(default_factory=dict)  # of the first and the last request
    total_requests: int = 0
    max_in_flight: int = 0
    connections: int = 0
    last_answer_at: float | None = None

    def arrived(self, api: str, path: Key | None, now: float, in_flight: int) -> None:
        self.total_requests += 1
        self.max_in_flight = max(self.max_in_flight, in_flight)
        if path is not None:
            self.requests[api, path] += 1
        self.api_times.setdefault(api, [now, now])[1] = now

    @property
    def statuses(self) -> Counter[int | str]:
        return Counter(status for _, status in self.api_statuses.elements())


def take_token(bucket: list[float], rate: float, now: float, windows: bool = False) -> bool:
    """Takes one from a token bucket [tokens, time of the last look]; it holds one second's worth, at least one.

    With `windows` it is full again at the beginning of each second, and never meanwhile.
    """
    seconds = int(now) - int(bucket[1]) if windows else now - bucket[1]
    bucket[0] = min(bucket[0] + seconds * rate, max(rate, 1))
    bucket[1] = now
    if bucket[0] < 1:
        return False
    bucket[0] -= 1
    return True


def request_key(request: Request) -> tuple[str, Key]:
    """The API of a request and what it asks for: a path, for scim a startIndex or "Me"."""
    api, parameter = ROUTES.get(request.path, ("other", ""))
    if api == "scim":
        return api, max(int(request.query.get("startIndex", 1)), 1) if parameter else "Me"
    return api, request.query.get(parameter, "") if parameter else request.path


class FakeDatabricks:
    """The server of a World. Keywords are those of Settings, `limit` for all families at once, and of World.

    seed: of faults. It runs in a `with`; port 0 takes any free one.
    """

    def __init__(self, users: Any = 50, port: int = 0, seed: int = 1, **more: Any):
        settings = {name: more.pop(name) for name in list(more) if name in (*Settings.__slots__, "limit")}
        self.world = users if isinstance(users, World) else World(users, **{"shape": "mixed", **more})
        self.port = port
        self.settings = Settings()
        self.counts = Counts()
        self.generator = random.Random(seed)
        self.buckets: dict[str, list[float]] = {}
        self.authorised = 0
        self.issued: dict[str, float] = {}  # OAuth token -> when it expires (time.monotonic())
        self.in_flight = 0
        self.connections: set[Connection] = set()
        self.loop = asyncio.new_event_loop()
        self.change(**settings)

    def __enter__(self) -> "FakeDatabricks":
        """Listens, and serves from a thread of its own."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(listener, ready), name="fake-databricks", daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def serve(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        connect = partial(Connection, self, self.loop)
        server = self.loop.run_until_complete(self.loop.create_server(connect, sock=listener))
        ready.set()
        self.loop.run_forever()
        server.close()
        for _ in range(3):  # a connection may have come with the last turn, and closes its socket in the next
            for connection in list(self.connections):
                connection.transport.abort()
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def user_names(self) -> list[str]:
        return self.world.usernames

    def __getattr__(self, name: str) -> Any:
        """What is counted, and what the world can: requests, statuses, ..., add_tree, add_user, truth."""
        if name in ("counts", "world"):
            raise AttributeError(name)
        return getattr(self.counts if hasattr(self.counts, name) else self.world, name)

    def counts_reset(self) -> None:
        self.counts = Counts()

    def change(self, **values: Any) -> None:
        """Changes settings while the server runs; limits are merged, faults replaced. Raises AttributeError."""
        if "limit" in values:
            values["limits"] = dict.fromkeys(FAMILIES, values.pop("limit")) | values.get("limits", {})
        values["limits"] = self.settings.limits | values.get("limits", {})
        if "token" in values or "expire_after_requests" in values:
            self.authorised = 0
        for name, value in values.items():
            setattr(self.settings, name, value)

    def hurry(self) -> None:
        """From now on nothing is slow, and what waits for its time is sent."""
        self.change(latency=0.0, slow=0.0)
        self.loop.call_soon_threadsafe(self.send_waiting)

    def send_waiting(self) -> None:
        for connection in list(self.connections):
            connection.hurry()

    def revoke(self) -> None:
        """Refuses all OAuth tokens that were issued until now."""
        self.issued = dict.fromkeys(self.issued, -math.inf)

    def begin(self, connection: Connection, request: Request) -> None:
        """Decides on the answer to a request and sends it after the latency."""
        self.in_flight += 1
        api, path = request_key(request)
        settings = self.settings
        now = self.loop.time()
        connection.api = api
        self.counts.arrived(api, path if settings.count_paths else None, now, self.in_flight)
        if request.worker:
            self.counts.workers[request.worker] += 1
        answer = self.refusal(api, request, now)
        if answer is None:
            answer = self.fault(api, path, request) or self.content(api, path, request)
            form = settings.forms[crc32(str(path).encode()) % len(settings.forms)]
            answer = in_form(answer, form, settings.encoding)
        latency = settings.latency + settings.latency_spread * random.random()
        if str(path).startswith("/Users/"):
            latency += settings.slow / 5 if request.worker else settings.slow
        if latency:
            connection.send_later(latency, answer)
        else:
            connection.send(answer)

    def ended(self, connection: Connection, status: int | str) -> None:
        self.in_flight -= 1
        self.counts.last_answer_at = self.loop.time()
        self.counts.api_statuses[connection.api, status] += 1

    def refusal(self, api: str, request: Request, now: float) -> Answer | None:
        """The answer that keeps a request from being served: outage, token, limits."""
        settings = self.settings
        if settings.outage == "close":
            return Answer(0, cut="close")
        if settings.outage:
            return error_answer(api, 503, "TEMPORARILY_UNAVAILABLE", "The service is down for maintenance.")
        if api == "oidc":
            return None
        if not self.is_authorised(request):
            if request.authorization.removeprefix("Bearer ") in self.issued:
                return error_answer("http", *FAULT_ERRORS["401"])
            return Answer(403, b"Error 403 Invalid access token.", "text/plain; charset=utf-8")
        rate = settings.limits.get(api)
        if not rate or take_token(self.buckets.setdefault(api, [max(rate, 1), now]), rate, now, settings.windows):
            return None
        return error_answer("http", *FAULT_ERRORS["429"], self.retry_headers())

    def is_authorised(self, request: Request) -> bool:
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

    def retry_headers(self) -> Headers:
        seconds = self.settings.retry_after
        return () if seconds is None else (("Retry-After", str(seconds)),)

    def fault(self, api: str, path: Key, request: Request) -> Answer | None:
        """The answer of the first fault that applies."""
        for fault in self.settings.faults:
            if (request.worker or not fault.of_workers) and fault.applies(api, path, self.generator):
                fault.hits += 1
                self.counts.faults[fault.kind] += 1
                return fault_answer(fault, api, partial(self.content, api, path, request), self.retry_headers())
        return None

    def content(self, api: str, path: Key, request: Request) -> Answer:
        """The answer of a service in good order."""
        if api == "scim":
            return self.scim_page(path, request.query) if isinstance(path, int) else self.me()
        path = str(path)
        if api == "oidc":
            return self.issue_token(request) if path == TOKEN_URL else Answer(200, encode(self.login_endpoints(path)))
        if api == "other":
            return error_answer(api, 404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.path}'")
        if api == "clusters":
            return self.cluster(path)
        return self.directory(api, path)

    def directory(self, api: str, path: str) -> Answer:
        """A listing, as the caller may see it: an admin everything, others in the Workspace no home but their own."""
        if not path.startswith("/"):
            return error_answer(api, 400, "INVALID_PARAMETER_VALUE", f"Path must be absolute: {path}")
        if api == "dbfs" and self.settings.dbfs_disabled:
            message = f"Public DBFS root is disabled. Access is denied on path: {path}"
            return error_answer(api, 403, "PERMISSION_DENIED", message)
        if (api, path) in self.world.denied:
            return error_answer(api, *FAULT_ERRORS["403"])
        entries = self.world.take(api, path)
        if api == "workspace" and not self.settings.admin and path.startswith("/Users"):
            own = f"/Users/{self.caller()}"
            if path == "/Users":
                entries = [entry for entry in entries or () if entry["path"] == own]
            elif not f"{path}/".startswith(f"{own}/"):
                entries = None
        if entries is None:
            return error_answer(api, 404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")
        return Answer(200, encode({"files" if api == "dbfs" else "objects": entries}) if entries else b"{}")

    def caller(self) -> str:
        """The user name of the one whose token it is."""
        return next(iter(self.user_names), "admin@example.com")

    def me(self) -> Answer:
        groups = self.settings.groups
        if groups == "auto":
            groups = ["admins", "users"] if self.settings.admin else ["users"]
        resource: dict[str, Any] = {"id": "4000000000000000", "userName": self.caller(), "active": True}
        if groups is not None:
            resource["groups"] = [{"display": group, "type": "direct", "value": "100"} for group in groups]
        return Answer(200, encode(resource))

    def cluster(self, cluster_id: str) -> Answer:
        shown = self.settings.clusters.get(cluster_id)
        if not shown:
            return error_answer("clusters", 400, "INVALID_PARAMETER_VALUE", f"Cluster {cluster_id} does not exist")
        return Answer(200, encode({"cluster_id": cluster_id, **shown}))

    def login_endpoints(self, path: str) -> dict[str, str]:
        """Where databricks-sdk finds what: HostMetadata and OidcEndpoints in its oauth.py."""
        if path == METADATA_URL:
            return {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": "1234567890", "cloud": "AWS"}
        return {"authorization_endpoint": f"{self.url}/oidc/v1/authorize", "token_endpoint": self.url + TOKEN_URL}

    def issue_token(self, request: Request) -> Answer:
        """A new token for a client with its secret (HTTP Basic)."""
        settings = self.settings
        try:
            client, _, secret = base64.b64decode(request.authorization.removeprefix("Basic ")).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client = secret = ""
        if not secret or settings.clients.get(client) != secret:
            return Answer(401, encode({"error": "invalid_client", "error_description": "Client authentication failed"}))
        token = f"eyJ.fake-{len(self.issued)}-{self.generator.getrandbits(64):x}"
        self.issued[token] = self.loop.time() + settings.token_lifetime - settings.token_dies_early
        lifetime = int(settings.token_lifetime)
        return Answer(200, encode({"access_token": token, "token_type": "Bearer", "expires_in": lifetime}))

    def scim_page(self, start: int, query: dict[str, str]) -> Answer:
        """A page of users with the attributes asked for; without any users, the key Resources is missing."""
        users = self.user_names
        count = min(int(query.get("count", self.settings.scim_page_cap)), self.settings.scim_page_cap)
        indexes = range(start - 1, min(start - 1 + count, len(users)))
        wanted = {"id", *query["attributes"].split(",")} if "attributes" in query else None
        if not self.settings.admin:
            wanted = {"id", "displayName"}
        shown = [self.world.scim_user(index) for index in indexes]
        resources = [{key: user[key] for key in user if wanted is None or key in wanted} for user in shown]
        total = len(users) + self.settings.total_results_offset
        page = {"totalResults": total, "startIndex": start, "itemsPerPage": len(resources)}
        return Answer(200, encode(page | ({"Resources": resources} if resources else {})))
