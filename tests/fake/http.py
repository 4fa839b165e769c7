"""HTTP over asyncio: thousands of requests a second beside the code under test, and connections that break."""

import asyncio
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote

from tests.fake.faults import Answer

if TYPE_CHECKING:
    from tests.fake.server import FakeDatabricks

REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request(NamedTuple):
    """One request, its query decoded."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    workspace_id: str
    worker: str
    body: bytes


def take_request(buffer: bytearray) -> Request | None:
    """Takes one request off the front of the buffer; None when it is not there yet."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    whole = end + 4 + int(headers.get("content-length", 0))
    if len(buffer) < whole:
        return None
    body = bytes(buffer[end + 4 : whole])
    del buffer[:whole]
    path, _, query = target.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
    authorization, workspace, worker = (
        headers.get(name, "") for name in ("authorization", "x-databricks-workspace-id", "x-worker")
    )
    return Request(method, unquote(path), pairs, authorization, workspace, worker, body)


def head_bytes(answer: Answer) -> bytes:
    """Status line and headers."""
    length = "Transfer-Encoding: chunked" if answer.chunked else f"Content-Length: {len(answer.body)}"
    lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}"]
    lines.append(f"Content-Type: {answer.content_type}\r\n{length}")
    lines.extend(f"{name}: {value}" for name, value in answer.headers)
    lines.append("Connection: keep-alive\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


class Connection(asyncio.Protocol):
    """One client connection; it has at most one request at a time, a later one waits in the buffer."""

    def __init__(self, server: "FakeDatabricks", loop: asyncio.AbstractEventLoop):
        self.server = server
        self.loop = loop
        self.buffer = bytearray()
        self.request: Request | None = None
        self.api = ""
        self.timer: asyncio.TimerHandle | None = None
        self.answer: Answer | None = None  # that waits for its time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.socket: socket.socket = transport.get_extra_info("socket")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self)
        self.server.counts.connections += 1

    def connection_lost(self, _: Exception | None) -> None:
        self.server.connections.discard(self)
        self.finish("gone")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.request is None:
            self.next_request()

    def next_request(self) -> None:
        if self.request is not None or self.transport.is_closing():
            return
        self.request = take_request(self.buffer)
        if self.request is not None:
            self.server.begin(self, self.request)

    def later(self, seconds: float, action: Callable[..., None], *values: Any) -> None:
        """Does something after a while, unless the connection ends before."""
        self.timer = self.loop.call_later(seconds, action, *values)

    def send_later(self, seconds: float, answer: Answer) -> None:
        self.answer = answer
        self.later(seconds, self.send, answer)

    def hurry(self) -> None:
        """Sends what waits for its time."""
        if self.timer is not None and self.answer is not None:
            self.timer.cancel()
            self.send(self.answer)

    def send(self, answer: Answer) -> None:
        """Sends an answer, or fails to in the way it says."""
        self.answer = None
        if self.transport.is_closing() or self.request is None:
            return
        if answer.cut:
            CUTS[answer.cut](self, answer)
        else:
            self.end_answer(answer.status, head_bytes(answer) + answer.body)

    def end_answer(self, status: int, data: bytes) -> None:
        """The last bytes of an answer. Counted first: a test that has its answer finds it in the counts."""
        self.finish(status)
        self.transport.write(data)
        if self.buffer:
            self.loop.call_soon(self.next_request)

    def finish(self, status: int | str) -> None:
        """Counts the request as over; does nothing when there is none."""
        if self.timer is not None:
            self.timer.cancel()
        if self.request is not None:
            self.request = None
            self.server.ended(self, status)

    def close(self, status: int | str) -> None:
        self.finish(status)
        self.transport.close()

    def reset(self, status: int | str) -> None:
        """With a linger time of 0 the system sends RST in place of FIN."""
        self.finish(status)
        linger = struct.pack("hh" if hasattr(socket, "SIO_RCVALL") else "ii", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()


def cut_reset_body(connection: Connection, answer: Answer) -> None:
    """Resets in the middle of the body, once the first half has had time to leave."""
    connection.transport.write(head_bytes(answer) + answer.body[: len(answer.body) // 2])
    connection.later(0.02, connection.reset, answer.status)


def cut_truncated(connection: Connection, answer: Answer) -> None:
    """Closes cleanly in the middle of the body."""
    connection.finish(answer.status)
    connection.transport.write(head_bytes(answer) + answer.body[: len(answer.body) // 2])
    connection.transport.close()


def cut_drip(connection: Connection, answer: Answer, position: int = -1) -> None:
    """Sends the head, then the body byte by byte."""
    byte = answer.body[position : position + 1] if position >= 0 else head_bytes(answer)
    if position + 1 >= len(answer.body):
        connection.end_answer(answer.status, byte)
        return
    connection.transport.write(byte)
    connection.later(answer.seconds, cut_drip, connection, answer, position + 1)


CUTS: dict[str, Callable[[Connection, Answer], None]] = {
    "reset": lambda connection, _: connection.reset("reset"),
    "close": lambda connection, _: connection.close("close"),
    "hang": lambda connection, answer: connection.later(answer.seconds, connection.close, "hang"),
    "reset_body": cut_reset_body,
    "truncated": cut_truncated,
    "drip": cut_drip,
}
