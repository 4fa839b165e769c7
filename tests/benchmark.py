"""How fast the scanner is, and how large: python -m tests.benchmark [--quick] [--case TEXT]

Every case runs the commands as whole processes against the fake workspace, in a process of its own, and compares what
it took with a bound that comes from the same run: requests x latency / threads, the service's limit, or another run.
Prints a table: of several runs of a case, the one with the median ratio.

A ratio at a limit is the goodput as a share of the limit. Of task slots it is how many times as fast. Elsewhere it is
the time, or the size, beside the bound. tests/README.md has a table; `python -m tests.pace` has other kinds of limit.
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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from databricks_user_files_simple import FileSystemTotals, UserResult, open_checkpoint
from tests.connect_server import connect_server_of, why_not
from tests.fake import Counts, FakeDatabricks
from tests.helpers import ROOT, SCANNER

LATENCY, THREADS = 0.05, 16
BENCH_TREE = 40  # directories of each user at a limit
COLUMNS = ("case", "requests", "seconds", "compared with", "ratio", "asked for", "429s", "failed users",
           "requests per CPU-second", "peak memory")  # fmt: skip
servers = ExitStack()  # Spark Connect servers that run
Outcome = tuple["Finished", str, float]  # a scan, what it is compared with, and the ratio


class Server(NamedTuple):
    """A fake workspace in a process of its own."""

    users: list[str]
    environment: dict[str, str]
    pipe: Connection

    def counts(self) -> Counts:
        """Since it was asked last."""
        self.pipe.send(None)
        counts: Counts = self.pipe.recv()
        return counts


def serve(options: dict[str, Any], pipe: Connection) -> None:
    with FakeDatabricks(**options) as server:
        login = {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": server.settings.token}
        pipe.send((server.user_names, {**os.environ, **login, "DATABRICKS_CONFIG_FILE": os.devnull}))
        while True:
            pipe.recv()
            pipe.send(server.counts)
            server.counts_reset()


@contextmanager
def workspace(**options: Any) -> Iterator[Server]:
    """In a process that is killed at the end."""
    spawn = multiprocessing.get_context("spawn")
    pipe, other_end = spawn.Pipe()
    options = {"latency": LATENCY, "count_paths": False, **options}
    process = spawn.Process(target=serve, args=(options, other_end), daemon=True)
    process.start()
    try:
        users, environment = pipe.recv()
        yield Server(users, environment, pipe)
    finally:
        process.kill()
        process.join()


@dataclass
class Finished:
    """A scan that has ended, and what it has asked of the server; `failed` counts rows that are partial or error."""

    seconds: float
    memory: int  # bytes
    cpu: float = 0.0  # seconds
    failed: int = 0
    counts: Counts = field(default_factory=Counts)

    @property
    def listings(self) -> int:
        return sum(number for (api, _), number in self.counts.api_statuses.items() if api != "scim")

    @property
    def listing_seconds(self) -> float:
        """From the first listing to the last answer."""
        first = min(times[0] for api, times in self.counts.api_times.items() if api != "scim")
        return (self.counts.last_answer_at or first) - first

    def goodput(self, api: str) -> float:
        """Listings/s that were neither refused nor failed, from the API's first request to its last."""
        first, last = self.counts.api_times[api]
        return (self.counts.api_statuses[api, 200] + self.counts.api_statuses[api, 404]) / (last - first)


def scan(server: Server, *options: str, users: str = "users.txt") -> Finished:
    """The scanner over all users of the server, from a file, or named (`users` is empty then): without a checkpoint."""
    server.counts()
    with tempfile.TemporaryDirectory(prefix="inventory-benchmark-") as folder:
        Path(folder, "users.txt").write_text("\n".join(server.users), encoding="utf-8")
        who = ["--users-file", users] if users else server.users
        words = [sys.executable, str(ROOT / SCANNER), *who, "-o", "inventory.csv", "--quiet", *options]
        started = time.monotonic()
        with open(Path(folder, "console"), "w+b") as console:
            process = subprocess.Popen(words, cwd=folder, env=server.environment, stdout=console,
                                       stderr=subprocess.STDOUT)  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            console.seek(0)
            assert process.returncode in (0, 1), console.read().decode()
        seconds = time.monotonic() - started
        rows = Path(folder, "inventory.csv").read_text(encoding="utf-8").splitlines()
    failed = sum(",partial," in row or ",error," in row for row in rows)
    return Finished(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, failed, server.counts())


