"""What test files share: places, a clock that nobody waits for, the commands as processes, and what is true."""

import csv
import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_files_simple import FileSystemTotals, UserResult, open_checkpoint
from databricks_user_list import DatabricksClient, DatabricksConfig
from tests.fake import FakeDatabricks, Fault, Folder, Key, Truth, World

PYENV = Path.home() / ".pyenv"  # other interpreters; tests have another home
ROOT = Path(__file__).resolve().parent.parent
SCANNER = "databricks_user_files_simple.py"
USER_LIST = "databricks_user_list.py"
NAME = ".checkpoint_progress.json"
WORDS = ("--users-file", "users.txt", "-o", "out.csv", "--threads", "4")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="signals and mounts of POSIX")
Login = Callable[[FakeDatabricks], dict[str, str]]  # the fixture `login`


class FakeClock:
    """A clock for DatabricksClient(config, threads, clock=clock, sleep=clock.sleep): sleeping takes no time."""

    def __init__(self, now: float = 1000.0):
        self.now = now
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    @property
    def waits(self) -> list[float]:
        """The sleeps that were longer than nothing."""
        return [seconds for seconds in self.sleeps if seconds > 0]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something to become true."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "did not happen"
        time.sleep(0.001)


@contextmanager
def slow_until(
    server: FakeDatabricks, condition: Callable[[], object], then: Callable[[], object] = lambda: None,
    slow: float = 0.2,
) -> Iterator[None]:  # fmt: skip
    """So slow that no run ends before something has happened; `then` is done, and the rest is fast."""
    server.change(slow=slow)

    def hurry() -> None:
        try:
            until(condition, 180)
            then()
        finally:
            server.hurry()

    thread = threading.Thread(target=hurry)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def workers_help(server: FakeDatabricks) -> Callable[[], bool]:
    """A condition: the workers of a cluster have made 40 requests."""
    return lambda: server.workers.total() > 40


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def find_python(version: str) -> str | None:
    """The path of a Python of that minor version ("3.12"), or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or PYENV)
    for path in [*sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python"))), shutil.which(f"python{version}")]:
        # pyenv's own python3.12 may be there, and say that it is not
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


def block_imports(folder: Path, *names: str) -> Path:
    """A folder for PYTHONPATH with which Python cannot import these packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {names!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Blocked())\n", encoding="utf-8")  # fmt: skip
    return folder


def set_constants(monkeypatch: pytest.MonkeyPatch, **constants: Any) -> None:
    """Makes constants smaller, in both scripts: each of them may have one from the other."""
    for name, value in constants.items():
        places = [script for script in (scanner, databricks_user_list) if hasattr(script, name)]
        assert places, f"neither script has {name}"
        for place in places:
            monkeypatch.setattr(place, name, value)


def shorter_waits(divisor: float) -> dict[str, tuple[int, float]]:
    """RETRIES with waits divided by so much."""
    return {kind: (attempts, first / divisor) for kind, (attempts, first) in databricks_user_list.RETRIES.items()}


def log_in(monkeypatch: pytest.MonkeyPatch, server: FakeDatabricks) -> None:
    """Variables for this process."""
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)


def config_of(server: FakeDatabricks) -> DatabricksConfig:
    return DatabricksConfig(server.url, server.settings.token, "test")


@dataclass
class Result:
    """How a command ended, and what it wrote; output and errors are text with the line ends it has."""

    code: int
    out: str
    err: str

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run_command(
    script: str, *words: object, env: dict[str, str] | None = None, stdin: str | bytes = b"", timeout: float = 30
) -> Result:
    """Run one of the two scripts (SCANNER, USER_LIST) as a process; env is added to this process's environment."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(command, env=environment, input=data, capture_output=True, timeout=timeout, check=False)
    return Result(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


@contextmanager
def running(
    server: FakeDatabricks, login: Login, *words: str, prefix: Iterable[str] = (), **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """The scanner as a process that is not waited for; killed at the end."""
    environment = {**os.environ, **login(server), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [*prefix, sys.executable, str(ROOT / SCANNER), *(words or WORDS)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def hang_when(server: FakeDatabricks, condition: Callable[[], object]) -> Fault:
    """From the request on at which the condition is true all hang; the fault that does it, which counts them."""
    gate = Fault("hang", seconds=60, when=condition)
    server.change(faults=[gate])
    return gate


def run_and_kill(server: FakeDatabricks, login: Login, condition: Callable[[], object], *words: str) -> None:
    """Run the scanner until the condition is true when it makes a request, then kill it with -9."""
    gate = hang_when(server, condition)
    with running(server, login, *words) as process:
        until(lambda: process.poll() is not None or gate.hits)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    server.change(faults=[])


def write_users(names: Iterable[str], path: str | Path = "users.txt") -> None:
    Path(path).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def saved_users(path: str | Path = NAME) -> list[str]:
    """The users in a checkpoint, found without the program; a torn last line is left out."""
    names = []
    with suppress(FileNotFoundError):
        for line in Path(path).read_bytes().split(b"\n")[1:]:
            with suppress(ValueError, KeyError, TypeError):
                names.append(json.loads(line.rstrip(b","))["username"])
    return names


def read_file_rows(path: str | Path = "files.csv") -> list[tuple[str, ...]]:
    """The rows that --files has written, sorted, found without the program."""
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["username", "file_system", "path", "object_type", "language", "object_id", "size", "modified"]
    return sorted(map(tuple, rows))


def rows_of(path: str | Path = "out.csv") -> list[dict[str, str]] | None:
    """The rows of a CSV by column; None where there is no such file."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
    return None


