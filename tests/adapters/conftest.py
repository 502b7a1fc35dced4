"""What tests of adapters find in place of this machine's sensors."""

from typing import Any

import pytest
from adapters.toys import Meter

from efftrain.adapters import keeping, records
from efftrain.sensors.protocol import Absent, Discovery


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> list[Meter]:
    """One meter, found by every measurement of the test; a test may add others or let them fail."""
    found = [Meter()]
    rest = Absent(component="rest_of_node", name="rest-of-node", why="no meter at the plug")

    def find(*_: Any, **__: Any) -> Discovery:
        return Discovery(sensors=list(found), absent=[rest])

    monkeypatch.setattr(keeping, "find_sensors", find)
    return found


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take seconds; they have tests of their own."""
    monkeypatch.setattr(records, "_report", lambda *_: None)
