"""How fast the scanner is, and how large: python -m tests.benchmark [--quick] [--case TEXT]

Every case runs the commands as whole processes against the fake workspace, in a process of its own, and compares what
it took with a bound that comes from the same run: requests x latency / threads, the service's limit, or another
program. Prints a table: of several runs of a case, the one with the median ratio.

A ratio at a limit is the goodput as a share of the limit. Of task slots and of CPU it is how many times as fast.
Elsewhere it is the time, or the size, beside the bound. tests/README.md has a table.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from databricks_user_files_simple import FileSystemTotals, UserResult, open_checkpoint
from tests.connect_server import connect_server_of, why_not
from tests.fake import Counts, FakeDatabricks
from tests.helpers import ROOT, SCANNER

LATENCY = 0.05  # seconds
THREADS = 16
LIMIT = 30  # requests/s
BENCH_TREE = 40  # directories of each user at a limit
QUICK_CASES = 5  # at a time, with --quick
COLUMNS = ("case", "requests", "seconds", "compared with", "ratio", "asked for", "429s", "failed users",
           "requests per CPU-second", "peak memory")  # fmt: skip
servers, one_at_a_time = ExitStack(), threading.Lock()  # Spark Connect servers that run, and their start
remotes: dict[int, str] = {}  # their URLs, by task slots


# --- The fake workspace, and processes ------------------------------------------------------------------------------


class Server:
    """A fake workspace in a process of its own."""

    def __init__(self, **options: Any):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other_end = spawn.Pipe()
        self.lock = threading.Lock()
        self.process = spawn.Process(target=serve, args=(options, other_end), daemon=True)
        self.process.start()
        self.users: list[str]
        self.environment: dict[str, str]
        self.users, self.environment = self.pipe.recv()

    def counts(self) -> Counts:
        counts: Counts = self.ask("counts")
        return counts

    def ask(self, what: str, **settings: Any) -> Any:
        with self.lock:
            self.pipe.send((what, settings))
            return self.pipe.recv()


def serve(options: dict[str, Any], pipe: Connection) -> None:
    """The process: until it is killed."""
    with FakeDatabricks(**options) as server:
        login = {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": server.settings.token,
                 "DATABRICKS_CONFIG_FILE": os.devnull}  # fmt: skip
        pipe.send((server.user_names, {**os.environ, **login}))
        answers = {"counts": lambda: server.counts, "counts_reset": server.counts_reset, "change": server.change}
        while True:
            what, settings = pipe.recv()
            pipe.send(answers[what](**settings))


@contextmanager
def workspace(**options: Any) -> Iterator[Server]:
    server = Server(**{"latency": LATENCY, "count_paths": False, **options})
    try:
        yield server
    finally:
        server.process.kill()
        server.process.join()
        server.process.close()


@dataclass
class Finished:
    """A process that has ended, and what it has asked of the server; `failed` counts rows that are partial or error."""

    seconds: float
    memory: int  # bytes
    cpu: float = 0.0  # seconds
    failed: int = 0
    started: float = 0.0  # time.monotonic(), as the times in the server's counts
    counts: Counts = field(default_factory=Counts)

    @property
    def listings(self) -> int:
        return sum(number for (api, _), number in self.counts.api_statuses.items() if api != "scim")

    @property
    def listing_seconds(self) -> float:
        """From the first listing to the last answer."""
        first = min(times[0] for api, times in self.counts.api_times.items() if api != "scim")
        return (self.counts.last_answer_at or first) - first

    def answered(self, api: str) -> int:
        """Listings that were neither refused nor failed."""
        return self.counts.api_statuses[api, 200] + self.counts.api_statuses[api, 404]

    def api_seconds(self, api: str) -> float:
        """From the API's first request to its last."""
        first, last = self.counts.api_times[api]
        return last - first


Outcome = tuple[Finished, str, float]  # what it is compared with, and the ratio


def run(words: list[str], folder: str, environment: dict[str, str], codes: tuple[int, ...] = (0,)) -> Finished:
    """A Python process."""
    started = time.monotonic()
    with open(Path(folder) / "console", "w+b") as console:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=console,
                                   stderr=subprocess.STDOUT)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        console.seek(0)
        assert process.returncode in codes, console.read().decode()
    seconds = time.monotonic() - started
    rows = (Path(folder) / "inventory.csv").read_text(encoding="utf-8").splitlines() if "-o" in words else []
    failed = sum(",partial," in row or ",error," in row for row in rows)
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(seconds, usage.ru_maxrss * unit, usage.ru_utime + usage.ru_stime, failed, started)


