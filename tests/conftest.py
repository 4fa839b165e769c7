"""Fixtures of all tests: a clean environment, a clock that nobody waits for, the commands as real processes.

And the markers of tests that are left out of the everyday loop: what a test uses says what it takes.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import databricks_user_files_simple
import databricks_user_list
from tests import helpers
from tests.connect_server import ConnectServer, connect_server_of, why_not
from tests.fake import FakeDatabricks
from tests.helpers import SCANNER, USER_LIST, FakeClock, Login, Result
from tests.kernel import Kernel
from tests.workers import Workers

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
FIXTURES_OF = {  # marker -> the fixtures of which a test with this marker uses one
    "spark": {"connect_server", "connect_servers"},
    "kernel": {"new_kernel"},
    "process": {"command", "login", "shell", "processes"},
    "browser": {"browse"},
}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole folder is run by two processes, where pytest-xdist is there and no -n says how many; each takes files.

    So a process has one Spark server, and the environments of test_runtimes.py are made once.
    """
    options = config.option
    if "PYTEST_XDIST_WORKER" in os.environ or options.usepdb or not config.pluginmanager.hasplugin("xdist"):
        return
    if options.numprocesses is None and [Path(name).resolve() for name in config.args] == [Path(__file__).parent]:
        options.numprocesses = 2
    if options.numprocesses and options.dist == "no":
        options.dist = "loadfile"


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        for marker, fixtures in FIXTURES_OF.items():
            if fixtures.intersection(item.fixturenames):
                item.add_marker(marker)


# Under nohup, or as a shell's background job, these are ignored, and the processes that tests start inherit it.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, proxy, Spark or home of the machine; the working directory is tmp_path, HOME is tmp_path/home."""
    for name in list(os.environ):
        is_proxy = name.upper() in PROXY_VARIABLES
        if name.startswith("DATABRICKS_") or is_proxy or name in ("SPARK_REMOTE", "NETRC", "PYTHONUTF8"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(home / ".databrickscfg"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clean_log() -> None:
    """A command that ran in this process leaves its log handler behind; caplog needs none."""
    log = logging.getLogger("databricks_user_files")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def command() -> Callable[..., Result]:
    """run_command(script, *words, env=..., stdin=...) in tmp_path."""
    return helpers.run_command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """run(script, *words, at=None): SCANNER or USER_LIST in this process, logged in at a server, which counts anew."""
    mains = {SCANNER: databricks_user_files_simple.main, USER_LIST: databricks_user_list.main}

    def call(script: str, *words: object, at: FakeDatabricks | None = None) -> Result:
        if at:
            helpers.log_in(monkeypatch, at)
            at.counts_reset()
        code = mains[script]([*map(str, words)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def scan(run: Callable[..., Result]) -> Callable[..., Result]:
    """scan(server, *words): the scanner in this process."""
    return lambda server, *words: run(SCANNER, *words, at=server)


@pytest.fixture
def list_users(run: Callable[..., Result]) -> Callable[..., Result]:
    """list_users(server, *words): the user list in this process."""
    return lambda server, *words: run(USER_LIST, *words, at=server)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a thirtieth, on the workers too: what the functions refer to goes with them."""
    helpers.set_constants(monkeypatch, RETRIES=helpers.shorter_waits(30), FIRST_QUESTION=0.1)


@pytest.fixture
def server() -> Iterator[FakeDatabricks]:
    """Ten users with about twenty directories each, answers after 4 ms; users.txt names them all."""
    with FakeDatabricks(users=10, shape="small", latency=0.004) as server:
        helpers.write_users(server.user_names)
        yield server


@pytest.fixture(scope="session")
def nobody() -> Iterator[FakeDatabricks]:
    """A workspace without users and homes: every user is `empty`."""
    with FakeDatabricks(users=0) as server:
        yield server


@pytest.fixture
def small() -> Iterator[FakeDatabricks]:
    """Twelve users with about twenty directories each, answers after 5 ms."""
    with FakeDatabricks(users=12, shape="small", latency=0.005) as server:
        yield server


@pytest.fixture
def processes() -> None:
    """For tests that start processes without `command`, and log them in without `login`."""


@pytest.fixture
def login() -> Login:
    """login(server): the variables that log a process in at a fake server."""
    return lambda server: {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": server.settings.token}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """mount(size) makes a file system of that size in the folder `disk`, or gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.path.ismount(folder):
            words = ["mount", "-o", f"remount,{options}", str(folder)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


StartServer = Callable[[Path, str], AbstractContextManager[ConnectServer]]


@pytest.fixture(scope="session")
def connect_servers() -> StartServer:
    """connect_servers(folder, master) is a Connect server of the test's own, in a `with`."""
    if reason := why_not():
        pytest.skip(reason)
    return connect_server_of


@pytest.fixture(scope="session")
def connect_server(tmp_path_factory: pytest.TempPathFactory, connect_servers: StartServer) -> Iterator[ConnectServer]:
    """The one that serves all tests of this process."""
    with connect_servers(tmp_path_factory.mktemp("connect"), "local[8]") as server:
        yield server


@pytest.fixture(scope="session")
def spark(connect_server: ConnectServer) -> Iterator[Any]:
    """One session for all tests of this process; stopped, because at exit it would look for its server for minutes."""
    session = connect_server.session()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def worker_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers without Spark, for all tests of this process."""
    pytest.importorskip("pyspark.sql.connect.functions", reason="pyspark is not installed")
    workers = Workers(tmp_path_factory.mktemp("workers"))
    yield workers
    workers.close()


@pytest.fixture
def workers(worker_processes: Workers) -> Workers:
    """Those whose reports are as they are."""
    worker_processes.change = lambda report: report
    return worker_processes


@pytest.fixture
def new_kernel(tmp_path: Path) -> Iterator[Callable[[], Kernel]]:
    """new_kernel(): a kernel in tmp_path."""
    pytest.importorskip("jupyter_client.manager", reason="ipykernel is not installed")
    kernels: list[Kernel] = []

    def start() -> Kernel:
        kernels.append(Kernel(tmp_path))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.close()
