"""How fast the scanner is, and how large: python -m tests.benchmark [--quick] [--case NAME]

Every case runs the commands as whole processes against the fake workspace, in a process of its own, and compares what
it took with a bound that comes from the same run: requests x latency / threads, the service's limit, or another
program. Prints a table: of several runs of a case, the one with the median ratio.

A ratio at a limit is the goodput as a share of the limit. Of task slots and of CPU it is how many times as fast.
Elsewhere it is the time, or the size, beside the bound. tests/README.md has a table. --quick does all cases small and
several at a time, for rough figures; --case TEXT does those with this in their name.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from databricks_user_files_simple import FileSystemTotals, UserResult, open_checkpoint
from tests.connect_server import connect_server_of, why_not
from tests.fake import FakeDatabricks

ROOT = Path(__file__).resolve().parent.parent
LATENCY = 0.05  # seconds
THREADS = 16
LIMIT = 30  # requests/s
BENCH_TREE = 40  # directories of each user at a limit
QUICK_CASES = 5  # at a time, with --quick
COLUMNS = (
    "case",
    "requests",
    "seconds",
    "compared with",
    "ratio",
    "asked for",
    "429s",
    "failed users",
    "requests per CPU-second",
    "peak memory",
)
spawn = multiprocessing.get_context("spawn")
servers, one_at_a_time = ExitStack(), threading.Lock()  # Spark Connect servers that run, and their start
remotes: dict[int, str] = {}  # their URLs, by task slots


@dataclass
class Outcome:
    """Of one run: `cpu` in seconds and `memory` in bytes are those of the scanner's process."""

    requests: int
    seconds: float
    compared: str
    ratio: float
    limited: int = 0
    failed: int = 0
    cpu: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Case:
    name: str
    asked_for: str
    measure: Callable[[bool], Outcome]  # is told whether to be quick
    runs: int = 3
    idle: bool = False  # waits most of the time, so that its runs may go side by side


# --- The fake workspace, and processes ------------------------------------------------------------------------------


class Server:
    """A fake workspace in a process of its own."""

    def __init__(self, **options: Any):
        self.url, self.token, self.users = "", "", []
        ours, its = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(options, its), daemon=True)
        self.process.start()
        self.url, self.token, self.users = ours.recv()

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_fake/counts") as answer:
            return json.load(answer)

    def change(self, **settings: Any) -> None:
        urllib.request.urlopen(f"{self.url}/_fake/settings", json.dumps(settings).encode()).close()

    def login(self) -> dict[str, str]:
        return {**os.environ, "DATABRICKS_HOST": self.url, "DATABRICKS_TOKEN": self.token,
                "DATABRICKS_CONFIG_FILE": os.devnull}  # fmt: skip


def serve(options: dict[str, Any], pipe: Any) -> None:
    """The process: until it is killed."""
    with FakeDatabricks(**options) as server:
        pipe.send((server.url, server.settings.token, server.user_names))
        threading.Event().wait()


@contextmanager
def workspace(**options: Any) -> Iterator[Server]:
    server = Server(**{"latency": LATENCY, **options})
    try:
        yield server
    finally:
        server.process.kill()
        server.process.join()
        server.process.close()


@dataclass
class Finished:
    started: float  # time.monotonic(), as the times in the server's counts
    seconds: float
    cpu: float
    memory: int  # bytes
    failed: int


def run(words: list[str], folder: str, environment: dict[str, str], codes: tuple[int, ...] = (0,)) -> Finished:
    """A Python process; `failed` counts the CSV's rows that are partial or error."""
    started = time.monotonic()
    with open(Path(folder) / "console", "w+b") as console:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=console,
                                   stderr=subprocess.STDOUT)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        console.seek(0)
        assert process.returncode in codes, console.read().decode()
    rows = (Path(folder) / "inventory.csv").read_text(encoding="utf-8").splitlines() if "-o" in words else []
    failed = sum(",partial," in row or ",error," in row for row in rows)
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    return Finished(started, time.monotonic() - started, cpu, usage.ru_maxrss * unit, failed)


