import json

import pytest

from efftrain.hardware import probe
from efftrain.monitor import machine
from efftrain.monitor.machine import compute_capability, environment, find_sensors


def test_this_machine_has_a_reading_for_its_processor():
    found = find_sensors("cpu")
    try:
        assert {s.info.component for s in found.sensors} >= {"cpu"}
        assert {a.component for a in found.absent} >= {"rest_of_node"}
        assert all(s.read() >= 0 for s in found.sensors)
    finally:
        for sensor in found.sensors:
            sensor.close()


@pytest.mark.parametrize(("device", "components"), [("cpu", ["cpu", "dram"]), ("cuda:0", ["gpu", "cpu", "dram"])])
def test_a_search_that_fails_leaves_named_gaps(monkeypatch: pytest.MonkeyPatch, device: str, components: list[str]):
    def broken() -> probe.Cpu:
        raise RuntimeError("no /proc")

    monkeypatch.setattr(probe, "cpu", broken)
    found = find_sensors(device)
    assert found.sensors == []
    assert [a.component for a in found.absent] == [*components, "rest_of_node"]
    assert "no /proc" in found.absent[0].why


def test_the_environment_of_a_cpu_run_has_no_devices():
    found = environment("cpu")
    assert (found["device"], found["devices"]) == ("cpu", [])
    assert json.loads(json.dumps(found)) == found


def test_the_compute_capability_is_that_of_the_runs_board(monkeypatch: pytest.MonkeyPatch):
    boards = {0: [{"compute_capability": "8.6"}], 3: [{"compute_capability": None}], 4: []}
    monkeypatch.setattr(machine, "gpu_facts", lambda devices: boards[devices[0]] if devices else [])
    assert compute_capability("cuda") == (8, 6)
    assert [compute_capability(device) for device in ("cuda:3", "cuda:4", "cpu")] == [None, None, None]