def scan(server: Server, *options: str) -> Finished:
    """The scanner over all users of the server."""
    server.ask("counts_reset")
    with tempfile.TemporaryDirectory(prefix="inventory-benchmark-") as folder:
        (Path(folder) / "users.txt").write_text("\n".join(server.users), encoding="utf-8")
        words = [str(ROOT / SCANNER), "--users-file", "users.txt", "-o", "inventory.csv", "--quiet", *options]
        done = run(words, folder, server.environment, codes=(0, 1))
    done.counts = server.counts()
    return done


# --- Latency --------------------------------------------------------------------------------------------------------


def latency(users: int, shape: str, quick: bool) -> Outcome:
    with workspace(users=users // (4 if quick else 1) or 1, shape=shape) as server:
        done = scan(server, "--threads", str(THREADS))
    bound = done.listings * LATENCY / THREADS
    return done, f"{bound:.1f} s: requests x latency / threads", done.listing_seconds / bound


def with_cluster(users: int, quick: bool, **options: Any) -> Outcome:
    """4 threads and 8 task slots of a server that runs, in a new session; beside 4 threads that never pause."""
    remote = spark_connect(8)
    with workspace(users=users // (3 if quick else 1), latency=0.1, **options) as server:
        done = scan(server, "--threads", "4", "--spark-remote", remote)
    alone = done.listings * 0.1 / 4
    return done, f"{alone:.0f} s: requests x latency / 4", alone / done.listing_seconds


def cluster_not_needed(quick: bool) -> Outcome:
    """12 small users with a cluster given, beside the same without."""
    remote = spark_connect(8)
    with workspace(users=12, shape="small") as server:
        without = scan(server).listing_seconds
        done = scan(server, "--spark-remote", remote)
    return done, f"{without:.2f} s: without a cluster", done.listing_seconds / without


# --- Limits ---------------------------------------------------------------------------------------------------------


def at_limit(
    dbfs: float,
    workspace_list: float,
    quick: bool,
    threads: int = THREADS,
    slots: int = 0,
    seconds: int = 40,
    **settings: Any,
) -> Outcome:
    """Each API at its own limit for about 40 s: the lower of the two goodputs, in its share of the limit."""
    seconds = 10 if quick else seconds
    limits = {"dbfs": dbfs, "workspace": workspace_list}
    directories = sum(round(limit * seconds) for limit in limits.values())
    users = max(10 if slots else 1, directories // (2 * BENCH_TREE))
    remote = ["--spark-remote", spark_connect(slots)] if slots else []
    settings = {"shape": "bench", "directories": directories // users, "limits": limits, **settings}
    with workspace(users=users, **settings) as server:
        done = scan(server, "--threads", str(threads), *remote)
    shares = [done.answered(api) / done.api_seconds(api) / limit for api, limit in limits.items()]
    return done, " and ".join(f"{limit:g}/s" for limit in dict.fromkeys(limits.values())), min(shares)


def limit_that_drops(quick: bool) -> Outcome:
    """To a third after a while, and back again after as long: compared with what the limits let through."""
    phase = 5 if quick else 20
    with workspace(users=2 * phase, shape="bench", limit=LIMIT, directories=BENCH_TREE) as server:
        changes = [(phase, LIMIT / 3), (2 * phase, LIMIT)]
        timers = [threading.Timer(at, server.ask, ["change"], {"limit": limit}) for at, limit in changes]
        for timer in timers:
            timer.start()
        done = scan(server, "--threads", str(THREADS))
        for timer in timers:
            timer.cancel()
    ratios = []
    for api in ("dbfs", "workspace"):
        seconds = done.api_seconds(api)
        dropped = max(min(phase, seconds - phase), 0)
        ratios.append(done.answered(api) / (LIMIT * (seconds - dropped) + LIMIT / 3 * dropped))
    return done, "30/s, then 10/s, then 30/s", min(ratios)


def in_flight_limit(quick: bool) -> Outcome:
    """A limit on requests at the same time: compared with as many being always on their way."""
    with workspace(users=100 if quick else 400, shape="small", in_flight_limit=20) as server:
        done = scan(server, "--threads", "64")
    bound = (done.counts.statuses[200] + done.counts.statuses[404]) * LATENCY / 20
    return done, f"{bound:.1f} s: 20 at the same time", bound / done.listing_seconds


# --- Start, CPU, memory, checkpoint ---------------------------------------------------------------------------------


def start_up(word: str, quick: bool) -> Outcome:
    """The command beside the least that any such command has to do; the two in turn."""
    least, ours = [], []
    with workspace(users=1, shape="none", latency=0) as server, tempfile.TemporaryDirectory() as folder:
        for _ in range(5 if quick else 15):
            least.append(run(["-c", "import requests, argparse"], folder, server.environment).seconds)
            server.ask("counts_reset")
            done = run([str(ROOT / SCANNER), word], folder, server.environment)
            first = server.counts().first_request_at
            ours.append(first - done.started if first else done.seconds)
    compared = f"{statistics.median(least):.2f} s: python -c 'import requests, argparse'"
    ratio = statistics.median(one / other for one, other in zip(ours, least, strict=True))
    return Finished(statistics.median(ours), done.memory), compared, ratio


def beside_the_sdk(quick: bool) -> Outcome:
    """Requests per CPU-second of whole processes: the same trees, the same threads, hardly any latency."""
    if find_spec("databricks.sdk") is None:
        raise LookupError("databricks-sdk is not installed")
    with workspace(users=100 if quick else 400, shape="bench", directories=BENCH_TREE, latency=0.01) as server:
        done = scan(server, "--threads", str(THREADS))
        server.ask("counts_reset")
        with tempfile.TemporaryDirectory() as folder:
            code = f"from tests.benchmark import walk_with_sdk; walk_with_sdk({server.users!r})"
            (Path(folder) / "walk.py").write_text(code, encoding="utf-8")
            walk = run(["walk.py"], folder, {**server.environment, "PYTHONPATH": str(ROOT)})
        theirs = server.counts().total_requests / walk.cpu
    ratio = done.counts.total_requests / done.cpu / theirs
    return done, f"{theirs:.0f} per CPU-second: databricks-sdk", ratio


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
                            frontier.append(entry.path or "")
                        else:
                            files, size = files + 1, size + (getattr(entry, "file_size", 0) or 0)
                except NotFound:
                    pass
        return files, size

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(walk, users))


def with_files(quick: bool) -> Outcome:
    """CPU-seconds of the same scan with and without --files."""
    with workspace(users=100 if quick else 400, shape="bench", directories=BENCH_TREE, latency=0) as server:
        without = scan(server)
        done = scan(server, "--files", "files.csv")
    return done, f"{without.cpu:.1f} CPU-seconds without", done.cpu / without.cpu


def memory(users: int, directories: int, quick: bool, **tree: Any) -> Outcome:
    """The peak memory beside 300 MB; with `quick` a fiftieth of the users, or of the directories."""
    if quick:
        users, directories = (users // 50, directories) if users > 100 else (users, directories // 50 or 1)
    tree = {"shape": "bench", "directories": directories, "file_systems": ("workspace",), **tree}
    with workspace(users=users, latency=0, **tree) as server:
        done = scan(server, "--workspace-only")
    return done, "300 MB", done.memory / 300e6


def checkpoint(quick: bool) -> Outcome:
    """Saving a user, late in a checkpoint and early: medians over 1,000 users each, from the same run."""
    total, times = 20_000 if quick else 100_000, []
    totals = FileSystemTotals(100, 1_000_000, 10, {"FILE": 100, "DIRECTORY": 9})
    header = {"workspace_url": "https://x", "options": {"file_systems": []}}
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_checkpoint(Path(folder) / "checkpoint", header, resume=False) as saved,
    ):
        for number in range(total + 1000):
            result = UserResult(f"user{number}@example.com", "2026-01-01T00:00:00Z", totals, totals)
            before = time.perf_counter()
            saved.save(result)
            times.append(time.perf_counter() - before)
    early, late = statistics.median(times[1000:2000]), statistics.median(times[total:])
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Finished(time.monotonic() - began, size), f"{early * 1e6:.0f} microseconds: user 1,000", late / early


def spark_connect(slots: int) -> str:
    """The URL of a Spark Connect server on this machine, which runs until the end."""
    if reason := why_not():
        raise LookupError(reason)
    with one_at_a_time:
        if slots not in remotes:
            folder = servers.enter_context(tempfile.TemporaryDirectory())
            remotes[slots] = servers.enter_context(connect_server_of(Path(folder), f"local[{slots}]")).remote
        return remotes[slots]


# --- The cases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    asked_for: str
    measure: Callable[[bool], Outcome]  # is told whether to be quick
    runs: int = 3
    idle: bool = False  # waits most of the time, so that its runs may go side by side


def limit_case(name: str, measure: Callable[[bool], Outcome]) -> Case:
    return Case(name, ">= 0.90", measure, idle=True)


FLAT = partial(with_cluster, 60, shape="bench", directories=60)
GIANT = partial(with_cluster, 60, shape="small", shapes={7: "giant"})
FAST = partial(at_limit, 100, 100, threads=8, seconds=55, latency=0.2)
CASES = [
    Case("many small users, 50 ms, 16 threads", "<= 1.20", partial(latency, 200, "small")),
    Case("one giant user, 50 ms, 16 threads", "<= 1.20", partial(latency, 1, "giant")),
    *(
        limit_case(f"limit {limit}/s, {words} Retry-After", partial(at_limit, limit, limit, retry_after=retry_after))
        for limit in (5, 10, 30, 50, 100)
        for words, retry_after in (("without", None), ("with", 1))
    ),
    limit_case("limit 30/s, 64 threads", partial(at_limit, LIMIT, LIMIT, threads=64)),
    limit_case("limits 10/s DBFS, 50/s Workspace", partial(at_limit, 10, 50)),
    limit_case("limits 30/s DBFS, 50/s Workspace (published)", partial(at_limit, 30, 50)),
    limit_case("limit 30/s that drops to 10/s and comes back", limit_that_drops),
    Case("limit 20 at the same time, 64 threads", ">= 0.90", in_flight_limit),
    Case("limit 30/s, a cluster of 8 slots given", ">= 0.90", partial(at_limit, LIMIT, LIMIT, slots=8)),
    Case("limit 100/s, 200 ms, 8 threads and 8 task slots", ">= 0.80", partial(FAST, slots=8)),
    Case("limit 100/s, 200 ms, 8 threads and 32 task slots", ">= 0.80", partial(FAST, slots=32)),
    Case("4 threads and 8 task slots, 100 ms, 60 users of 60 directories", ">= 3", FLAT),
    Case("4 threads and 8 task slots, 100 ms, 59 small users and a giant one", ">= 3", GIANT),
    Case("12 small users, a cluster given", "<= 1.10", cluster_not_needed),
    Case("--help", "<= 1.30", partial(start_up, "--help"), runs=1),
    Case("to the first request", "<= 2.00", partial(start_up, "user0@example.com"), runs=1),
    Case("CPU beside databricks-sdk, 16 threads", ">= 1.50", beside_the_sdk),
    Case("--files, no latency, 16 threads", "<= 1.25", with_files),
    Case("memory, 100,000 users", "<= 1.00", partial(memory, 100_000, 1), runs=1),
    Case("memory, one tree of 1,000,000 directories", "<= 1.00",
         partial(memory, 1, 1_000_000, files_per_directory=2), runs=1),
    Case("memory, 100 directories of 50,000 entries", "<= 1.00",
         partial(memory, 10, 10, files_per_directory=50_000), runs=1),
    Case("checkpoint, user 100,000", "about 1", checkpoint),
]  # fmt: skip


def measure(case: Case, quick: bool) -> str:
    """The case's row."""
    runs = 1 if quick else case.runs
    try:
        with ThreadPoolExecutor(runs if case.idle else 1) as side_by_side:
            outcomes = list(side_by_side.map(case.measure, [quick] * runs))
    except LookupError as reason:
        return table_row(case.name, f"left out: {reason}", *[""] * (len(COLUMNS) - 2))
    done, compared, ratio = sorted(outcomes, key=lambda outcome: outcome[2])[len(outcomes) // 2]
    requests, limited = done.counts.total_requests, done.counts.statuses[429]
    seconds = done.listing_seconds if requests else done.seconds
    shares = f"{limited:,} ({limited / requests:.1%})" if limited else "0"
    per_cpu = f"{requests / done.cpu:,.0f}" if requests else ""
    return table_row(case.name, f"{requests:,}", f"{seconds:.1f}", compared, f"{ratio:.2f}", case.asked_for, shares,
                     done.failed, per_cpu, f"{done.memory / 1e6:,.0f} MB")  # fmt: skip


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description="How fast the scanner is.")
    parser.add_argument("--quick", action="store_true",
                        help="every case once and small, several at a time: rough figures in two minutes")  # fmt: skip
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
