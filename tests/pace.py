"""How near to a limit the crawler stays, whatever the limit's kind: python -m tests.pace

The real crawler with its pacers, in virtual time: in place of its threads there is a service that answers after a
latency, and moves the clock on to the next answer; so there is in place of a cluster's workers. Prints a table: of each
kind of limit the case with the least goodput (a share of what limit and hands let through), the most 429s (a share of
the requests), the outages that were announced, of which none is one, and the users that failed.
"""

from __future__ import annotations

import heapq
import queue
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

from databricks_user_files_simple import Cluster, Crawler, Home, Journal, Listing, Tally, open_checkpoint
from databricks_user_list import DatabricksClient, DatabricksConfig, DatabricksError, InventoryError

HANDS = 16
LATENCIES = (0.02, 0.1, 0.4, 1.5)  # seconds
LIMITS = (5, 14, 30, 50, 130, 300)  # requests/s
REFUSAL_SECONDS = 0.02  # a 429 comes soon
HANDLING_SECONDS = 0.0002  # of the gathering thread, for each departure and each answer
QUERY_SECONDS = 0.1  # of a batch, beyond its requests
TREE = 10  # directories of each user
SECONDS, FEWEST_REQUESTS = 120, 2000  # of a case
Limits = dict[str, "Bucket | Window"]  # by file system


class Bucket:
    """Holds so many seconds' worth; the rate may change from second to second.

    As all kinds of limit: admits() is asked with times that never go back, and `most` succeed in so many seconds.
    """

    def __init__(self, rate: Callable[[float], float], holds: float = 1.0):
        self.rate = rate
        self.size = self.level = rate(0.0) * holds
        self.looked_at = 0.0

    def admits(self, now: float) -> bool:
        self.level = min(self.level + self.rate(now) * (now - self.looked_at), self.size)
        self.looked_at = now
        is_admitted = self.level >= 1
        self.level -= is_admitted
        return is_admitted

    def most(self, seconds: float) -> float:
        return self.size + sum(self.rate(second) for second in range(int(seconds))) + self.rate(seconds) * (seconds % 1)


