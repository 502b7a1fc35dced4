"""`efftrain doctor`: what can be measured on this machine, and what would cure the rest."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from efftrain.sensors.discover import Finding


def doctor(
    seconds: Annotated[float, typer.Option(help="How long each sensor is looked at.", min=0.1, max=60.0)] = 1.0,
) -> None:
    """Look at every sensor: what was read, or why not and the command that cures it."""
    from rich.table import Table

    from efftrain.cli.progress import console
    from efftrain.hardware.probe import available_device
    from efftrain.monitor.machine import environment, find_sensors
    from efftrain.sensors.discover import examine

    chosen = available_device("auto")
    facts = environment(chosen)
    cpu = facts["cpu"]
    guest = ", a virtual machine" if cpu["guest"] else ""
    console().print(f"device {chosen}; {cpu['model']}, {cpu['threads']} threads{guest}", highlight=False)
    for gpu in facts["devices"]:
        console().print(f"{gpu['name']} {gpu['uuid']}", highlight=False)
    discovery = find_sensors(None)
    table = Table("sensor", "part", "read", "ticks every", "how", "source, or why not and what cures it")
    for finding in examine(discovery, seconds=seconds):
        table.add_row(*_row(finding))
    for sensor in discovery.sensors:
        sensor.close()
    console().print(table)


def _row(finding: "Finding") -> tuple[str, ...]:
    read = "nothing" if finding.value is None else f"{finding.value:.3g} {finding.unit} in {finding.duration_s:.1f} s"
    tick = "" if finding.tick_period_s is None else f"{finding.tick_period_s * 1e3:.0f} ms"
    cure = f"\ncure: {finding.cure}" if finding.cure else ""
    return finding.name, finding.component, read, tick, finding.method, finding.detail + cure
