"""The energy of a run by component: what each sensor gives, what the machine has and nobody can read, and their sum.

A component that cannot be read stands in the ledger as missing and makes the sum a lower bound; it is never 0.
"""

import math
from collections.abc import Mapping, Sequence

from efftrain.meters.energy.power import PowerReadings
from efftrain.meters.energy.series import Series
from efftrain.meters.windows import BOUNDARY, Window, seconds
from efftrain.record.journal import Line
from efftrain.record.quantities import Quantity, estimate, missing, scaled, total

COMPONENTS = ("gpu", "cpu", "dram", "rest_of_node")


class Ledger:
    """The sensors of one run, filled tick by tick.

    Args:
        header: the journal's header line.
        live: for figures of a run that goes on; see `Series`.

    Attributes:
        series: the billed sensors by name.
        witnesses: power sensors that stand beside a counter, by the counter's name; they are not billed.
    """

    def __init__(self, header: Line, *, live: bool = False) -> None:
        self._header = header
        infos = header["sensors"]
        self.witnesses = {info["witness_of"]: PowerReadings(info) for info in infos if info.get("witness_of")}
        self.series: Mapping[str, Series] = {
            info["name"]: Series(info, witness=None if live else self.witnesses.get(info["name"]), live=live)
            for info in infos
            if not info.get("witness_of")
        }
        self._witness_names = {readings.info["name"]: readings for readings in self.witnesses.values()}

    def feed(self, line: Line) -> None:
        """Take one journal line; all but ticks of sensors that the header names are passed over."""
        if line["kind"] != "tick":
            return
        name = line["sensor"]
        if name in self.series:
            self.series[name].add(line["t"], line["value"], line.get("since"))
        elif name in self._witness_names:
            self._witness_names[name].add(line["t"], line["value"])

    def components(self, windows: Sequence[Window]) -> dict[str, Quantity]:
        """Energy in J by component over disjoint windows; a component that the machine does not have is left out."""
        parts: dict[str, list[Quantity]] = {}
        for series in self.series.values():
            parts.setdefault(series.info["component"], []).append(series.energy_over(windows))
        for absent in self._header["absent"]:
            parts.setdefault(absent["component"], []).append(missing("J", source=absent["why"]))
        ordered = sorted(parts.items(), key=lambda item: COMPONENTS.index(item[0]))
        return {name: _sum(quantities) for name, quantities in ordered}

    def devices(self, windows: Sequence[Window]) -> dict[str, Quantity]:
        """Energy in J by GPU, under its UUID."""
        gpus = [series for series in self.series.values() if series.info["component"] == "gpu"]
        return {series.info["device"]: series.energy_over(windows) for series in gpus}

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
        compared = [s for s in self.series.values() if s.info["kind"] != "elapsed"]
        if above and not any(series.info["name"] in self._header["idle"] for series in compared):
            return missing("J", source="no idle power was read", boundary="energy above idle")
        parts = [self._one_against_idle(series, windows, above=above) for series in self.series.values()]
        parts += [missing("J", source=absent["why"]) for absent in self._header["absent"]]
        boundary = "energy above idle" if above else "idle power × billed time"
        return _sum(parts, boundary=f"{boundary}, over the sensors whose idle power was read")

    def _one_against_idle(self, series: Series, windows: Sequence[Window], *, above: bool) -> Quantity:
        """One sensor's idle energy, or what it read above that; the sensor's gain error is common to both readings."""
        info = series.info
        if info["kind"] == "elapsed":  # drawn all the time, whatever the machine does
            whole = series.energy_over(windows)
            return scaled(whole, 0.0, "J", source=f"{info['name']}: the same when idle") if above else whole
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