class Window:
    """So many seconds' worth in each window of time; a `sliding` one has the last seconds in it, at any time."""

    def __init__(self, rate: float, seconds: float, sliding: bool = False):
        self.holds, self.seconds, self.sliding = rate * seconds, seconds, sliding
        self.admitted: deque[float] = deque()

    def admits(self, now: float) -> bool:
        begin = now - self.seconds if self.sliding else now // self.seconds * self.seconds
        while self.admitted and self.admitted[0] < begin:
            self.admitted.popleft()
        is_admitted = len(self.admitted) < self.holds
        self.admitted += [now] * is_admitted
        return is_admitted

    def most(self, seconds: float) -> float:
        return self.holds * (seconds // self.seconds + 1)


def stray(limit: Bucket | Window) -> Bucket | Window:
    """One 429 in a hundred has no reason, as where each node of the service counts for itself; else as `limit`."""
    random, admits = Random(2), limit.admits
    limit.admits = lambda now: random.random() > 0.01 and admits(now)  # type: ignore[method-assign]
    return limit


class Service:
    """In place of the crawler's two queues: takes what is to be listed, and hands over the answers as time goes by.

    What happens meanwhile are generators, which go on at the times that they yield.
    """

    def __init__(self, limits: Limits, latency: float, users: int, journal: Journal, hands: int, slots: int,
                 rate: float | None, of_workers: Limits | None):  # fmt: skip
        self.limits, self.of_workers, self.latency, self.random = limits, of_workers or limits, latency, Random(1)
        self.now = self.succeeded_at = 0.0
        self.was_outage = False
        self.waiting: list[tuple[float, int, Iterator[float]]] = []
        self.landed: deque[Callable[[], None]] = deque()
        self.counts: Counter[str] = Counter()
        self.each_second: Counter[int] = Counter()  # requests
        config = DatabricksConfig("https://example.com", "token", "")
        client = DatabricksClient(config, clock=lambda: self.now, sleep=self.sleep, jitter=self.random.random)
        homes = {f"user{n}": {name: Home.listed(f"user{n}") for name in limits} for n in range(users)}
        self.slots, self.most_out, self.cluster = slots, 0, Cluster("no session")
        self.cluster.beside = self.beside  # type: ignore[method-assign]
        tally = Tally(homes, client.statistics, True, journal)
        crawler: Any = Crawler(client, tally, hands, self.cluster if slots else None, rate)
        crawler.work = crawler.answers = self
        crawler.started = hands
        self.crawler = crawler

    def put(self, task: tuple[str, str, Any] | None) -> None:
        if task:
            self.now += HANDLING_SECONDS
            self.go_on(self.own_request(*task))

    def own_request(self, file_system: str, path: str, take: Any) -> Iterator[float]:
        listing = yield from self.request(self.limits[file_system], path)
        answer = listing or DatabricksError("rate limit", "too many requests", path, 429)
        self.landed.append(partial(self.crawler.landed, take, answer))

    def request(self, limit: Bucket | Window, path: str) -> Generator[float, None, Listing | None]:
        """Returns None for a 429."""
        sent_at = self.now
        self.counts["requests"] += 1
        self.each_second[int(sent_at)] += 1
        yield sent_at + REFUSAL_SECONDS / 2
        is_admitted = limit.admits(self.now)
        self.counts["listed"] += is_admitted
        yield sent_at + (self.latency * self.random.uniform(0.7, 1.3) if is_admitted else REFUSAL_SECONDS)
        self.succeeded_at = self.now if is_admitted else self.succeeded_at
        names = range(TREE - 1) if path.count("/") == 2 else ()
        return Listing(directories=[f"{path}/{name}" for name in names]) if is_admitted else None

    def beside(self, crawler: Crawler, work: Any, take: Callable[[Any], None]) -> None:
        """What the cluster has a thread do: it starts, or a worker of several threads asks for a batch, as fetch()."""
        if work.func == self.cluster.start:
            self.landed.append(partial(take, self.slots))
            return
        batch = work.args[1]
        began, todo = self.now + QUERY_SECONDS * self.random.uniform(0.5, 1.5), iter(enumerate(batch.timed))
        outcomes: list[Any] = [None] * len(batch.timed)
        left, stopped = list(range(self.cluster.threads)), set()

        def thread() -> Iterator[float]:
            for index, (offset, directory) in todo:
                name = directory.file_system
                yield max(began + (0.0 if name in stopped else offset), self.now)
                if self.now < began + batch.seconds and name not in stopped:
                    listing = yield from self.request(self.of_workers[name], directory.path)
                    outcomes[index] = listing or (429, "")
                    stopped.update([] if listing else [name])
            left.pop()
            if not left:
                self.landed.append(partial(take, ("a worker", outcomes)))

        for one in [thread() for _ in left]:
            self.go_on(one)

    def go_on(self, generator: Iterator[float]) -> None:
        if (at := next(generator, None)) is not None:
            self.counts["waits"] += 1
            heapq.heappush(self.waiting, (at, self.counts["waits"], generator))

    def empty(self) -> bool:
        return not self.landed

    def get(self, timeout: float) -> Callable[[], None]:
        until = self.now + timeout
        while not self.landed:
            if not self.waiting or self.waiting[0][0] > until:
                self.sleep(max(until - self.now, 0.0))
                raise queue.Empty
            at, _, generator = heapq.heappop(self.waiting)
            self.now = max(self.now, at)
            self.go_on(generator)
        self.now += HANDLING_SECONDS
        return self.landed.popleft()

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.random.random() * 0.001  # nobody wakes up in time

    def tick(self) -> None:
        is_outage = self.crawler.pacers["dbfs"].is_outage
        self.counts["outages"] += is_outage and not self.was_outage
        self.was_outage = is_outage
        self.most_out = max(self.most_out, len(self.cluster.out))


class Outcome(NamedTuple):
    goodput: float
    limited: float
    outages: int
    failed: int
    seconds: float
    most_out: int  # batches
    most_in_10_s: int  # requests


def simulate(limits: Limits, latency: float, requests: int, hands: int = HANDS, slots: int = 0,
             rate: float | None = None, of_workers: Limits | None = None) -> Outcome:  # fmt: skip
    """One scan of as many directories of each file system; workers may have limits of their own."""
    failed = users = requests // TREE
    with open_checkpoint(None, {}, resume=False) as nowhere:
        service = Service(limits, latency, users, nowhere.journal, hands, slots, rate, of_workers)
        try:
            for result in service.crawler.run(service.tick):
                failed -= result.status in ("success", "empty")
        except InventoryError as error:
            print(error)
    by_hands = float("inf") if slots else hands * service.succeeded_at / latency
    most = min(sum(limit.most(service.succeeded_at) for limit in limits.values()), by_hands)
    asked, listed, outages = (service.counts[name] for name in ("requests", "listed", "outages"))
    most_in_10_s = max(sum(service.each_second[second + k] for k in range(10)) for second in list(service.each_second))
    found = service.succeeded_at, service.most_out, most_in_10_s
    return Outcome(listed / most, (asked - listed) / asked, outages, failed, *found)


def steps(*rates: float) -> Callable[[float], float]:
    """These rates in turn, each for a minute."""
    return lambda now: rates[int(now // 60) % len(rates)]


KINDS: dict[str, Callable[[float], Bucket | Window]] = {
    "bucket of 1 s": lambda rate: Bucket(steps(rate)),
    "bucket of 10 s": lambda rate: Bucket(steps(rate), 10),
    "window of 1 s": lambda rate: Window(rate, 1),
    "window of 10 s": lambda rate: Window(rate, 10),
    "sliding window of 1 s": lambda rate: Window(rate, 1, sliding=True),
    "sliding window of 10 s": lambda rate: Window(rate, 10, sliding=True),
    "bucket, and 1% of stray 429s": lambda rate: stray(Bucket(steps(rate))),
    "window of 1 s, and 1% of stray 429s": lambda rate: stray(Window(rate, 1)),
    "bucket, to a third and back": lambda rate: Bucket(steps(rate, rate / 3)),
    "bucket, and a rival": lambda rate: Bucket(steps(0.7 * rate, 0.3 * rate, 0.5 * rate)),
}


def outcomes(kind: str, limits: Sequence[float] = LIMITS, latencies: Sequence[float] = LATENCIES) -> dict[str, Outcome]:
    """By limit and latency, of those cases in which the hands reach the limit."""
    cases = [(rate, latency) for rate in limits for latency in latencies if HANDS / latency > 1.02 * rate]
    return {
        f"{rate:g}/s, {latency:g} s": simulate(
            {"dbfs": KINDS[kind](rate)}, latency, max(round(rate * SECONDS), FEWEST_REQUESTS)
        )
        for rate, latency in cases
    }


def main() -> int:
    print("| kind of limit | cases | least goodput | at | most 429s | outages | failed users |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        found = outcomes(kind)
        worst = min(found, key=lambda case: found[case].goodput)
        _, limited, outages, failed, *_ = (max(column) for column in zip(*found.values(), strict=True))
        goodput = f"{found[worst].goodput:.3f} | {worst}"
        print(f"| {kind} | {len(found)} | {goodput} | {limited:.1%} | {outages} | {failed} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
