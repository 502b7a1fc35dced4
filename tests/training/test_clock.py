import time

from efftrain.training.clock import HostClock


def test_host_clock_hands_out_finished_steps_once():
    clock = HostClock()
    before = time.monotonic_ns()
    clock.begin()
    clock.mark("data")
    time.sleep(0.01)
    clock.mark("forward")
    clock.end()
    after = time.monotonic_ns()
    (step,) = clock.resolve()
    assert before <= step.start <= step.phases[0][1]
    assert step.phases[1][1] - step.phases[0][1] >= 10_000_000
    assert step.phases[1][1] <= step.end <= after
    assert clock.resolve() == []
