"""Where the joules of a run went: by phase, by module, by op; and in one sentence how that is known, or why not."""

from collections.abc import Sequence
from dataclasses import replace

from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.parts.block_energy import block_energy
from efftrain.meters.parts.phase_energy import ALTERNATIVE, Metered, PhaseEnergy, phase_energy
from efftrain.meters.parts.timeline import timeline
from efftrain.meters.windows import Window
from efftrain.record.journal import Journal
from efftrain.record.quantities import Quantity


def attribute(journal: Journal, ledger: Ledger, windows: Sequence[Window], whole: Quantity) -> PhaseEnergy:
    """The parts of a run's energy, from the journal's marks and the ledger's sensors.

    Blocks answer where the training itself does not, if there are any.

    Args:
        journal: the run.
        ledger: filled with the journal's ticks.
        windows: the billed stretches.
        whole: J of the run.
    """
    steps, spans, blocks = journal.of("step"), journal.of("span"), journal.of("block")
    meters = [
        Metered(series.info, series.track, series.energy_over(windows).value or 0.0)
        for series in ledger.series.values()
    ]
    answer = phase_energy(meters, steps, spans, windows, whole)
    if answer.power and blocks:
        return replace(answer, attribution=f"{answer.attribution}; the blocks were not needed")
    if not blocks:
        repeatable = journal.header.get("corpus") and journal.header.get("ranks", 1) == 1
        return answer if repeatable else replace(answer, attribution=_alone(answer))
    instead = block_energy(blocks, timeline(steps, spans, windows), spans, ledger.total, whole)
    if instead.power:
        return instead
    return replace(answer, attribution=f"{_alone(answer)}; blocks: {instead.attribution}")


def _alone(answer: PhaseEnergy) -> str:
    """The sentence without the hint at blocks, which only a training of our own, of one rank, can repeat."""
    return answer.attribution.removesuffix(f"; {ALTERNATIVE}")
