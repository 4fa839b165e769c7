"""The pace near limits of several kinds, in virtual time: python -m tests.pace has them all."""

import pytest

from tests.pace import outcomes


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
