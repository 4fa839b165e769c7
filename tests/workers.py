"""Workers without Spark: processes that run what a query carries, for tests of what is done with it.

Like Spark's they get the function by value, may import nothing of this project, and sign their requests.
"""

import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.connect_server import worker_site

LOOP = """
import pickle, sys
read, write = sys.stdin.buffer, sys.stdout.buffer
while True:
    function, rows = pickle.load(read)
    pickle.dump([function(row) for row in rows], write)
    write.flush()
"""
Report = bytes | None


class Workers:
    """A session of Spark Connect, as far as the scanner uses one: range(), select() with one function, collect().

    `change` is done to the report of each batch, the probe's left as they are.
    """

    def __init__(self, folder: Path, slots: int = 4):
        command, environment = [sys.executable, "-c", LOOP], {"PYTHONPATH": str(worker_site(folder))}
        self.slots = slots
        self.idle: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        self.processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(slots)
        ]
        for process in self.processes:
            self.idle.put(process)
        self.change: Callable[[Report], Report] = lambda report: report
        self.probed = False  # what workers ask for from then on, batches do

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def addTag(self, tag: str) -> None:
        pass

    def interruptTag(self, tag: str) -> None:
        pass

    def range(self, start: int, end: int, *_: int) -> "Query":
        return Query(self, end - start)

    def run(self, function: Callable[[int], Report], rows: list[int]) -> list[Report]:
        """In one process, which has its own copy of the function."""
        process = self.idle.get()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(import_module("pyspark.cloudpickle").dumps((function, rows)))
            process.stdin.flush()
            reports: list[Report] = pickle.load(process.stdout)
        finally:  # or all tests after one that broke it would wait for it
            self.idle.put(process)
        return reports


Workers.__module__ = "pyspark.sql.connect.of_tests"  # by which it is told from a classic session


class Query:
    """What range() gives."""

    def __init__(self, workers: Workers, rows: int):
        self.workers, self.rows = workers, rows
        self.function: Callable[[int], Report] = lambda row: None

    def select(self, column: Any) -> "Query":
        self.function = column._expr._function._func
        return self

    def collect(self) -> list[tuple[Report]]:
        """One partition for a batch, one for each process for the probe."""
        if self.rows == 1:
            return [(self.workers.change(report),) for report in self.workers.run(self.function, [0])]
        self.workers.probed = False
        partitions = [[0, 1]] * self.workers.slots
        with ThreadPoolExecutor(len(partitions)) as threads:
            found = list(threads.map(partial(self.workers.run, self.function), partitions))
        self.workers.probed = True
        return [(report,) for reports in found for report in reports]
