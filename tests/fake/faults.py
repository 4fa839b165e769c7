"""Answers, the faults that spoil them, and the forms in which they are sent.

A new fault is a row of FAULT_ERRORS if it is an answer with a status; else a name in FAULT_KINDS and a line in
fault_answer(), and if it breaks the connection, a line in CUTS of http.py.
"""

import codecs
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.fake.trees import encode

Headers = tuple[tuple[str, str], ...]
Key = str | int  # what a request asks for: a path; for scim the startIndex, or "Me"


class Answer(NamedTuple):
    """What is sent back; cut names how the connection fails while it is sent."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: Headers = ()
    cut: str = ""
    seconds: float = 0.0
    chunked: bool = False


LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Login</title></head><body>Sign in to continue</body></html>"
SLOW_MESSAGE = "The service at this URL is taking too long to process your request. Please try again later."
TIMEOUT_MESSAGE = "java.io.IOException: java.util.concurrent.TimeoutException: Timed out after 5 seconds"
FAULT_ERRORS = {
    "400": (400, "IO_ERROR", "The storage account refused the request."),
    "401": (401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type for this API."),
    "403": (403, "PERMISSION_DENIED", "The caller may not list this path."),
    "404": (404, "RESOURCE_DOES_NOT_EXIST", "No such object."),
    "404_other": (404, "FEATURE_DISABLED", "This feature is not enabled in this workspace."),
    "429": (429, "REQUEST_LIMIT_EXCEEDED", "Request limit exceeded."),
    "500": (500, "INTERNAL_ERROR", TIMEOUT_MESSAGE),
    "503": (503, "TEMPORARILY_UNAVAILABLE", "The service is temporarily unavailable."),
    "slow": (503, "TEMPORARILY_UNAVAILABLE", SLOW_MESSAGE),
}
FAULT_KINDS = (*FAULT_ERRORS, "reset", "reset_body", "truncated", "hang", "drip",
               "truncated_json", "empty_429", "html", "redirect", "body")  # fmt: skip


def error_answer(api: str, status: int, error_code: str, message: str, headers: Headers = ()) -> Answer:
    """An error in the form of its API."""
    if api == "scim":
        return Answer(status, encode({"detail": message, "status": str(status)}), headers=headers)
    return Answer(status, encode({"error_code": error_code, "message": message}), headers=headers)


@dataclass
class Fault:
    """A rule by which requests fail. It applies to those of its api and path, with a probability, so many times.

    kind is one of FAULT_KINDS. seconds: how long `hang` keeps silent, the pause after each byte of `drip`.
    status, error_code, message, headers, body, content_type: used in the answer in place of the kind's own.
    of_workers: only requests that say in X-Worker which worker of a cluster they come from (tests/connect_server.py).
    when: and only while this is true. A test may set `applies` to a rule of its own.
    """

    kind: str
    rate: float = 1.0
    api: str | None = None
    path: Key | None = None
    times: int | None = None
    seconds: float = 1.0
    status: int | None = None
    error_code: str | None = None
    message: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str | bytes = b""
    content_type: str = "application/json"
    location: str = "/login.html"
    of_workers: bool = False
    when: Callable[[], object] | None = None
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; there are {', '.join(FAULT_KINDS)}")

    def applies(self, api: str, path: Key, generator: Random) -> bool:
        """Whether this request fails."""
        if self.api not in (None, api) or (self.path is not None and self.path != path):
            return False
        if (self.times is not None and self.hits >= self.times) or (self.when is not None and not self.when()):
            return False
        return self.rate >= 1 or generator.random() < self.rate


def fault_answer(fault: Fault, api: str, content: Callable[[], Answer], retry_headers: Headers) -> Answer:
    """The answer of a fault; content is called for those that spoil the real answer."""
    headers = tuple(fault.headers.items())
    if fault.kind in FAULT_ERRORS:
        status, error_code, message = FAULT_ERRORS[fault.kind]
        error = (fault.status or status, fault.error_code or error_code, fault.message or message)
        return error_answer(api, *error, headers=headers)
    if fault.kind == "empty_429":
        return Answer(429, b"", headers=headers or retry_headers)
    if fault.kind == "html":
        return Answer(fault.status or 200, LOGIN_PAGE, "text/html; charset=utf-8", headers)
    if fault.kind == "redirect":
        return Answer(fault.status or 302, b"", headers=(("Location", fault.location), *headers))
    if fault.kind == "body":
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        return Answer(fault.status or 200, body, fault.content_type, headers)
    if fault.kind in ("reset", "hang"):
        return Answer(0, cut=fault.kind, seconds=fault.seconds)
    answer = content()
    if fault.kind == "truncated_json":
        return answer._replace(body=answer.body[: len(answer.body) // 2])
    return answer._replace(cut=fault.kind, seconds=fault.seconds)


FORMS = ("plain", "gzip", "chunked", "gzip chunked")  # that the service itself answers in


def in_form(answer: Answer, form: str, encoding: str | None) -> Answer:
    """The answer as a gateway alters it: any of the words utf-16, bom, gzip, chunked; encoding: what headers claim."""
    body = answer.body
    if "utf-16" in form:
        body = body.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
    if "bom" in form:
        body = (codecs.BOM_UTF16_LE if "utf-16" in form else codecs.BOM_UTF8) + body
    if "gzip" in form:
        body = gzip.compress(body, 1)
        encoding = "gzip" if encoding is None else encoding
    if "chunked" in form:
        pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    headers: Headers = () if encoding is None else (("Content-Encoding", encoding),)
    return answer._replace(body=body, chunked="chunked" in form, headers=(*answer.headers, *headers))
