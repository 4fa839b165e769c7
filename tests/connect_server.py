"""A real Spark Connect server on this machine: pyspark carries it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.helpers import block_imports, free_port, until

NOT_ON_WORKERS = ("databricks_user_files_simple", "databricks_user_list", "tests", "tqdm", "responses", "hypothesis",
                  "databricks")  # fmt: skip
SIGNED = """
import http.client, os
end_of_head = http.client.HTTPConnection.endheaders
def endheaders(self, *more, **named):
    self.putheader("X-Worker", str(os.getpid()))
    end_of_head(self, *more, **named)
http.client.HTTPConnection.endheaders = endheaders
"""


def worker_site(folder: Path) -> Path:
    """For a worker's PYTHONPATH: it imports nothing of this project, and signs its requests for the fake workspace."""
    blocked = block_imports(folder / "blocked", *NOT_ON_WORKERS)
    with open(blocked / "sitecustomize.py", "a", encoding="utf-8") as site:
        site.write(SIGNED)
    return blocked


class ConnectServer:
    """A Spark Connect server of its own process group; its workers start through a script that tests can change."""

    def __init__(self, folder: Path, master: str):
        package = find_spec("pyspark")
        assert package and package.origin, "pyspark is not installed"
        home = Path(package.origin).parent  # of Spark itself, too
        self.folder, self.port, self.python = folder, free_port(), folder / "worker-python"
        self.remote = f"sc://127.0.0.1:{self.port}"
        self.site = worker_site(folder)
        self.set_workers(sys.executable)
        (folder / "events").mkdir()
        settings = {
            "spark.ui.enabled": "false", "spark.connect.grpc.binding.port": self.port,
            "spark.eventLog.enabled": "true", "spark.eventLog.compress": "false",
            "spark.eventLog.dir": (folder / "events").as_uri(), "spark.sql.warehouse.dir": (folder / "sql").as_uri(),
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
        command = [home / "bin" / "spark-submit", "--class", "org.apache.spark.sql.connect.service.SparkConnectServer",
                   "--master", master, *words]  # fmt: skip
        environment = {**os.environ, "SPARK_HOME": str(home), "PYSPARK_PYTHON": str(self.python)}
        with open(folder / "console", "wb") as console:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, cwd=folder, stdout=console, stdin=subprocess.DEVNULL,
                stderr=console, start_new_session=True,
            )  # fmt: skip
        until(self.is_started, 90)

    def is_started(self) -> bool:
        """From its console: whoever tries to connect to a free port may be connected to himself."""
        text = (self.folder / "console").read_text(encoding="utf-8")
        assert self.process.poll() is None, text[-3000:]
        return "Spark Connect server started at" in text

    def set_workers(self, python: str) -> None:
        """The interpreter of the workers of new sessions: Spark starts each session's anew."""
        temporary = self.python.with_suffix(".new")
        line = f"""PYTHONPATH='{self.site}':"$PYTHONPATH" exec '{python}' "$@"\n"""
        temporary.write_text(f"#!/bin/sh\n{line}", encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(self.python)

    @contextmanager
    def workers(self, python: str) -> Iterator[None]:
        self.set_workers(python)
        yield
        self.set_workers(sys.executable)

    def session(self) -> Any:
        from pyspark.sql import SparkSession

        return SparkSession.builder.remote(self.remote).create()

    def texts(self) -> dict[str, str]:
        """What the server has written: console and event log."""
        files = [self.folder / "console", *(self.folder / "events").rglob("*")]
        return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()}

    def kill(self) -> None:
        """As a machine that is gone: no farewell to the client."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Wire:
    """A way to a server of this machine, closed, it is as if that server's machine were gone."""

    def __init__(self, port: int):
        self.to, self.ends = port, [socket.create_server(("127.0.0.1", 0))]
        self.port = self.ends[0].getsockname()[1]
        threading.Thread(target=self.connect, daemon=True).start()

    def connect(self) -> None:
        with suppress(OSError):
            while True:
                near, far = self.ends[0].accept()[0], socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, come: socket.socket, go: socket.socket) -> None:
        with suppress(OSError):
            while data := come.recv(65536):
                go.sendall(data)
            go.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # which ends what a thread waits for
            end.close()


def why_not() -> str | None:
    """Why no Spark Connect server can run here; None if it can."""
    if os.name == "nt" or not shutil.which("java") or find_spec("pyspark") is None:
        return "a Spark Connect server needs POSIX, Java and pyspark[connect]"
    return None


@contextmanager
def connect_server_of(folder: Path, master: str) -> Iterator[ConnectServer]:
    """A server, killed in the end."""
    server = ConnectServer(folder, master)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
