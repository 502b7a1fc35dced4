import math

import pytest

from efftrain.meters.energy.ledger import Ledger

S = 1_000_000_000
TEN_S = [(0, 10 * S)]


def ledger(head, **powers):
    """A ledger whose sensors all count a constant power in W (or CPU seconds a second)."""
    filled = Ledger(head)
    for name, power in powers.items():
        for i in range(101):
            filled.feed({"kind": "tick", "t": i * S // 10, "sensor": name, "value": power * i / 10})
    return filled


def test_components_add_up_over_their_sensors(header, info):
    head = header(sensors=[info("gpu0"), info("gpu1"), info("rapl", component="cpu")], absent=[], idle={})
    filled = ledger(head, gpu0=100, gpu1=200, rapl=50)
    assert {n: q.value for n, q in filled.components(TEN_S).items()} == {
        "gpu": pytest.approx(3000), "cpu": pytest.approx(500),
    }  # fmt: skip
    whole = filled.total(TEN_S)
    assert whole.value == pytest.approx(3500)
    assert (whole.method, whole.lower_bound) == ("measured", False)
    # Gains of different boards are independent.
    assert whole.u_systematic == pytest.approx(0.0255 * math.hypot(1000, 2000, 500))


def test_what_cannot_be_read_is_missing_and_makes_a_lower_bound(header, info):
    absent = [{"component": "gpu", "why": "gpu1 has no counter"}, {"component": "rest_of_node", "why": "no meter"}]
    filled = ledger(header(sensors=[info()], absent=absent, idle={}), gpu0=100)
    components = filled.components(TEN_S)
    assert list(components) == ["gpu", "rest_of_node"]
    assert (components["gpu"].value, components["gpu"].lower_bound) == (pytest.approx(1000), True)
    assert components["rest_of_node"].value is None
    whole = filled.total(TEN_S)
    assert (whole.lower_bound, whole.high) == (True, None)
    assert "could not be read: rest_of_node" in whole.boundary


def test_the_total_takes_the_weakest_method(header, info):
    head = header(sensors=[info(), info("cpu", "cpu_time")], absent=[], idle={})
    assert ledger(head, gpu0=100, cpu=2).total(TEN_S).method == "assumed"


def test_a_machine_without_sensors_has_no_zero(header):
    filled = Ledger(header(sensors=[], absent=[], idle={}))
    figures = [filled.total(TEN_S), filled.idle(TEN_S), filled.above_idle(TEN_S)]
    assert [q.value for q in figures] == [None] * 3
    assert filled.components(TEN_S) == {}


def test_idle_and_what_is_above_it(header, info):
    head = header(sensors=[info()], absent=[], idle={"gpu0": {"watts": 30.0, "u_watts": 2.0}})
    filled = ledger(head, gpu0=100)
    idle, above = filled.idle(TEN_S), filled.above_idle(TEN_S)
    assert (idle.value, idle.u_random, idle.u_systematic) == (
        pytest.approx(300), pytest.approx(20), pytest.approx(0.0255 * 300),
    )  # fmt: skip
    assert (above.value, above.u_systematic) == (pytest.approx(700), pytest.approx(0.0255 * 700))
    assert above.u_random == pytest.approx(20)
    assert not above.lower_bound


def test_a_sensor_without_idle_makes_it_partial(header, info):
    head = header(sensors=[info(), info("cpu", "cpu_time")], absent=[], idle={"gpu0": {"watts": 30.0, "u_watts": 0.0}})
    above = ledger(head, gpu0=100, cpu=2).above_idle(TEN_S)
    assert (above.value, above.lower_bound) == (pytest.approx(700), True)


def test_what_is_always_drawn_alone_tells_nothing_above_idle(header, info):
    memory = info("memory", "elapsed", watts_per_unit=[4.0, 2.0, 9.0])
    head = header(sensors=[info("cpu", "cpu_time"), memory], absent=[], idle={})
    assert ledger(head, cpu=2, memory=1).above_idle(TEN_S).value is None


def test_no_idle_reading_is_missing(header, info):
    filled = ledger(header(sensors=[info()], absent=[], idle={}), gpu0=100)
    assert (filled.idle(TEN_S).value, filled.above_idle(TEN_S).value) == (None, None)
    assert "no idle power was read" in filled.idle(TEN_S).source


def test_ticks_of_unknown_sensors_are_passed_over(header, info):
    filled = ledger(header(sensors=[info()], absent=[], idle={}), gpu0=100, gpu7=900)
    assert filled.total(TEN_S).value == pytest.approx(1000)
