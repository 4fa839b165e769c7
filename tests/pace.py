"""How near to a limit the crawler stays, whatever the limit's kind: python -m tests.pace

The real crawler with its pacers, in virtual time: in place of its threads there is a service that answers after a
latency, and moves the clock on to the next answer. Prints a table: of each kind of limit the case with the least
goodput (a share of what limit and hands let through), the most 429s (a share of the requests), the outages that were
announced, of which none is one, and the users that failed.
"""

from __future__ import annotations

import heapq
import queue
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

from databricks_user_files_simple import Crawler, Home, Journal, Listing, Tally, open_checkpoint
from databricks_user_list import DatabricksClient, DatabricksConfig, DatabricksError, InventoryError

HANDS = 16
LATENCIES = (0.02, 0.1, 0.4, 1.5)  # seconds
LIMITS = (5, 14, 30, 50, 130, 300)  # requests/s
REFUSAL_SECONDS = 0.02  # a 429 comes soon
HANDLING_SECONDS = 0.0002  # of the gathering thread, for each departure and each answer
TREE = 10  # directories of each user
SECONDS, FEWEST_REQUESTS = 120, 2000  # of a case


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
    """In place of the crawler's two queues: takes what is to be listed, and hands over the answers as time goes by."""

    def __init__(self, limit: Bucket | Window, latency: float, users: int, seed: int, journal: Journal):
        self.limit, self.latency, self.random = limit, latency, Random(seed)
        self.now = self.succeeded_at = 0.0
        self.was_outage = False
        self.flying: list[tuple[float, int, Callable[[], None]]] = []
        self.counts: Counter[str] = Counter()
        config = DatabricksConfig("https://example.com", "token", "")
        client = DatabricksClient(config, clock=lambda: self.now, sleep=self.sleep, jitter=self.random.random)
        homes = {f"user{number}": {"dbfs": Home.listed(f"user{number}")} for number in range(users)}
        crawler: Any = Crawler(client, Tally(homes, client.statistics, True, journal), HANDS, None, None)
        crawler.work = crawler.answers = self
        crawler.started = HANDS
        self.crawler = crawler

    def put(self, task: tuple[str, str, Any] | None) -> None:
        if task is None:
            return
        _, path, take = task
        self.now += HANDLING_SECONDS
        self.counts["requests"] += 1
        answer: Listing | DatabricksError = DatabricksError("rate limit", "too many requests", path, 429)
        lands_at = self.now + REFUSAL_SECONDS
        if self.limit.admits(self.now + REFUSAL_SECONDS / 2):
            self.counts["listed"] += 1
            names = range(TREE - 1) if path.count("/") == 2 else ()
            answer = Listing(directories=[f"{path}/{name}" for name in names])
            lands_at = self.succeeded_at = self.now + self.latency * self.random.uniform(0.7, 1.3)
        landed: Callable[[], None] = partial(self.crawler.landed, take, answer)
        heapq.heappush(self.flying, (lands_at, self.counts["requests"], landed))

    def get(self, timeout: float) -> Callable[[], None]:
        if not self.flying or self.flying[0][0] > self.now + timeout:
            self.sleep(timeout)
            raise queue.Empty
        lands_at, _, landed = heapq.heappop(self.flying)
        self.now = max(self.now, lands_at) + HANDLING_SECONDS
        return landed

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.random.random() * 0.001  # nobody wakes up in time

    def tick(self) -> None:
        is_outage = self.crawler.pacers["dbfs"].is_outage
        self.counts["outages"] += is_outage and not self.was_outage
        self.was_outage = is_outage


class Outcome(NamedTuple):
    goodput: float
    limited: float
    outages: int
    failed: int


def simulate(limit: Bucket | Window, latency: float, requests: int, seed: int = 1) -> Outcome:
    """One scan of as many directories."""
    failed = users = requests // TREE
    with open_checkpoint(None, {}, resume=False) as nowhere:
        service = Service(limit, latency, users, seed, nowhere.journal)
        try:
            for result in service.crawler.run(service.tick):
                failed -= result.status in ("success", "empty")
        except InventoryError as error:
            print(error)
    most = min(limit.most(service.succeeded_at), HANDS * service.succeeded_at / latency)
    asked, listed, outages = (service.counts[name] for name in ("requests", "listed", "outages"))
    return Outcome(listed / most, (asked - listed) / asked, outages, failed)


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
        f"{rate:g}/s, {latency:g} s": simulate(KINDS[kind](rate), latency, max(round(rate * SECONDS), FEWEST_REQUESTS))
        for rate, latency in cases
    }


def main() -> int:
    print("| kind of limit | cases | least goodput | at | most 429s | outages | failed users |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        found = outcomes(kind)
        worst = min(found, key=lambda case: found[case].goodput)
        _, limited, outages, failed = (max(column) for column in zip(*found.values(), strict=True))
        goodput = f"{found[worst].goodput:.3f} | {worst}"
        print(f"| {kind} | {len(found)} | {goodput} | {limited:.1%} | {outages} | {failed} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
