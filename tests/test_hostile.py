"""Hostile servers, proxies, files and names: no token gets out, nothing runs for ever, and memory stays bounded.

The commands run as real processes, against a fake workspace or a server that writes raw bytes.
"""

import base64
import gzip
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
from itertools import count, repeat
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