def scan(server: Server, *options: str) -> Finished:
    """The scanner over all users of the server."""
    with tempfile.TemporaryDirectory(prefix="inventory-benchmark-") as folder:
        (Path(folder) / "users.txt").write_text("\n".join(server.users), encoding="utf-8")
        words = [str(ROOT / "databricks_user_files_simple.py"), "--users-file", "users.txt", "-o", "inventory.csv"]
        return run([*words, "--quiet", *options], folder, server.login(), codes=(0, 1))


def outcome(done: Finished, counts: dict[str, Any], seconds: float, compared: str, ratio: float) -> Outcome:
    limited = counts["statuses"].get("429", 0)
    return Outcome(counts["total_requests"], seconds, compared, ratio, limited, done.failed, done.cpu, done.memory)


def listing_times(counts: dict[str, Any]) -> tuple[float, float]:
    """When the first listing came, and when the last was answered."""
    return min(counts["api_times"][api][0] for api in counts["api_times"] if api != "scim"), counts["last_answer_at"]


def listings(counts: dict[str, Any]) -> int:
    return counts["total_requests"] - sum(counts["api_statuses"].get("scim", {}).values())


# --- Latency --------------------------------------------------------------------------------------------------------


def latency(users: int, shape: str, quick: bool) -> Outcome:
    with workspace(users=users // (4 if quick else 1) or 1, shape=shape) as server:
        done = scan(server, "--threads", str(THREADS))
        counts = server.counts()
    first, last = listing_times(counts)
    bound = listings(counts) * LATENCY / THREADS
    return outcome(done, counts, last - first, f"{bound:.1f} s: requests x latency / threads", (last - first) / bound)


def with_cluster(options: dict[str, Any], quick: bool) -> Outcome:
    """4 threads and 8 task slots of a server that runs, in a new session; beside 4 threads that never pause."""
    options = {**options, "users": options["users"] // (3 if quick else 1)}
    remote = spark_connect(8)
    with workspace(latency=0.1, **options) as server:
        done = scan(server, "--threads", "4", "--spark-remote", remote)
        counts = server.counts()
    first, last = listing_times(counts)
    alone = listings(counts) * 0.1 / 4
    return outcome(done, counts, last - first, f"{alone:.0f} s: requests x latency / 4", alone / (last - first))


def cluster_not_needed(quick: bool) -> Outcome:
    """12 small users with a cluster given, beside the same without."""
    remote, seconds = spark_connect(8), []
    for options in ([], ["--spark-remote", remote]):
        with workspace(users=12, shape="small") as server:
            done = scan(server, *options)
            counts = server.counts()
        first, last = listing_times(counts)
        seconds.append(last - first)
    return outcome(done, counts, seconds[1], f"{seconds[0]:.2f} s: without a cluster", seconds[1] / seconds[0])


# --- Limits ---------------------------------------------------------------------------------------------------------


def at_limit(
    quick: bool, limits: dict[str, float], threads: int = THREADS, slots: int = 0, seconds: int = 40, **settings: Any
) -> Outcome:
    """Each API at its own limit for about 40 s: the lower of the two goodputs, in its share of the limit."""
    seconds = 10 if quick else seconds
    requests = {api: round(limit * seconds) for api, limit in limits.items()}
    users = max(10 if slots else 1, sum(requests.values()) // (2 * BENCH_TREE))
    remote = ["--spark-remote", spark_connect(slots)] if slots else []
    with workspace(users=users, shape="bench", limits=limits, directories=sum(requests.values()) // users,
                   **settings) as server:  # fmt: skip
        done = scan(server, "--threads", str(threads), *remote)
        counts = server.counts()
    goodputs = {api: goodput(counts, api) / limit for api, limit in limits.items()}
    first, last = listing_times(counts)
    compared = " and ".join(f"{limit:g}/s" for limit in dict.fromkeys(limits.values()))
    return outcome(done, counts, last - first, compared, min(goodputs.values()))


def goodput(counts: dict[str, Any], api: str) -> float:
    """Listings per second, from the API's first request to its last."""
    answered = sum(number for status, number in counts["api_statuses"][api].items() if status in ("200", "404"))
    first, last = counts["api_times"][api]
    return answered / (last - first)


def limit_that_drops(quick: bool) -> Outcome:
    """To a third after a while, and back again after as long: compared with what the limits let through."""
    phase = 5 if quick else 20
    with workspace(users=2 * phase, shape="bench", limit=LIMIT, directories=BENCH_TREE) as server:
        timers = [
            threading.Timer(phase, server.change, kwargs={"limit": LIMIT / 3}),
            threading.Timer(2 * phase, server.change, kwargs={"limit": LIMIT}),
        ]
        for timer in timers:
            timer.start()
        done = scan(server, "--threads", str(THREADS))
        for timer in timers:
            timer.cancel()
        counts = server.counts()
    ratios = []
    for api in ("dbfs", "workspace"):  # the Workspace has more to list: what has no type
        first, last = counts["api_times"][api]
        dropped = max(min(phase, last - first - phase), 0)
        let_through = LIMIT * (last - first - dropped) + LIMIT / 3 * dropped
        ratios.append(goodput(counts, api) * (last - first) / let_through)
    first, last = listing_times(counts)
    return outcome(done, counts, last - first, "30/s, then 10/s, then 30/s", min(ratios))


def in_flight_limit(quick: bool) -> Outcome:
    """A limit on requests at the same time: compared with as many being always on their way."""
    with workspace(users=100 if quick else 400, shape="small", in_flight_limit=20) as server:
        done = scan(server, "--threads", "64")
        counts = server.counts()
    first, last = listing_times(counts)
    answered = counts["statuses"]["200"] + counts["statuses"].get("404", 0)
    bound = answered * LATENCY / 20
    return outcome(done, counts, last - first, f"{bound:.1f} s: 20 at the same time", bound / (last - first))


# --- Start, CPU, memory, checkpoint ---------------------------------------------------------------------------------


def start_up(words: list[str], quick: bool) -> Outcome:
    """The command beside the least that any such command has to do; the two in turn."""
    least, ours = [], []
    with workspace(users=1, shape="none", latency=0) as server, tempfile.TemporaryDirectory() as folder:
        for _ in range(5 if quick else 15):
            least.append(run(["-c", "import requests, argparse"], folder, server.login()).seconds)
            server.change(reset_counts=True)
            done = run([str(ROOT / "databricks_user_files_simple.py"), *words], folder, server.login())
            first = server.counts()["first_request_at"]
            ours.append(first - done.started if first else done.seconds)
    compared = f"{statistics.median(least):.2f} s: python -c 'import requests, argparse'"
    ratio = statistics.median(one / other for one, other in zip(ours, least, strict=True))
    return Outcome(0, statistics.median(ours), compared, ratio, memory=done.memory)


def beside_the_sdk(quick: bool) -> Outcome:
    """Requests per CPU-second of whole processes: the same trees, the same threads, no latency."""
    if find_spec("databricks.sdk") is None:
        raise LookupError("databricks-sdk is not installed")
    with workspace(users=100 if quick else 400, shape="bench", directories=BENCH_TREE, latency=0.01) as server:
        done = scan(server, "--threads", str(THREADS))
        counts = server.counts()
        server.change(reset_counts=True)
        with tempfile.TemporaryDirectory() as folder:
            code = f"from tests.benchmark import walk_with_sdk; walk_with_sdk({server.users!r})"
            (Path(folder) / "walk.py").write_text(code, encoding="utf-8")
            walk = run(["walk.py"], folder, {**server.login(), "PYTHONPATH": str(ROOT)})
        theirs = server.counts()["total_requests"] / walk.cpu
    first, last = listing_times(counts)
    ratio = counts["total_requests"] / done.cpu / theirs
    return outcome(done, counts, last - first, f"{theirs:.0f} per CPU-second: databricks-sdk", ratio)


def with_files(quick: bool) -> Outcome:
    """CPU-seconds of the same scan with and without --files."""
    with workspace(users=100 if quick else 400, shape="bench", directories=BENCH_TREE, latency=0) as server:
        without = scan(server)
        server.change(reset_counts=True)
        done = scan(server, "--files", "files.csv")
        counts = server.counts()
    first, last = listing_times(counts)
    return outcome(done, counts, last - first, f"{without.cpu:.1f} CPU-seconds without", done.cpu / without.cpu)


def walk_with_sdk(users: list[str]) -> None:
    """Lists what the scanner lists, with the official client; each thread takes one user after the other."""
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.errors import NotFound
    from databricks.sdk.service.workspace import ObjectType

    client, folders = WorkspaceClient(), (ObjectType.DIRECTORY, ObjectType.REPO)

    def walk(user: str) -> tuple[int, int]:
        files = size = 0
        for list_directory in (client.dbfs.list, client.workspace.list):
            frontier = [f"/Users/{user}"]
            while frontier:
                try:
                    for entry in list_directory(frontier.pop()):
                        if getattr(entry, "is_dir", None) or getattr(entry, "object_type", None) in folders:
                            frontier.append(entry.path)
                        else:
                            files, size = files + 1, size + (getattr(entry, "file_size", 0) or 0)
                except NotFound:
                    pass
        return files, size

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(walk, users))


def memory(users: int, directories: int, quick: bool, files: int = 5, fan_out: int = 10) -> Outcome:
    """Many users, many directories, or large ones: the peak memory beside 300 MB."""
    part = 50 if quick else 1
    users, directories = (max(users // part, 1), directories) if users > 100 else (users, directories // part or 1)
    with workspace(users=users, shape="bench", directories=directories, files_per_directory=files, fan_out=fan_out,
                   file_systems=("workspace",), latency=0, count_paths=False) as server:  # fmt: skip
        done = scan(server, "--workspace-only")
        counts = server.counts()
    first, last = listing_times(counts)
    return outcome(done, counts, last - first, "300 MB", done.memory / 300e6)


def checkpoint(quick: bool) -> Outcome:
    """Saving a user, late in a checkpoint and early: medians over 1,000 users each, from the same run."""
    total, times = 20_000 if quick else 100_000, []
    totals = FileSystemTotals(100, 1_000_000, 10, {"FILE": 100, "DIRECTORY": 9})
    with tempfile.TemporaryDirectory() as folder:
        header = {"workspace_url": "https://x", "options": {"file_systems": []}}
        with open_checkpoint(Path(folder) / "checkpoint", header, resume=False) as saved:
            began = time.monotonic()
            for number in range(total + 1000):
                result = UserResult(f"user{number}@example.com", "2026-01-01T00:00:00Z", totals, totals)
                before = time.perf_counter()
                saved.save(result)
                times.append(time.perf_counter() - before)
            seconds = time.monotonic() - began
    early, late = statistics.median(times[1000:2000]), statistics.median(times[total:])
    compared = f"{early * 1e6:.0f} microseconds: user 1,000"
    return Outcome(0, seconds, compared, late / early, memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# --- Spark ----------------------------------------------------------------------------------------------------------


def spark_connect(slots: int) -> str:
    """The URL of a Spark Connect server on this machine, which runs until the end."""
    if reason := why_not():
        raise LookupError(reason)
    with one_at_a_time:
        if slots not in remotes:
            folder = servers.enter_context(tempfile.TemporaryDirectory())
            remotes[slots] = servers.enter_context(connect_server_of(Path(folder), f"local[{slots}]")).remote
        return remotes[slots]


def both(limit: float) -> dict[str, float]:
    return {"dbfs": limit, "workspace": limit}


GIANT = {"users": 60, "shape": "small", "shapes": {7: "giant"}}
CASES = [
    Case("many small users, 50 ms, 16 threads", "<= 1.20", partial(latency, 200, "small")),
    Case("one giant user, 50 ms, 16 threads", "<= 1.20", partial(latency, 1, "giant")),
    *(
        Case(
            f"limit {limit}/s, {'with' if retry_after else 'without'} Retry-After",
            ">= 0.90",
            partial(at_limit, limits=both(limit), retry_after=retry_after),
            idle=True,
        )
        for limit in (5, 10, 30, 50, 100)
        for retry_after in (None, 1)
    ),
    Case("limit 30/s, 64 threads", ">= 0.90", partial(at_limit, limits=both(LIMIT), threads=64), idle=True),
    Case(
        "limits 10/s DBFS, 50/s Workspace",
        ">= 0.90",
        partial(at_limit, limits={"dbfs": 10, "workspace": 50}),
        idle=True,
    ),
    Case(
        "limits 30/s DBFS, 50/s Workspace (published)",
        ">= 0.90",
        partial(at_limit, limits={"dbfs": 30, "workspace": 50}),
        idle=True,
    ),
    Case("limit 30/s that drops to 10/s and comes back", ">= 0.90", limit_that_drops, idle=True),
    Case("limit 20 at the same time, 64 threads", ">= 0.90", in_flight_limit),
    Case("limit 30/s, a cluster of 8 slots given", ">= 0.90", partial(at_limit, limits=both(LIMIT), slots=8)),
    *(
        Case(
            f"limit 100/s, 200 ms, 8 threads and {slots} task slots",
            ">= 0.80",
            partial(at_limit, limits=both(100), threads=8, slots=slots, seconds=55, latency=0.2),
        )
        for slots in (8, 32)
    ),
    Case(
        "4 threads and 8 task slots, 100 ms, 60 users of 60 directories",
        ">= 3",
        partial(with_cluster, {"users": 60, "shape": "bench", "directories": 60}),
    ),
    Case("4 threads and 8 task slots, 100 ms, 59 small users and a giant one", ">= 3", partial(with_cluster, GIANT)),
    Case("12 small users, a cluster given", "<= 1.10", cluster_not_needed),
    Case("--help", "<= 1.30", partial(start_up, ["--help"]), runs=1),
    Case("to the first request", "<= 2.00", partial(start_up, ["user0@example.com"]), runs=1),
    Case("CPU beside databricks-sdk, 16 threads", ">= 1.50", beside_the_sdk),
    Case("--files, no latency, 16 threads", "<= 1.25", with_files),
    Case("memory, 100,000 users", "<= 1.00", partial(memory, 100_000, 1), runs=1),
    Case("memory, one tree of 1,000,000 directories", "<= 1.00", partial(memory, 1, 1_000_000, files=2), runs=1),
    Case("memory, 100 directories of 50,000 entries", "<= 1.00", partial(memory, 10, 10, files=50_000), runs=1),
    Case("checkpoint, user 100,000", "about 1", checkpoint),
]


# --- The table ------------------------------------------------------------------------------------------------------


def measure(case: Case, quick: bool) -> str:
    """The case's row."""
    runs = 1 if quick else case.runs
    try:
        with ThreadPoolExecutor(runs if case.idle else 1) as side_by_side:
            done = list(side_by_side.map(case.measure, [quick] * runs))
    except LookupError as reason:
        return table_row(case.name, f"left out: {reason}", *[""] * (len(COLUMNS) - 2))
    result = sorted(done, key=lambda one: one.ratio)[len(done) // 2]
    limited = f"{result.limited:,} ({result.limited / result.requests:.1%})" if result.limited else "0"
    per_cpu = f"{result.requests / result.cpu:,.0f}" if result.cpu else ""
    return table_row(case.name, f"{result.requests:,}", f"{result.seconds:.1f}", result.compared,
                     f"{result.ratio:.2f}", case.asked_for, limited, result.failed, per_cpu,
                     f"{result.memory / 1e6:,.0f} MB")  # fmt: skip


def table_row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every case once and small, several at a time: rough figures in two minutes",
    )
    parser.add_argument("--case", action="append", metavar="TEXT", help="only cases with this in their name")
    options = parser.parse_args()
    print(f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(table_row(*COLUMNS), table_row(*["---"] * len(COLUMNS)), sep="\n")
    cases = [case for case in CASES if not options.case or any(text in case.name for text in options.case)]
    with servers, ThreadPoolExecutor(QUICK_CASES if options.quick else 1) as side_by_side:
        for row in side_by_side.map(partial(measure, quick=options.quick), cases):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
