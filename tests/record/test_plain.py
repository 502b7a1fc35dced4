import dataclasses
import json
import subprocess
import sys
from typing import Any, Literal

import pytest

from efftrain.record.plain import from_plain


@dataclasses.dataclass(frozen=True)
class Wheel:
    spokes: int
    radius: float = 0.3


@dataclasses.dataclass(frozen=True)
class Bicycle:
    colour: Literal["red", "blue"]
    wheels: tuple[Wheel, ...]
    gears: tuple[int, int] = (3, 7)
    bell: Wheel | None = None
    owners: dict[str, str] = dataclasses.field(default_factory=dict)


RED = Bicycle("red", (Wheel(28), Wheel(32, 0.35)), bell=Wheel(0, 1), owners={"first": "Anna"})


def test_the_way_back():
    assert from_plain(Bicycle, dataclasses.asdict(RED)) == RED
    assert from_plain(Bicycle, json.loads(json.dumps(dataclasses.asdict(RED)))) == RED
    assert from_plain(Bicycle, {"colour": "blue", "wheels": []}) == Bicycle("blue", ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "green"}, "colour: expected one of red, blue, not 'green'"),
        ({"wheels": [{"radius": 1.0}]}, "wheels.0.spokes: is missing"),
        ({"wheels": [{"spokes": 1.5}]}, "wheels.0.spokes: expected int, not 1.5"),
        ({"wheels": [{"spokes": True}]}, "wheels.0.spokes: expected int, not True"),
        ({"wheels": "many"}, "wheels: expected a list, not 'many'"),
        ({"gears": [1]}, "gears: expected 2 values"),
        ({"bell": 3}, "bell: expected names and values, not 3"),
        ({"owners": {"first": 1}}, "owners.first: expected str, not 1"),
        ({"motor": 1}, "motor: unknown; there are colour, wheels"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        from_plain(Bicycle, {**dataclasses.asdict(RED), **change})


def test_a_run_can_be_made_without_pydantic_and_codecarbon():
    names = ("study.running.worker", "study.running.run", "study.process", "sensors.examine")
    modules = ", ".join(f"efftrain.{name}" for name in names)
    code = f"import sys\nfor name in ('pydantic', 'codecarbon'): sys.modules[name] = None\nimport {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
