"""The energy of a run by component: what each sensor gives, what the machine has and nobody can read, and their sum.

A component that cannot be read stands in the ledger as missing and makes the sum a lower bound; it is never 0.
"""

import math
from collections.abc import Mapping, Sequence

from efftrain.meters.energy import Series
from efftrain.meters.windows import BOUNDARY, Window, seconds
from efftrain.record.journal import Line
from efftrain.record.quantities import Quantity, estimate, missing, total

COMPONENTS = ("gpu", "cpu", "dram", "rest_of_node")


class Ledger:
    """The sensors of one run, filled tick by tick.

    Args:
        header: the journal's header line.
    """

    def __init__(self, header: Line) -> None:
        self._header = header
        self.series: Mapping[str, Series] = {info["name"]: Series(info) for info in header["sensors"]}

    def feed(self, line: Line) -> None:
        """Take one journal line; all but ticks of sensors that the header names are passed over."""
        if line["kind"] == "tick" and line["sensor"] in self.series:
            self.series[line["sensor"]].add(line["t"], line["value"])

    def components(self, windows: Sequence[Window]) -> dict[str, Quantity]:
        """Energy in J by component over disjoint windows; a component that the machine does not have is left out."""
        parts: dict[str, list[Quantity]] = {}
        for series in self.series.values():
            parts.setdefault(series.info["component"], []).append(series.energy_over(windows))
        for absent in self._header["absent"]:
            parts.setdefault(absent["component"], []).append(missing("J", source=absent["why"]))
        ordered = sorted(parts.items(), key=lambda item: COMPONENTS.index(item[0]))
        return {name: _sum(quantities) for name, quantities in ordered}

    def total(self, windows: Sequence[Window]) -> Quantity:
        """Energy in J of all components; a lower bound where one of them is missing."""
        components = self.components(windows)
        if not components:
            return missing("J", source="this machine has no energy sensor", boundary=BOUNDARY)
        present = [name for name, q in components.items() if q.present]
        absent = [name for name, q in components.items() if not q.present]
        boundary = f"{BOUNDARY}; counted: {', '.join(present) or 'nothing'}"
        boundary += f"; could not be read: {', '.join(absent)}" if absent else ""
        return total(list(components.values()), boundary=boundary)

    def idle(self, windows: Sequence[Window]) -> Quantity:
        """Energy in J that the same devices would have drawn over the same time with nothing to do."""
        return self._against_idle(windows, above=False)

    def above_idle(self, windows: Sequence[Window]) -> Quantity:
        """Energy in J above idle, over the sensors whose idle power was read."""
        return self._against_idle(windows, above=True)

    def _against_idle(self, windows: Sequence[Window], *, above: bool) -> Quantity:
        parts = [self._one_against_idle(series, windows, above=above) for series in self.series.values()]
        parts += [missing("J", source=absent["why"]) for absent in self._header["absent"]]
        boundary = "energy above idle" if above else "idle power × billed time"
        return _sum(parts, boundary=f"{boundary}, over the sensors whose idle power was read")

    def _one_against_idle(self, series: Series, windows: Sequence[Window], *, above: bool) -> Quantity:
        """One sensor's idle energy, or what it read above that; the sensor's gain error is common to both readings."""
        info = series.info
        idle = self._header["idle"].get(info["name"])
        if not windows or idle is None:
            why = "no idle power was read" if windows else "no billed window"
            return missing("J", source=f"{info['name']}: {why}")
        joules, u_random = idle["watts"] * seconds(windows), idle["u_watts"] * seconds(windows)
        source, bounded = f"{info['name']} read at idle", False
        if above:
            energy = series.energy_over(windows)
            if energy.value is None:
                return energy
            joules, u_random = energy.value - joules, math.hypot(energy.u_random or 0.0, u_random)
            source, bounded = f"{energy.source}, less its reading at idle", energy.lower_bound
        return estimate(
            joules, "J", method=info["method"], source=source, u_random=u_random,
            u_systematic=abs(joules) * info["u_relative"], lower_bound=bounded,
        )  # fmt: skip


def _sum(parts: Sequence[Quantity], boundary: str = "") -> Quantity:
    if not parts:
        return missing("J", source="this machine has no energy sensor", boundary=boundary)
    if len(parts) == 1 and not boundary:
        return parts[0]
    return total(parts, boundary=boundary or parts[0].boundary)
