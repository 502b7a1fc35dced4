"""Work in processes of its own: what one of them does is that one's finding, and none keeps the others waiting."""

import os
import time

import pytest

from efftrain_kernels.evidence.isolated import Failure, outcomes


def reasons(done):
    return {out.task: out.result.reason if isinstance(out.result, Failure) else out.result for out in done}


def test_without_processes_an_error_is_a_finding():
    assert reasons(outcomes(float, ["1.5", "x"], processes=0)) == {
        "1.5": 1.5, "x": "ValueError: could not convert string to float: 'x'",
    }  # fmt: skip


@pytest.mark.slow
def test_a_task_that_never_ends_is_ended():
    began = time.monotonic()
    found = reasons(outcomes(time.sleep, [600.0, 0.0, 0.5], processes=2, fresh=True, limit_s=20.0))
    assert found == {600.0: "no result after 20 s", 0.0: None, 0.5: None}
    assert time.monotonic() - began < 100


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_a_process_that_ends_is_one_finding(fresh):
    found = reasons(outcomes(os._exit, [3], fresh=fresh))
    assert found == {3: "it ended its process: an assertion, or no memory"}