@cache
def spark_connect(slots: int) -> str:
    """The URL of a Spark Connect server on this machine, which runs until the end. Cases with one run one by one."""
    if reason := why_not():
        raise LookupError(reason)
    folder = servers.enter_context(tempfile.TemporaryDirectory())
    return servers.enter_context(connect_server_of(Path(folder), f"local[{slots}]")).remote


def latency(users: int, shape: str, quick: bool) -> Outcome:
    with workspace(users=users // (4 if quick else 1) or 1, shape=shape) as server:
        done = scan(server, "--threads", str(THREADS))
    bound = done.listings * LATENCY / THREADS
    return done, f"{bound:.1f} s: requests x latency / threads", done.listing_seconds / bound


def at_limit(
    limit: float, quick: bool, threads: int = THREADS, slots: int = 0, seconds: int = 40, rate: int = 0, **settings: Any
) -> Outcome:
    """Both APIs at a limit, or at --rate: the lower of the two goodputs, in its share of the limit."""
    seconds = 10 if quick else seconds
    users = max(10 if slots else 1, round(limit * seconds) // BENCH_TREE)
    options = [*(["--spark-remote", spark_connect(slots)] if slots else []), *(["--rate", str(rate)] if rate else [])]
    settings = {"directories": round(2 * limit * seconds) // users, "limit": None if rate else limit, **settings}
    with workspace(users=users, shape="bench", **settings) as server:
        done = scan(server, "--threads", str(threads), *options)
    return done, f"{limit:g}/s", min(done.goodput("dbfs"), done.goodput("workspace")) / limit


def with_cluster(users: int, quick: bool, **options: Any) -> Outcome:
    """4 threads and 8 task slots of a server that runs, in a new session; beside 4 threads that never pause."""
    remote = spark_connect(8)
    with workspace(users=users // (3 if quick else 1), latency=0.1, **options) as server:
        done = scan(server, "--threads", "4", "--spark-remote", remote)
    alone = done.listings * 0.1 / 4
    share = sum(done.counts.workers.values()) / done.listings
    return done, f"{alone:.0f} s: requests x latency / 4 ({share:.0%} by the cluster)", alone / done.listing_seconds


def cluster_not_needed(quick: bool) -> Outcome:
    """12 small users with a cluster given, beside the same without."""
    remote = spark_connect(8)
    with workspace(users=12, shape="small") as server:
        without = scan(server)
        done = scan(server, "--spark-remote", remote)
    told = f"{without.listing_seconds:.2f} s: without a cluster ({done.seconds - without.seconds:+.2f} s in all)"
    return done, told, done.listing_seconds / without.listing_seconds


def processor_time(quick: bool, files: bool) -> Outcome:
    """CPU-seconds of the same scan with and without --files; or with and without a checkpoint and its journal."""
    with workspace(users=100 if quick else 400, shape="bench", directories=BENCH_TREE, latency=0) as server:
        users, more = ("users.txt", ["--files", "files.csv"]) if files else ("", [])
        pairs = [(scan(server, users=users), scan(server, *more)) for _ in range(1 if quick else 3)]
    ratios = [done.cpu / without.cpu for without, done in pairs]
    return pairs[-1][1], f"{pairs[-1][0].cpu:.1f} CPU-seconds without", statistics.median(ratios)


def memory(users: int, directories: int, quick: bool, **tree: Any) -> Outcome:
    """The peak memory beside what it may be; with `quick` a fiftieth of the users, or of the directories."""
    if quick:
        users, directories = (users // 50, directories) if users > 100 else (users, directories // 50)
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
    with tempfile.TemporaryDirectory() as folder, open_checkpoint(Path(folder, "x"), header, resume=False) as saved:
        for number in range(total + 1000):
            result = UserResult(f"user{number}@example.com", "2026-01-01T00:00:00Z", totals, totals)
            before = time.perf_counter()
            saved.save(result)
            times.append(time.perf_counter() - before)
    early, late = statistics.median(times[1000:2000]), statistics.median(times[total:])
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Finished(time.monotonic() - began, size), f"{early * 1e6:.0f} microseconds: user 1,000", late / early


FAST = partial(at_limit, 100, threads=8, seconds=55, latency=0.2)
CASES: dict[str, tuple[str, Callable[[bool], Outcome]]] = {  # what is asked for, and how it is measured
    "many small users, 50 ms, 16 threads": ("<= 1.20", partial(latency, 200, "small")),
    "one giant user, 50 ms, 16 threads": ("<= 1.20", partial(latency, 1, "giant")),
    "limit 5/s": (">= 0.90", partial(at_limit, 5, seconds=120)),
    "limit 30/s, without Retry-After": (">= 0.90", partial(at_limit, 30)),
    "limit 30/s, with Retry-After": (">= 0.90", partial(at_limit, 30, retry_after=1)),
    "limit 100 in each second": (">= 0.85", partial(at_limit, 100, windows=True)),
    "--rate 10, 20 ms": ("about 1", partial(at_limit, 10, rate=10, latency=0.02)),
    "limit 30/s, a cluster of 8 slots given": (">= 0.90", partial(at_limit, 30, slots=8)),
    "limit 100/s, 200 ms, 8 threads and 8 task slots": (">= 0.80", partial(FAST, slots=8)),
    "limit 100/s, 200 ms, 8 threads and 32 task slots": (">= 0.80", partial(FAST, slots=32)),
    "4 threads and 8 task slots, 100 ms, 60 users of 60 directories":
        (">= 3", partial(with_cluster, 60, shape="bench", directories=60)),
    "4 threads and 8 task slots, 100 ms, 59 small users and a giant one":
        (">= 3", partial(with_cluster, 60, shape="small", shapes={7: "giant"})),
    "12 small users, a cluster given": ("<= 1.10", cluster_not_needed),
    "--files, no latency, 16 threads": ("<= 1.25", partial(processor_time, files=True)),
    "checkpoint and journal, no latency, 16 threads": ("<= 1.03", partial(processor_time, files=False)),
    "checkpoint, user 100,000": ("about 1", checkpoint),
    "memory, 100,000 users": ("<= 1.00", partial(memory, 100_000, 1)),
    "memory, one tree of 1,000,000 directories": ("<= 1.00", partial(memory, 1, 1_000_000, files_per_directory=2)),
}  # fmt: skip


def measure(name: str, quick: bool) -> str:
    """The row of a case; those that wait for a limit run side by side."""
    asked_for, run = CASES[name]
    runs = 1 if quick or "memory" in name else 3
    try:
        with ThreadPoolExecutor(runs if "limit" in name and "slots" not in name else 1) as side_by_side:
            outcomes = list(side_by_side.map(run, [quick] * runs))
    except LookupError as reason:
        return table_row(name, f"left out: {reason}", *[""] * (len(COLUMNS) - 2))
    done, compared, ratio = sorted(outcomes, key=lambda outcome: outcome[2])[len(outcomes) // 2]
    requests, limited = done.counts.total_requests, done.counts.statuses[429]
    seconds = done.listing_seconds if requests else done.seconds
    shares = f"{limited:,} ({limited / requests:.1%})" if limited else "0"
    per_cpu = f"{requests / done.cpu:,.0f}" if requests else ""
    return table_row(name, f"{requests:,}", f"{seconds:.1f}", compared, f"{ratio:.2f}", asked_for, shares,
                     done.failed, per_cpu, f"{done.memory / 1e6:,.0f} MB")  # fmt: skip


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description="How fast the scanner is.")
    parser.add_argument("--quick", action="store_true", help="every case once and small: rough figures")
    parser.add_argument("--case", action="append", metavar="TEXT", help="only cases with this in their name")
    options = parser.parse_args()
    print(f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(table_row(*COLUMNS), table_row(*["---"] * len(COLUMNS)), sep="\n")
    with servers:
        for name in CASES:
            if not options.case or any(text in name for text in options.case):
                print(measure(name, options.quick), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
