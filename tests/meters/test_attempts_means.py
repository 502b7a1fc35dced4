"""Where a figure over several attempts comes from is said once where it is the same, and in full where it is not."""

import pytest

from efftrain.meters.attempts_means import added_up, common_sum, weighted
from efftrain.record.quantities import Quantity, exact, missing

RAPL = "counter of package 0 (rapl)"


def joules(source: str, value: float = 2.0) -> Quantity:
    return exact(value, "J", source=source)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([RAPL] * 3, f"{RAPL}, 3 attempts added up"),
        (["used 1 s of 4 years", "used 5 s of 4 years"], "used 1 and 5 s of 4 years, 2 attempts added up"),
        (["n = 3", "n = 7", "n = 3", "n = 9"], "n = 3, 7 and 9, 4 attempts added up"),
        ([RAPL, "a model", RAPL], f"sum of: {RAPL}; a model"),
        (["20 updates in 3 s", "30 updates in 4 s"], "sum of: 20 updates in 3 s; 30 updates in 4 s"),
        (["rapl", "rapl and a model"], "sum of: rapl; rapl and a model"),
    ],
)
def test_parts_that_are_the_same_are_said_once_and_others_in_full(sources: list[str], said: str):
    assert common_sum([joules(source) for source in sources]).source == said


def test_what_no_attempt_could_read_is_not_added_up():
    nothing = missing("J", source="no sensor reads it")
    assert added_up([nothing, nothing]) == "no sensor reads it"
    assert added_up([nothing, joules(RAPL)]) == RAPL
    assert common_sum([joules(RAPL)]).source == RAPL


def test_a_mean_says_what_its_parts_have_in_common_once():
    parts = [joules(f"duration of steps, mean of {steps}", value) for steps, value in ((60, 1.0), (260, 2.0))]
    mean = weighted(parts, [60, 260])
    assert mean.source == "mean over attempts: duration of steps, mean of 60 and 260"
    assert mean.value == pytest.approx((60 * 1.0 + 260 * 2.0) / 320)
