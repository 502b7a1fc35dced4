"""A figure that says how sure it is and how it was obtained.

Every number that efftrain prints, except counts and losses, is a `Quantity`. Arithmetic on quantities lives here, so
that no two rooms can disagree about how intervals add. Errors of different parts are taken as independent; errors of
one sensor are added up by whoever reads that sensor, before they get here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Method = Literal["measured", "modelled", "assumed", "missing"]

COVERAGE_FACTOR = 1.96
"""Half-width of a 95 % interval in standard uncertainties of a normal distribution (GUM, JCGM 100:2008, annex G)."""

_WEAKEST_FIRST: tuple[Method, ...] = ("assumed", "modelled", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A figure with its unit, interval, method, source and boundary.

    Attributes:
        value: the figure, or None when it is missing.
        unit: SI, as `J`, `W`, `s`, `B`, `FLOP`, `g`, `g/kWh`, or a ratio of those (`J/token`); `1` for a pure number.
        low: lower end of a 95 % interval over both kinds of uncertainty; None where no interval is claimed.
        high: upper end, or None; `low == value == high` is an exact count.
        u_random: standard uncertainty that repetition reduces, in `unit`, or None.
        u_systematic: standard uncertainty that repetition does not reduce (a gain, a model), in `unit`, or None.
        method: `measured`, `modelled`, `assumed` or `missing`.
        source: where the figure comes from, in words; never empty.
        boundary: what is counted and what is not, in words.
        lower_bound: True where a part is missing, so that the true figure is at least `value`.
    """

    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    u_random: float | None = None
    u_systematic: float | None = None
    method: Method
    source: str
    boundary: str = ""
    lower_bound: bool = False

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"a quantity in {self.unit} needs a source")
        if (self.value is None) != (self.method == "missing"):
            raise ValueError(f"value {self.value} does not go with method {self.method!r}: missing means no value")
        for name in ("value", "low", "high", "u_random", "u_systematic"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} must be finite, not {number}")
        if self.value is not None and not (self.low or self.value) <= self.value <= (self.high or self.value):
            raise ValueError(f"{self.value} {self.unit} lies outside its interval [{self.low}, {self.high}]")

    @property
    def present(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


def missing(unit: str, *, source: str, boundary: str = "") -> Quantity:
    """A figure that exists but could not be read; `source` says why."""
    return Quantity(value=None, unit=unit, method="missing", source=source, boundary=boundary)


def exact(value: float, unit: str, *, source: str, boundary: str = "", method: Method = "measured") -> Quantity:
    """A count, or a figure whose error is below its last digit."""
    return Quantity(
        value=value, unit=unit, low=value, high=value, u_random=0.0, u_systematic=0.0,
        method=method, source=source, boundary=boundary,
    )  # fmt: skip


def estimate(
    value: float,
    unit: str,
    *,
    method: Method,
    source: str,
    boundary: str = "",
    u_random: float = 0.0,
    u_systematic: float = 0.0,
    limits: tuple[float, float] | None = None,
    lower_bound: bool = False,
) -> Quantity:
    """A figure with standard uncertainties; the interval is value ± 1.96 combined, or wider where `limits` say so.

    Args:
        value: the best estimate, in `unit`.
        unit: see `Quantity`.
        method: see `Quantity`.
        source: see `Quantity`.
        boundary: see `Quantity`.
        u_random: standard uncertainty, random part, in `unit`.
        u_systematic: standard uncertainty, systematic part, in `unit`.
        limits: low and high of an asymmetric 95 % systematic interval; it then replaces 1.96 · `u_systematic`.
        lower_bound: a part is known to be missing: `high` is then None.
    """
    below, above = (value - limits[0], limits[1] - value) if limits else (COVERAGE_FACTOR * u_systematic,) * 2
    spread = COVERAGE_FACTOR * u_random
    low = value - math.hypot(below, spread)
    return Quantity(
        value=value, unit=unit, low=max(0.0, low) if value >= 0 else low,
        high=None if lower_bound else value + math.hypot(above, spread),
        u_random=u_random, u_systematic=u_systematic, method=method, source=source, boundary=boundary,
        lower_bound=lower_bound,
    )  # fmt: skip


def weakest(methods: Sequence[Method]) -> Method:
    """The least certain of the methods given: assumed before modelled before measured; missing only if all are."""
    for method in _WEAKEST_FIRST:
        if method in methods:
            return method
    return "missing"


def total(parts: Sequence[Quantity], *, boundary: str, source: str = "") -> Quantity:
    """Sum of independent parts in one unit.

    What is present is summed and takes the weakest method among those. If a part is missing, or is itself a lower
    bound, so is the sum, and it claims no upper end. Uncertainties of independent parts add in quadrature.

    Raises:
        ValueError: no parts, or parts in different units.
    """
    units = {p.unit for p in parts}
    if len(units) != 1:
        raise ValueError(f"a total needs parts in one unit, not {sorted(units)}")
    unit = units.pop()
    present = [p for p in parts if p.value is not None]
    source = source or _sources([p.source for p in present or parts])
    if not present:
        return missing(unit, source=source, boundary=boundary)
    value = math.fsum(p.value or 0.0 for p in present)
    bounded = len(present) < len(parts) or any(p.lower_bound for p in present)
    no_low = any(p.low is None for p in present)
    no_high = bounded or any(p.high is None for p in present)
    return Quantity(
        value=value,
        unit=unit,
        low=None if no_low else value - math.hypot(*((p.value or 0.0) - (p.low or 0.0) for p in present)),
        high=None if no_high else value + math.hypot(*((p.high or 0.0) - (p.value or 0.0) for p in present)),
        u_random=_quadrature([p.u_random for p in present]),
        u_systematic=_quadrature([p.u_systematic for p in present]),
        method=weakest([p.method for p in present]),
        source=source,
        boundary=boundary,
        lower_bound=bounded,
    )


def correlated(parts: Sequence[Quantity], *, boundary: str, source: str = "") -> Quantity:
    """Sum of parts that share what is systematic in their errors: readings of one sensor at different times, say.

    Systematic uncertainties add linearly and random ones in quadrature (GUM, JCGM 100:2008, 5.2.2, with a correlation
    of 1 and of 0). An interval's systematic half is what its random part does not explain, so that asymmetric limits
    keep their shape. Otherwise as `total`.

    Raises:
        ValueError: no parts, or parts in different units.
    """
    summed = total(parts, boundary=boundary, source=source)
    present = [p for p in parts if p.value is not None]
    spread = COVERAGE_FACTOR * (summed.u_random or 0.0)
    value = summed.value or 0.0
    below = math.fsum(_systematic_half((p.value or 0.0) - (p.low or 0.0), p) for p in present)
    above = math.fsum(_systematic_half((p.high or 0.0) - (p.value or 0.0), p) for p in present)
    shared = None if summed.u_systematic is None else math.fsum(p.u_systematic or 0.0 for p in present)
    return replace(
        summed, low=None if summed.low is None else value - math.hypot(below, spread),
        high=None if summed.high is None else value + math.hypot(above, spread), u_systematic=shared,
    )  # fmt: skip


def _systematic_half(half: float, part: Quantity) -> float:
    return math.sqrt(max(0.0, half**2 - (COVERAGE_FACTOR * (part.u_random or 0.0)) ** 2))


def scaled(part: Quantity, factor: float, unit: str, *, source: str = "", boundary: str = "") -> Quantity:
    """`part` times an exact, non-negative factor, in another unit: joules to joules per token, say."""
    if factor < 0:
        raise ValueError(f"a quantity is scaled by a factor of at least 0, not {factor}")

    def times(number: float | None) -> float | None:
        return None if number is None else number * factor

    return replace(
        part, value=times(part.value), low=times(part.low), high=times(part.high), u_random=times(part.u_random),
        u_systematic=times(part.u_systematic), unit=unit, source=source or part.source,
        boundary=boundary or part.boundary,
    )  # fmt: skip


def product(factors: Sequence[Quantity], unit: str, *, source: str = "", boundary: str = "") -> Quantity:
    """Product of independent, positive factors; relative uncertainties add in quadrature (GUM, 5.1.6).

    A missing factor makes the product missing; a factor that is a lower bound makes the product one.
    """
    source = source or " × ".join(f.source for f in factors)
    values = [f.value for f in factors if f.value is not None]
    if len(values) < len(factors):
        absent = "; ".join(f.source for f in factors if f.value is None)
        return missing(unit, source=f"missing factor: {absent}", boundary=boundary)
    value = math.prod(values)
    bounded = any(f.lower_bound for f in factors)

    def relative(ends: Sequence[float | None]) -> float | None:
        pairs = list(zip(values, ends, strict=True))
        return None if any(e is None for _, e in pairs) else math.hypot(*(_share(v, e or 0.0) for v, e in pairs))

    below = relative([f.low for f in factors])
    above = None if bounded else relative([f.high for f in factors])
    random = relative([None if f.u_random is None else (f.value or 0.0) + f.u_random for f in factors])
    system = relative([None if f.u_systematic is None else (f.value or 0.0) + f.u_systematic for f in factors])
    return Quantity(
        value=value, unit=unit, low=None if below is None else max(0.0, value * (1 - below)),
        high=None if above is None else value * (1 + above),
        u_random=None if random is None else value * random, u_systematic=None if system is None else value * system,
        method=weakest([f.method for f in factors]), source=source, boundary=boundary, lower_bound=bounded,
    )  # fmt: skip


def _share(value: float, end: float) -> float:
    """Relative distance of an interval's end from its value; 0 for a value of 0, whose product is 0 whatever else."""
    return abs(end - value) / value if value else 0.0


def _sources(said: Sequence[str]) -> str:
    """Where a sum comes from; eight counters of one kind are not named eight times."""
    if len(said) > 1 and len(set(said)) == 1:
        return f"sum of {len(said)}: {said[0]}"
    return "sum of: " + "; ".join(dict.fromkeys(said))


def _quadrature(parts: Sequence[float | None]) -> float | None:
    return None if any(p is None for p in parts) else math.hypot(*(p or 0.0 for p in parts))
