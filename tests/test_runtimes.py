"""Both commands, and a classic session, on each pyspark and Python that clusters have; left out unless -m runtimes.

Client and workers have the same Python; the Connect server is of the newest pyspark, which is the one of this process.
Environments are made once, in the user's cache folder. What cannot be had is skipped, with the reason.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.fake import FakeDatabricks
from tests.helpers import ROOT, SCANNER, USER_LIST, find_python, slow_until, true_csv, workers_help

pytestmark = pytest.mark.runtimes

HOME = str(Path.home())  # tests have another, where pip would find neither its settings nor its cache
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or f"{HOME}/.cache") / "databricks-user-files-tests"
OWN = f"3.{sys.version_info.minor}"
PACKAGES = {
    "3.5": ["pyspark[connect]==3.5.*", "pandas<3", "numpy<2", "pyarrow<20", "setuptools"],
    "4.0": ["pyspark[connect]==4.0.*", "pandas<3"],
    "4.1": ["pyspark[connect]==4.1.*", "pandas<3"],
    "newest": ["pyspark[connect]", "pandas<3"],
}
CLIENTS = [("3.5", OWN), ("4.0", OWN), ("4.1", OWN), ("3.5", "3.12"), ("newest", "3.12"), ("newest", "3.13")]
CLASSIC = [("3.5", OWN), ("3.5", "3.10"), ("4.0", OWN)]


# Environments


@cache
def environment(pyspark, python):
    """The interpreter of an environment with this pyspark; skips where it cannot be had."""
    base = sys.executable if python == OWN else find_python(python)
    if base is None:
        pytest.skip(f"there is no Python {python} on this machine")
    packages = [*PACKAGES[pyspark], "requests"]
    name = hashlib.sha256(" ".join([base, *packages]).encode()).hexdigest()[:12]
    folder = CACHE / f"pyspark-{pyspark}-python-{python}-{name}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        install = (folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
        for command in ((base, "-m", "venv", folder), install):
            done = run(*command, HOME=HOME)
            if done.returncode:
                pytest.skip(f"pyspark {pyspark}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        (folder / "complete").touch()
    return str(folder / "bin/python")


@contextmanager
def workspace():
    """Forty users with forty directories each: minutes for this machine alone, until workers are at work."""
    server = FakeDatabricks(users=40, shape="bench", directories=40)
    with server, slow_until(server, workers_help(server)):
        yield server


def run(*words, **variables):
    variables = {name: value for name, value in {**os.environ, **variables}.items() if name != "SPARK_HOME"}
    words = list(map(str, words))
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=500, check=False)


# The tests


@pytest.fixture(scope="module")
def connect(tmp_path_factory, connect_servers):
    with connect_servers(tmp_path_factory.mktemp("connect"), "local[4]") as server:
        yield server


@pytest.mark.parametrize(("pyspark", "python"), dict.fromkeys(CLIENTS))
def test_the_commands_with_a_client_of(pyspark, python, connect, login):
    client = environment(pyspark, python)
    with workspace() as server, connect.workers(sys.executable if python == OWN else environment("newest", python)):
        listed = run(client, ROOT / USER_LIST, "-o", "users.csv", **login(server))
        assert listed.returncode == 0, listed.stderr
        done = run(client, ROOT / SCANNER, "--users-file", "users.csv", "-o", "out.csv", "--threads", "2",
                   "--spark-remote", connect.remote, **login(server))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if line.startswith("warning: ")] == []
        assert Path("out.csv").read_bytes() == true_csv(server)


@pytest.mark.parametrize(("pyspark", "python"), [("3.5", "3.10"), ("3.5", OWN), ("3.5", "3.12"), ("newest", "3.13")])
def test_a_scan_waits_for_its_pace_and_ends_on(pyspark, python, login):
    """By the real clock: with a queue's time-out of microseconds Python 3.10 waited for ever."""
    limits = {"dbfs": 60.0, "workspace": 60.0}
    with FakeDatabricks(users=4, shape="bench", directories=100, latency=0.02, limits=limits) as server:
        names = list(server.user_names)
        done = run(environment(pyspark, python), ROOT / SCANNER, *names, "-o", "out.csv", **login(server))
        assert done.returncode == 0, done.stderr
        assert server.statuses[429] > 0
        assert Path("out.csv").read_bytes() == true_csv(server)


SESSION = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
sys.path.append({root!r})
from databricks_user_files_simple import process_user_batch_parallel
from databricks_user_list import DatabricksConfig
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[4]").config("spark.ui.enabled", "false").getOrCreate()
assert ".connect." not in type(spark).__module__
config = DatabricksConfig({url!r}, {token!r})
results = process_user_batch_parallel(spark, {names!r}, config, 2)
print(json.dumps([[result.username, result.file_count, result.total_size, result.status] for result in results]))
"""


@pytest.mark.parametrize(("pyspark", "python"), dict.fromkeys(CLASSIC))
def test_a_classic_session_of(pyspark, python, connect):
    """Its workers start as those of the Connect server do, which is only looking on."""
    client = environment(pyspark, python)
    with workspace() as server, connect.workers(client):
        text = SESSION.format(root=str(ROOT), url=server.url, token=server.settings.token, names=server.user_names)
        done = run(client, "-c", text, PYSPARK_PYTHON=connect.python)
        assert done.returncode == 0, done.stderr
        assert "WARNING:databricks_user_files" not in done.stderr
        truth = csv.DictReader(io.StringIO(true_csv(server).decode()))
        rows = [[row["username"], int(row["file_count"]), int(row["total_size"]), row["status"]] for row in truth]
        assert sorted(json.loads(done.stdout)) == sorted(rows)
