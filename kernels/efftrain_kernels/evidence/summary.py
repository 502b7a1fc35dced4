"""The results of `gpu` as Markdown: what was right, which aims are met, and every measured figure in tables.

A speed is a ratio of medians; its range takes one side's 20th percentile with the other's 80th, so an aim inside the
range is not settled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from efftrain_kernels.evidence.table import number

OURS, CUDNN, FLASH, FUSED = "efftrain triton", "sdpa cudnn", "sdpa flash", "torch fused"
ADAMW, ADAMW_BF16, BOTH = "efftrain", "efftrain bf16 moments", "forward+backward"
CALLS = ("forward", "backward", BOTH)

Row = dict[str, Any]
Range = tuple[float, float, float]
"""Low, median, high."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What the kernels are built for.

    Attributes:
        text: in words.
        least: that is to be reached.
        ours: our provider.
        call: which call is looked at.
        applies: to which cases.
        theirs: whose time is divided by ours; None for our share of the measured ceiling.
    """

    text: str
    least: float
    ours: str
    call: str
    applies: Callable[[str], bool]
    theirs: str | None = None


AIMS = (
    Aim(
        "causal attention of width 128 at 4k to 16k at least as fast as cuDNN's", 1.0, OURS, BOTH,
        lambda case: case in {f"D128 causal {n}k" for n in (4, 8, 16)}, CUDNN,
    ),
    Aim("attention at least 1.3 times as fast as FlashAttention-2's", 1.3, OURS, BOTH, lambda _: True, FLASH),
    Aim("AdamW at 90 % of the copy's rate or more", 0.9, ADAMW, "step", lambda case: case.startswith("1b")),
    # Of the same formats: beside bfloat16 parameters torch keeps its moments in bfloat16, ours are float32 by default.
    Aim("AdamW no slower than torch's fused", 1.0, ADAMW, "step", lambda case: "fp32" in case, FUSED),
    Aim("AdamW no slower than torch's fused", 1.0, ADAMW_BF16, "step", lambda case: "bf16" in case, FUSED),
)  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """The summary file's content as Markdown.

    Args:
        document: as `gpu.summarise` writes it.
    """
    stages: dict[str, Row] = document["stages"]
    rows = [row for result in stages.values() for row in result.get("rows", [])]
    measured = [row for row in rows if row["error"] is None]
    parts = [f"# Kernels on {', '.join(document['devices']) or 'no device'}", *_versions(stages)]
    if any(result.get("dry") for result in stages.values()):
        parts.append("**A dry run on a CPU: no figure here means anything.**")
    parts += ["## Right or wrong", _table(("stage", "outcome", "what"), [_stage(*item) for item in stages.items()])]
    judged = [line for aim in AIMS for line in _judge(aim, measured)]
    parts += ["## Aims", _table(("aim", "case", "reached", "verdict"), judged)]
    for call in CALLS:
        parts += _rates(call, [row for row in measured if row["call"] == call])
    parts += _steps([row for row in measured if row["call"] == "step"])
    parts += _joules([row for row in measured if row["joules"]["value"] is not None])
    parts += _choices(stages.get("tune", {}).get("choices", []))
    failed = [f"- {row['case']}, {row['provider']}, {row['call']}: {row['error']}" for row in rows if row["error"]]
    if failed:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _versions(stages: dict[str, Row]) -> Iterator[str]:
    found = [result["versions"] for result in stages.values() if "versions" in result]
    if found:
        yield ", ".join(f"{name} {version}" for name, version in found[-1].items() if version)
    ceilings = [result["ceilings"] for result in stages.values() if "ceilings" in result]
    if ceilings:
        matrix, copy = (max(c[name] for c in ceilings) for name in ("matrix_flops_per_s", "copy_bytes_per_s"))
        yield f"Measured ceilings: {matrix / 1e12:.4g} TFLOP/s in a matrix product, {copy / 1e12:.4g} TB/s in a copy."


def _stage(name: str, result: Row) -> tuple[str, ...]:
    outcome = ("right" if result.get("right") else "WRONG") + ("" if result.get("complete") else ", not complete")
    told = [str(result[key]) for key in ("skipped", "error") if key in result]
    if "tensors" in result:
        told.append(
            f"{result['configurations']} configurations, {result['tensors']} tensors, at worst {result['worst']:.2f} of"
            f" what rounding allows, ptxas {result['ptxas']}"
        )
    if "differing_runs" in result:
        told.append(f"{sum(result['differing_runs'].values())} of {result['repeats']} repetitions differ")
    told += [str(line) for line in result.get("wrong", [])]
    return name, outcome, "; ".join(told)


def _judge(aim: Aim, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    by_name = {(row["case"], row["provider"]): row for row in rows if row["call"] == aim.call}
    for (case, provider), ours in by_name.items():
        if provider != aim.ours or not aim.applies(case):
            continue
        theirs = by_name.get((case, aim.theirs or ""))
        if aim.theirs and theirs is None:
            yield aim.text, case, f"{aim.theirs} has no figure", "not known"
            continue
        low, middle, high = _reached(ours, theirs)
        verdict = "met" if low >= aim.least else "missed" if high < aim.least else "not settled"
        yield aim.text, case, f"{middle:.2f} [{low:.2f}, {high:.2f}]", verdict


def _reached(ours: Row, theirs: Row | None) -> Range:
    mine = ours["latency"]
    if theirs is None:
        share = ours["ceiling_share"] * mine["p50_s"]
        return share / mine["p80_s"], share / mine["p50_s"], share / mine["p20_s"]
    other = theirs["latency"]
    return other["p20_s"] / mine["p80_s"], other["p50_s"] / mine["p50_s"], other["p80_s"] / mine["p20_s"]


def _rates(call: str, rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    who = list(dict.fromkeys(row["provider"] for row in rows))
    cells = {(row["case"], row["provider"]): f"{row['rate'] / 1e12:.3g} ({row['ceiling_share']:.0%})" for row in rows}
    yield f"## Attention, {call}: TFLOP/s (share of the measured ceiling)"
    lines = [(case, *(cells.get((case, name), "") for name in who)) for case in dict.fromkeys(r["case"] for r in rows)]
    yield _table(("case", *who), lines)


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## AdamW, one step"
    lines = [
        (
            row["case"], row["provider"],
            "{1:.4g} [{0:.4g}, {2:.4g}]".format(*(1e3 * row["latency"][f"p{level}_s"] for level in (20, 50, 80))),
            f"{row['settings']['bytes_per_parameter']:.4g}", f"{row['rate'] / 1e9:.4g}", f"{row['ceiling_share']:.0%}",
            number(max(row["max_error"].values(), default=None), ".2g"),
        )
        for row in rows
    ]  # fmt: skip
    yield _table(("case", "optimizer", "ms [20 %, 80 %]", "bytes a parameter", "GB/s", "of the copy", "error"), lines)


def _joules(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield "## Joules a call"
        lines = [(r["case"], r["provider"], r["call"], number(r["joules"]["value"], ".4g")) for r in rows]
        yield _table(("case", "provider", "call", "J"), lines)


def _choices(choices: Sequence[Row]) -> Iterator[str]:
    if not choices:
        return
    yield "## Tuning: medians in ms, the fastest of each first"
    lines = []
    for choice in choices:
        timed = sorted(choice["seconds"], key=lambda pair: pair[1])
        told = ", ".join(f"{_shape(config)}: {1e3 * seconds:.4g}" for config, seconds in timed)
        out = "; ".join(f"{_shape(config)}: {why}" for config, why in choice["rejected"])
        lines.append((choice["key"], told, out))
    yield _table(("kernel", "measured", "left out"), lines)


def _shape(config: Row) -> str:
    from efftrain_kernels._kernels.configs import Config

    return str(Config(**config))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
