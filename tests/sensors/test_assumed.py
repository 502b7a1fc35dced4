"""Assumed powers become joules with their limits, and stand in only where nothing is read."""

from dataclasses import asdict
from pathlib import Path

import pytest

from efftrain.hardware import probe
from efftrain.hardware.catalogue import memory_watts, node_watts
from efftrain.meters.energy.series import Series
from efftrain.sensors.assumed import AssumedPower
from efftrain.sensors.discover import discover

S = 1_000_000_000


def test_joules_are_watts_times_seconds_with_the_limits_of_the_watts():
    now = [7 * S]
    sensor = AssumedPower("rest-of-node", "rest_of_node", (84.0, 30.0, 200.0), "s", "b", clock=lambda: now[0])
    series = Series(asdict(sensor.info))
    for t in range(7, 28):
        now[0] = t * S
        series.add(now[0], sensor.read())
    q = series.energy_between(10 * S, 20 * S)
    assert (q.value, q.low, q.high) == (pytest.approx(840), pytest.approx(300), pytest.approx(2000))
    assert (q.method, q.lower_bound) == ("assumed", False)


def test_a_container_is_not_charged_for_its_hosts_memory(tmp_path: Path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    limit = min(2 * 10**9, probe.memory_bytes() // 2)  # whatever this machine has
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    (value, low, high), source = memory_watts(probe.memory_bytes(tmp_path))
    assert value == pytest.approx(0.17 * limit / 1e9)
    assert low < value < high
    assert f"{limit / 1e9:.3g} GB" in source


def test_a_guest_cannot_know_its_share_of_the_host():
    assert node_watts(guest=True) is None
    assert node_watts(guest=False)[0][0] == 84


def test_an_assumed_part_stands_in_only_where_nothing_reads_it(tmp_path: Path):
    parts = [
        AssumedPower("memory", "dram", (4.0, 2.0, 9.0), "s", "b"),
        AssumedPower("rest-of-node", "rest_of_node", (84.0, 30.0, 200.0), "s", "b"),
    ]
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        (tmp_path / zone).mkdir()
        for file, content in (("name", name), ("energy_uj", "5"), ("max_energy_range_uj", "1000")):
            (tmp_path / zone / file).write_text(content)
    found = discover((), cpu_watts=((4.0, 2.0, 10.0), "assumed", "w"), assumed=parts, powercap=tmp_path, environ={})
    assert [s.info.name for s in found.sensors] == ["rapl:package-0", "rapl:package-0:dram", "rest-of-node"]
    assert {a.component: a.stand_in for a in found.absent} == {"rest_of_node": "rest-of-node"}
