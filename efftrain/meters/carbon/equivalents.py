"""Grams of CO2e as something that everybody knows: a drive, a charged phone, an evening of video.

A few only, each with a published figure and its year. They help to feel a size; no verdict rests on them.
"""

from dataclasses import dataclass

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Equivalent

METRES_PER_MILE = 1609.344
_EPA = "US EPA, Greenhouse Gas Equivalencies Calculator, 2024"


@dataclass(frozen=True, slots=True)
class Everyday:
    """Something from everyday life.

    Attributes:
        grams: CO2e of one base unit, g.
        units: size of a unit in base units, and the unit with what it is of, largest first.
        source: where the figure is from.
    """

    grams: float
    units: tuple[tuple[float, str], ...]
    source: str


EVERYDAY = (
    Everyday(
        393 / METRES_PER_MILE,
        ((1000.0, "km driven in an average petrol car"), (1.0, "m driven in an average petrol car")),
        f"393 g CO2e/mile ({_EPA})",
    ),
    Everyday(12.4, ((1.0, "smartphones charged"),), f"12.4 g CO2 a charge ({_EPA})"),
    Everyday(
        36 / 3600,
        ((3600.0, "hours of video streamed"), (1.0, "seconds of video streamed")),
        "36 g CO2 an hour (IEA, The carbon footprint of streaming video, 2020)",
    ),
)


def equivalents(carbon: Quantity) -> list[Equivalent]:
    """What else emits as much as `carbon`, in g; nothing for a figure that is missing."""
    if carbon.value is None:
        return []
    return [_equivalent(carbon.value, thing) for thing in EVERYDAY]


def _equivalent(grams: float, thing: Everyday) -> Equivalent:
    amount = grams / thing.grams
    size, what = next(((size, what) for size, what in thing.units if amount >= size), thing.units[-1])
    return Equivalent(what=what, amount=amount / size, source=thing.source)
