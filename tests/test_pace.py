"""The pace near limits of several kinds, in virtual time: python -m tests.pace has them all."""

import pytest

from tests.pace import Bucket, outcomes, simulate, steps


@pytest.mark.parametrize(("kind", "goodput"), [
    ("bucket of 1 s", 0.95), ("bucket of 10 s", 0.95), ("window of 1 s", 0.85), ("sliding window of 1 s", 0.85),
    ("bucket, and 1% of stray 429s", 0.85), ("window of 1 s, and 1% of stray 429s", 0.85),
    ("bucket, to a third and back", 0.85),
])  # fmt: skip
def test_the_goodput_is_near_the_limit_whatever_its_kind(kind, goodput):
    for case, outcome in outcomes(kind, limits=(8, 30), latencies=(0.1,)).items():
        assert outcome.goodput >= goodput, (case, outcome)
        assert outcome.limited <= 0.06, (case, outcome)
        assert (outcome.outages, outcome.failed) == (0, 0), (case, outcome)


@pytest.mark.parametrize("kind", ["window of 10 s", "sliding window of 10 s"])
def test_a_window_that_is_used_up_for_seconds_is_no_outage(kind):
    for case, outcome in outcomes(kind, limits=(30,), latencies=(0.05,)).items():
        assert (outcome.outages, outcome.failed) == (0, 0), (case, outcome)


@pytest.mark.parametrize(("latency", "slots"), [(0.1, 8), (0.2, 32), (0.4, 32)])
def test_the_goodput_with_a_cluster_is_near_the_limit(latency, slots):
    """From the first listing on, where this process alone reaches 10 to 40/s of each API."""
    limits = {name: Bucket(steps(100)) for name in ("dbfs", "workspace")}
    outcome = simulate(limits, latency, 8000, hands=8, slots=slots)
    assert outcome.goodput >= 0.85 and outcome.limited <= 0.05, outcome
    assert outcome.failed == 0 and 7 <= outcome.most_out <= slots, outcome


def test_a_cluster_keeps_the_ceiling_that_is_asked_for(monkeypatch):
    """Also where workers begin late, and so ask when their batch's time is over."""
    monkeypatch.setattr("tests.pace.QUERY_SECONDS", 3.0)
    outcome = simulate({"dbfs": Bucket(steps(1000))}, 0.4, 4000, hands=12, slots=8, rate=40)
    assert 250 <= outcome.most_in_10_s <= 401 and outcome.most_out > 1, outcome


def test_429s_that_only_workers_get_do_not_slow_this_process():
    outcome = simulate({"dbfs": Bucket(steps(500))}, 0.2, 4000, hands=8, slots=8, of_workers={"dbfs": Bucket(steps(1))})
    assert outcome.seconds <= 1.1 * 4000 / 40, outcome  # alone it reaches 40/s