def asked_for(server: FakeDatabricks, name: str) -> int:
    """How often one of the user's homes was listed."""
    return sum(server.requests[api, f"/Users/{name}"] for api in ("dbfs", "workspace"))


def true_csv(server: FakeDatabricks, names: Iterable[str] | None = None) -> bytes:
    """The CSV of a complete inventory, found without the program."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("username", "file_count", "total_size", "total_size_gb", "status", "file_source", "error"))
    for name in names or server.user_names:
        writer.writerow(server.truth(name).row.values())
    return text.getvalue().encode()


def spellings(token: str) -> set[str]:
    """The token as it is, percent-encoded, in JSON, and within base64 at any position."""
    within = [b64encode(b"x" * shift + token.encode()).decode()[4:-4] for shift in range(3)]
    return {token, quote(token), quote(token, safe=""), json.dumps(token)[1:-1], *within}


def assert_kept(token: str, *texts: str) -> None:
    """That no text, and no file of the working directory, has it."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    found = [spelling for spelling in spellings(token) for text in texts if spelling in text]
    found += [str(path) for spelling in spellings(token) for path in files if spelling.encode() in path.read_bytes()]
    assert found == []


HEADER: dict[str, Any] = {"workspace_url": "https://adb-1.azuredatabricks.net",
                          "options": {"file_systems": ["dbfs", "workspace"]}}  # fmt: skip


def make_result(number: int, files: int = 1, failures: Iterable[dict[str, str]] = ()) -> UserResult:
    totals = FileSystemTotals(files, 10 * files, 1, {"FILE": files}, list(failures))
    return UserResult(f"user{number}@example.com", "2026-11-23T04:00:00Z", totals, FileSystemTotals(0, 0, 1))


def write_checkpoint(path: Path, results: Iterable[UserResult], workspace_url: str = HEADER["workspace_url"]) -> bytes:
    """A checkpoint with these results; its bytes."""
    with open_checkpoint(path, HEADER | {"workspace_url": workspace_url}, resume=False) as checkpoint:
        for result in results:
            checkpoint.save(result)
    return path.read_bytes()


FILE_SYSTEMS = ("dbfs", "workspace")
ANN, BEN = "ann@example.com", "ben@example.com"
HOME = f"/Users/{ANN}"
MINUTE = 60


def make_client(
    server: FakeDatabricks, clock: FakeClock, threads: int = 16, jitter: float = 1.0, host: str | None = None
) -> DatabricksClient:
    config = DatabricksConfig(host or server.url, server.settings.token, "test")
    return DatabricksClient(config, threads, clock=clock, sleep=clock.sleep, jitter=lambda: jitter)


@contextmanager
def ended_threads() -> Iterator[None]:
    """Waits for the threads that were started: they use the server."""
    before = threading.enumerate()
    try:
        yield
    finally:
        for thread in set(threading.enumerate()).difference(before):
            thread.join(10)


def crawl(
    server: FakeDatabricks, clock: FakeClock, names: list[str] | None = None, threads: int = 16, jitter: float = 1.0,
    on_tick: Callable[[], object] = lambda: None, host: str | None = None, **more: Any,
) -> dict[str, UserResult]:  # fmt: skip
    """User name -> result of scan_users(); one that would go on for ever is ended."""
    client = make_client(server, clock, threads, jitter, host)
    last = clock.now + 400 * MINUTE

    def tick() -> None:
        assert clock.now < last, "no end after hours"
        on_tick()

    with ended_threads():
        names = names or server.user_names
        results = list(scanner.scan_users(names, client.config, threads, client=client, on_tick=tick, **more))
    client.close()
    assert len(results) == len({result.username for result in results})
    return {result.username: result for result in results}


def figures(result: UserResult) -> tuple[int, ...]:
    """Files, bytes and directories of DBFS, then of the Workspace, as found by a scan."""
    totals = [getattr(result, name) or FileSystemTotals() for name in FILE_SYSTEMS]
    return tuple(count for found in totals for count in (found.files, found.bytes, found.directories))


def assert_truth(result: UserResult, truth: Truth) -> None:
    assert {name: str(value) for name, value in result.row().items()} == truth.row
    for name in FILE_SYSTEMS:
        totals, found = getattr(result, name) or FileSystemTotals(), vars(getattr(truth, name))
        assert {count: getattr(totals, count) for count in found} == found


def assert_all_true(server: FakeDatabricks, results: dict[str, UserResult]) -> None:
    assert sorted(results) == sorted(server.user_names)
    for name, result in results.items():
        assert_truth(result, server.truth(name))


def listings(server: FakeDatabricks) -> dict[tuple[str, Key], int]:
    """(file system, path) -> how often it was asked for; without /Users, which is listed to see who has a home."""
    return {key: number for key, number in server.requests.items() if key[0] in FILE_SYSTEMS and key[1] != "/Users"}


def small_server(names: Iterable[str] = (ANN,), **settings: Any) -> FakeDatabricks:
    """Users with four directories in DBFS (files of 128 bytes in all) and two in the Workspace (two objects)."""
    world = World()
    for name in names:
        files = {"a": Folder({"one": 100}), "top": 5, "b": Folder({"two": 20, "c": Folder({"three": 3})})}
        world.add_user(name, Folder(files), Folder({"n": "NOTEBOOK", "w": Folder({"f": "FILE"})}))
    return FakeDatabricks(world, **settings)
