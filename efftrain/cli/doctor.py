"""`efftrain doctor`: what can be measured on this machine, how well, and what would cure the rest."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from efftrain.sensors.examine import Finding


def doctor(
    seconds: Annotated[float, typer.Option(help="How long each sensor is looked at.", min=0.1, max=60.0)] = 3.0,
) -> None:
    """Test every sensor: what it read, how often and finely it moves; or why not, and the command that cures it."""
    from rich.table import Table

    from efftrain.cli.progress import console
    from efftrain.hardware.probe import available_device
    from efftrain.monitor.machine import environment, find_sensors
    from efftrain.sensors.examine import examine

    chosen = available_device("auto")
    facts = environment(chosen)
    cpu = facts["cpu"]
    guest = ", a virtual machine" if cpu["guest"] else ""
    console().print(f"device {chosen}; {cpu['model']}, {cpu['threads']} threads{guest}", highlight=False)
    for gpu in facts["devices"]:
        console().print(f"{gpu['name']} {gpu['uuid']}", highlight=False)
    discovery = find_sensors(None)
    table = Table("sensor", "part", "power now", "moves", "how", "source, or why not and what cures it")
    for finding in examine(discovery, seconds=seconds):
        table.add_row(*_row(finding))
    for sensor in discovery.sensors:
        sensor.close()
    console().print(table)
    console().print("Power now is the idle power where nothing runs.", highlight=False)


def _row(finding: "Finding") -> tuple[str, ...]:
    cure = f"\ncure: {finding.cure}" if finding.cure else ""
    return finding.name, finding.component, _power(finding), _moves(finding), finding.method, finding.detail + cure


def _power(finding: "Finding") -> str:
    if finding.value is None:
        return "nothing"
    if finding.watts is None:
        return f"{finding.value:.3g} {finding.unit} in {finding.duration_s:.1f} s"
    ratio = finding.against_counter
    return f"{finding.watts:.3g} W" + ("" if ratio is None else f"\n{ratio - 1:+.1%} against its counter")


def _moves(finding: "Finding") -> str:
    """The rhythm of a sensor: `every 100 ms ± 0.4 ms by 6 J`; nothing for one that stands still or never does."""
    if finding.tick_period_s is None or finding.resolution is None:
        return ""
    jitter = "" if finding.jitter_s is None else f" ± {finding.jitter_s * 1e3:.1f} ms"
    return f"every {finding.tick_period_s * 1e3:.0f} ms{jitter}\nby {finding.resolution:.2g} {finding.unit} or more"
