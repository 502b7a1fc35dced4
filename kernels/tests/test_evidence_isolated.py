"""Work in processes of its own: what one of them does is that one's finding, and none keeps the others waiting."""

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
    found = reasons(outcomes(time.sleep, [600.0, 0.0, 0.5], processes=2, limit_s=20.0))
    assert found == {600.0: "no result after 20 s", 0.0: None, 0.5: None}
    assert time.monotonic() - began < 100


@pytest.mark.slow
def test_a_process_that_ends_is_one_finding():
    found = reasons(outcomes(eval, ["1 + 1", "__import__('os')._exit(3)", "2 + 2"], processes=1))
    assert found == {
        "1 + 1": 2, "__import__('os')._exit(3)": "it ended its process: an assertion, or no memory", "2 + 2": 4,
    }  # fmt: skip


@pytest.mark.slow
def test_tasks_are_asked_for_when_there_is_a_process():
    done: list[int] = []

    def tasks():
        for number in (-1, -2, -3):
            assert len(done) == -number - 1
            yield number

    for outcome in outcomes(abs, tasks(), processes=1):
        done.append(outcome.task)  # noqa: PERF401 (what is done is asked for in between)
    assert done == [-1, -2, -3]
