"""What holds for every run: windows and devices add up, and neither a wrap nor a reset loses what was counted."""

import itertools
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.energy.power import PowerReadings
from efftrain.meters.energy.series import Series
from efftrain.record.quantities import estimate, scaled
from efftrain.sensors.rapl import find_rapl

S = 1_000_000_000
TICK = S // 10

grown = st.lists(st.floats(0.5, 60, allow_subnormal=False), min_size=6, max_size=60)
cuts = st.lists(st.floats(0, 1), min_size=1, max_size=6, unique=True)


def counter(info, increments, *, wrap_at=None, start=0.0, witness=None):
    """A counter that grows by the increments, tick after tick; every reading knows the poll before."""
    series, total = Series(info(wrap_at=wrap_at), witness=witness), start
    series.add(0, total)
    for k, joules in enumerate(increments, start=1):
        total += joules
        series.add(k * TICK, total if wrap_at is None else math.fmod(total, wrap_at), k * TICK - S // 50)
    return series


@given(grown, cuts)
def test_windows_add_wherever_they_are_cut(info, increments, places):
    series, end = counter(info, increments), len(increments) * TICK
    edges = [0, *sorted(round(place * end) for place in places), end]
    parts = [series.energy_between(a, b).value or 0.0 for a, b in itertools.pairwise(edges) if a < b]
    assert math.fsum(parts) == pytest.approx(series.energy_between(0, end).value, rel=1e-9)


@given(grown, st.integers(1, 8))
def test_n_devices_cost_n_times_one(info, header, increments, n):
    ledger = Ledger(header(sensors=[info(f"gpu{i}", device=f"GPU-{i}") for i in range(n)], absent=[]))
    total = 0.0
    for k, joules in enumerate([0.0, *increments]):
        total += joules
        for i in range(n):
            ledger.feed({"kind": "tick", "t": k * TICK, "sensor": f"gpu{i}", "value": total})
    windows = [(0, len(increments) * TICK)]
    one = ledger.series["gpu0"].energy_over(windows)
    whole = ledger.components(windows)["gpu"]
    assert whole.value == pytest.approx(n * one.value)
    assert len(ledger.devices(windows)) == n


@given(grown, st.floats(100, 3000), st.floats(0, 1))
def test_a_wrap_anywhere_loses_nothing(info, increments, wrap_at, place):
    start = place * wrap_at * 0.999
    plain = counter(info, increments, start=start).energy_between(0, len(increments) * TICK)
    wrapped = counter(info, increments, start=start, wrap_at=wrap_at).energy_between(0, len(increments) * TICK)
    assert wrapped.value == pytest.approx(plain.value, rel=1e-9, abs=1e-6)
    assert not wrapped.lower_bound


@given(st.floats(50, 500), st.integers(10, 50), st.floats(0.01, 0.99))
def test_a_reset_beside_a_power_loses_nothing(info, watts, tick, place):
    """The counter begins again inside of an interval; what it had counted there before is gone from it."""
    readings = PowerReadings(info("gpu0:power", "power"))
    series = Series(info(), witness=readings)
    for k in range(61):
        value = 5000 + watts * k / 10 if k < tick else watts * ((k - tick) + 1 - place) / 10
        series.add(k * TICK, value, None if not k else k * TICK - S // 50)
        readings.add(k * TICK, watts)
    q = series.energy_between(0, 60 * TICK)
    assert q.value == pytest.approx(watts * 6, rel=2e-3)
    assert not q.lower_bound


@given(st.floats(1e-6, 1e12), st.floats(0, 0.2))
def test_joules_and_kilowatt_hours_are_each_other(value, share):
    energy = estimate(value, "J", method="measured", source="s", u_random=share * value)
    back = scaled(scaled(energy, 1 / 3.6e6, "kWh"), 3.6e6, "J")
    assert (back.value, back.low, back.high) == pytest.approx((energy.value, energy.low, energy.high))


def test_two_packages_and_memory_of_a_fake_tree_through_a_wrap(tmp_path):
    """Package 0 draws 90 W and wraps twice, package 1 draws 40 W, the memory of package 0 draws 12 W."""
    zones = {
        "intel-rapl:0": ("package-0", 90, 300), "intel-rapl:0:0": ("dram", 12, 65_000),
        "intel-rapl:1": ("package-1", 40, 262_143),
    }  # fmt: skip
    for zone, (name, _, wrap_j) in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name)
        (tmp_path / zone / "max_energy_range_uj").write_text(str(wrap_j * 10**6))
        (tmp_path / zone / "energy_uj").write_text("0")
    sensors, absent = find_rapl(tmp_path)
    series = {sensor.info.name: Series(asdict(sensor.info)) for sensor in sensors}
    for k in range(101):
        for zone, (_, watts, wrap_j) in zones.items():
            (tmp_path / zone / "energy_uj").write_text(str((watts * k * 100_000) % (wrap_j * 10**6)))
        for sensor in sensors:
            series[sensor.info.name].add(k * TICK, sensor.read(), max(0, k - 1) * TICK)
    joules = {name: one.energy_between(0, 100 * TICK) for name, one in series.items()}
    assert {name: q.value for name, q in joules.items()} == pytest.approx(
        {"rapl:package-0": 900.0, "rapl:package-0:dram": 120.0, "rapl:package-1": 400.0}, rel=1e-3
    )
    assert not any(q.lower_bound for q in joules.values())
    assert absent == []
