"""Journals with a known answer, written by the writer that runs use."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from efftrain.meters.carbon.footprint import resolve
from efftrain.record.journal import SCHEMA, Journal, JournalWriter, read_journal

S = 1_000_000_000
Line = dict[str, Any]


def _info(name: str = "gpu0", kind: str = "energy", **changed: Any) -> Line:
    component = "cpu" if kind == "cpu_time" else "gpu"
    return {
        "name": name, "component": component, "device": "d", "kind": kind,
        "unit": {"energy": "J", "power": "W"}.get(kind, "s"), "wrap_at": None,
        "watts_per_unit": [4.0, 2.0, 10.0] if kind == "cpu_time" else None,
        "u_relative": 0.0 if kind == "cpu_time" else 0.0255, "period_s": 0.05,
        "method": "assumed" if kind == "cpu_time" else "measured", "source": f"{name} reading", "boundary": "board",
        **changed,
    }  # fmt: skip


def _header(**changed: Any) -> Line:
    return {
        "kind": "header", "t": 0, "schema": SCHEMA, "run_id": "r1", "study_id": "s1", "variant": "baseline", "seed": 1,
        "config": {"steps": 20}, "environment": {"python": "3.11"}, "corpus": {"name": "c", "sha256": "00"},
        "peak": {"device": "D", "dtype": "float32", "flops_per_s": 1e12, "method": "measured", "source": "calibrated"},
        "carbon": resolve(), "sensors": [_info(), _info("cpu", "cpu_time")],
        "absent": [{"component": "dram", "why": "no such counter is readable"}],
        "idle": {"gpu0": {"watts": 30.0, "u_watts": 0.5}}, "parameters": 1000, "teacher": None,
        "clock": {"monotonic_ns": 0, "unix_s": 0.0}, **changed,
    }  # fmt: skip


def _lines() -> list[Line]:
    """A run of 20 steps of 0.5 s on a GPU of 200 W and a CPU with two busy threads.

    Compilation 1 s to 3 s, warm-up 3 s to 5 s, steps from 5 s, evaluations of 1 s after steps 10 and 20: 16 s... in
    all 2 s + 12 s are billed, 14 s: 2800 J on the GPU, 28 CPU seconds, 112 J at 4 W.
    """
    lines = [
        {"kind": "cost", "t": S, "from_step": 1, "phase": phase, "module": module, "op": "aten.mm", "calls": 2,
         "flops": flops, "model_flops": 0 if phase == "recompute" else flops, "bytes": 10}
        for phase, module, flops in
        (("forward", "a", 10**9), ("backward", "a", 2 * 10**9), ("recompute", "b", 10**9))
    ]  # fmt: skip
    predicted = {"peak_bytes": 900, "peak_phase": "backward", "categories": {"parameters": 400}, "source": "tracker"}
    lines.append({"kind": "cost", "t": S, "from_step": 1, "predicted_memory": predicted})
    lines.append({"kind": "memory", "t": 4 * S, "from_step": 1, "peak_bytes": 1000, "peak_phase": "backward",
                  "phases": {"backward": 1000}, "live_before_bytes": 1, "process_peak_bytes": 5000,
                  "source": "profiler"})  # fmt: skip
    lines += [{"kind": "span", "t": S, "t_end": 3 * S, "name": "compile"}]
    lines += [{"kind": "span", "t": 3 * S, "t_end": 5 * S, "name": "warmup"}]
    start = 5 * S
    for step in range(1, 21):
        marks = [["data", start], ["forward", start + S // 20], ["backward", start + S // 5],
                 ["optimizer", start + 9 * S // 20]]  # fmt: skip
        lines.append({"kind": "step", "t": start, "t_end": start + S // 2, "step": step, "tokens": 512,
                      "loss": 7 - step / 10, "phases": marks, "learning_rate": 1e-3, "grad_norm": 1.0})  # fmt: skip
        start += S // 2
        if step % 10 == 0:
            lines.append({"kind": "span", "t": start, "t_end": start + S, "name": "evaluate"})
            start += S
            lines.append({"kind": "evaluation", "t": start, "step": step, "tokens": step * 512,
                          "loss": 7 - step / 10, "stderr": 0.01})  # fmt: skip
    lines.append({"kind": "end", "t": start + S, "status": "complete"})
    for tick in range(19 * 10):
        t = tick * S // 10
        lines.append({"kind": "tick", "t": t, "sensor": "gpu0", "value": 5e4 + 20.0 * tick})
        lines.append({"kind": "tick", "t": t, "sensor": "cpu", "value": 0.2 * tick})
    return sorted(lines, key=lambda line: line.get("t_end", line["t"]))


def _write(path: Path, header: Line, lines: Iterable[Line]) -> None:
    writer = JournalWriter(path, clock=lambda: 0)
    for line in (header, *lines):
        writer.write(**line)
    writer.close()


@pytest.fixture(scope="session")
def info() -> Callable[..., Line]:
    return _info


@pytest.fixture(scope="session")
def header() -> Callable[..., Line]:
    return _header


@pytest.fixture(scope="session")
def run_lines() -> list[Line]:
    return _lines()


@pytest.fixture(scope="session")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Journal]:
    """Write lines through the writer and read them back: `journal(lines, **changes to the header)`."""

    def build(lines: Iterable[Line], **changed: Any) -> Journal:
        path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
        _write(path, _header(**changed), lines)
        return read_journal(path)

    return build


@pytest.fixture(scope="session")
def run_bytes(tmp_path_factory: pytest.TempPathFactory, run_lines: list[Line]) -> bytes:
    """The file of the run of `run_lines`."""
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    _write(path, _header(), run_lines)
    return path.read_bytes()
