import json
from dataclasses import asdict

from efftrain.sensors.cpu_time import CpuTimeSensor


def test_info_travels_through_json_with_every_field_of_the_header():
    info = asdict(CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "test").info)
    assert json.loads(json.dumps(info))["watts_per_unit"] == [4.0, 2.0, 10.0]
    assert set(info) == {
        "name", "component", "device", "kind", "unit", "wrap_at", "watts_per_unit", "u_relative", "period_s",
        "method", "source", "boundary", "tick_s", "witness_of", "u_lag_s",
    }  # fmt: skip
