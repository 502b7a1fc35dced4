"""How figures are written: prefixes, digits, intervals, lower bounds and what is missing, in one place.

A figure that is missing is the word `missing`, never 0 and never an empty cell. A lower bound begins with `≥`. Bytes
take binary prefixes, joules and their like decimal ones, rates of tokens none.
"""

import math
from typing import Final

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Ratio

MISSING: Final = "missing"
DIGITS: Final = 3
"""Significant digits: one more than any figure here is sure of."""

_DECIMAL: Final = {
    -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E",
}  # fmt: skip
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi")
_PREFIXED: Final = frozenset({"J", "W", "Wh", "L", "FLOP", "FLOP/s", "J/token", "J/FLOP", "J/B", "g/token", "g/EFLOP"})
_SMALL_ONLY: Final = frozenset({"s"})
"""Milliseconds, but no kiloseconds."""
_GRAMS: Final = "g"


def figure(
    quantity: Quantity, *, interval: bool = True, tag: bool = False, digits: int = DIGITS, like: float | None = None
) -> str:  # fmt: skip
    """A figure with its unit: `≥ 1.23 mJ/token [0.6, ∞) assumed`.

    Args:
        quantity: the figure.
        interval: whether the 95 % interval follows; an exact count has none.
        tag: whether the method follows.
        digits: significant digits.
        like: takes the prefix of this value, so that the figures of a column can be compared at a glance.
    """
    if quantity.value is None:
        return MISSING
    factor, unit = _scale(like or quantity.value, quantity.unit)
    parts = [
        "≥" if quantity.lower_bound else "",
        f"{number(quantity.value / factor, digits)}{unit if unit in ('', ' %') else f' {unit}'}",
        span(quantity, factor=factor, digits=digits) if interval else "",
        quantity.method if tag else "",
    ]
    return " ".join(filter(None, parts))


def span(
    quantity: Quantity, *, factor: float | None = None, digits: int = DIGITS, like: float | None = None
) -> str:  # fmt: skip
    """The 95 % interval alone, in the prefix of the value: `[0.6, 3.1]`; empty where none is claimed or needed."""
    low, high, value = quantity.low, quantity.high, quantity.value
    if value is None or (low is None and high is None) or low == value == high:
        return ""
    by = factor or _scale(like or value, quantity.unit)[0]
    left = "(−∞" if low is None else f"[{number(low / by, digits)}"
    return f"{left}, {'∞)' if high is None else f'{number(high / by, digits)}]'}"


def percent(quantity: Quantity, *, interval: bool = False) -> str:
    """A share of one as a percentage: `31.2 %`."""
    if quantity.value is None:
        return MISSING
    text = f"{'≥ ' if quantity.lower_bound else ''}{number(100 * quantity.value)} %"
    return f"{text} {span(quantity, factor=0.01)}".strip() if interval else text


def times(ratio: Ratio) -> str:
    """A ratio to the baseline: `×0.868`, `≥ ×1.15` where runs never reached the target."""
    if ratio.ratio is None:
        return MISSING
    return f"{'≥ ' if ratio.censored else ''}×{_ratio_number(ratio.ratio)}"


def times_span(ratio: Ratio) -> str:
    """A ratio's 95 % interval: `[0.801, 0.941]`; empty for a single pair."""
    if ratio.low is None and ratio.high is None:
        return ""
    left = "(0" if ratio.low is None else f"[{_ratio_number(ratio.low)}"
    return f"{left}, {'∞)' if ratio.high is None else f'{_ratio_number(ratio.high)}]'}"


def change(ratio: Ratio) -> str:
    """A ratio as a change: `−13 %`, `+4.2 %`."""
    if ratio.ratio is None:
        return MISSING
    part = 100 * (ratio.ratio - 1)
    return f"{'≥ ' if ratio.censored else ''}{'−' if part < 0 else '+'}{number(abs(part), 2)} %"


def number(value: float, digits: int = DIGITS) -> str:
    """A plain number with `digits` significant digits, thousands apart, no exponent in the usual range."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if size < -4 or size > 14:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - size)}f}".replace("-", "−")


def _ratio_number(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= value < 10 else number(value)


def _scale(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit with its prefix."""
    if unit == "1":
        return 1.0, ""
    size = abs(value)
    if unit == "B":
        power = min(int(math.log2(size) // 10), len(_BINARY) - 1) if size >= 1 else 0
        return 1024.0**power, f"{_BINARY[power]}B"
    if unit == _GRAMS and size >= 1e6:
        return 1e6, "t"
    highest = {unit in _SMALL_ONLY: 0, unit == _GRAMS: 3, unit in _PREFIXED: 18}.get(True)
    if highest is None or size == 0:
        return 1.0, unit
    power = min(max(3 * math.floor(math.log10(size) / 3), -12), highest)
    return 10.0**power, f"{_DECIMAL[power]}{unit}"
