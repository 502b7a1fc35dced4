"""The stages of `gpu`, each a question that only a GPU can answer, each in a process of its own.

`python -m efftrain_kernels.evidence.stages NAME FOLDER` runs one and writes FOLDER/result.json, anew whenever there is
more to tell, so that a stage which is cut off leaves what it has. A result says whether it is complete and whether all
was right. With `--dry` every stage runs in triton's interpreter on sizes of a few tokens: that shows that the script
works, and nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from efftrain_kernels._kernels import configs
from efftrain_kernels._kernels.configs import Key
from efftrain_kernels.evidence import accuracy, bench, bench_adamw, bench_attention, cases, exact, measure, tune
from efftrain_kernels.evidence.isolated import Failure, outcomes

REPEATS = 100
WORKERS = 12
TASK_S = 120.0  # a kernel whose warps wait for each other for ever is a finding, not the end of its stage
DRY_ARCH = 90


@dataclass
class Stage:
    """One stage under way.

    Attributes:
        name: of `STAGES`.
        folder: where its result is written.
        deadline: `time.monotonic()` when it should end.
        dry: tiny sizes in the interpreter.
        before: the result of an earlier try, or nothing.
        options: what the script gives its stages, by name.
    """

    name: str
    folder: Path
    deadline: float
    dry: bool
    before: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The CUDA device, or the CPU in a dry run."""
        return torch.device("cpu") if self.dry else measure.default_device()

    @property
    def device_name(self) -> str:
        """Such as `NVIDIA H200`."""
        return measure.device_name(self.device)

    def write(self, *, complete: bool, right: bool, **facts: Any) -> None:
        """Write the result as it is now."""
        result = {
            "stage": self.name, "complete": complete, "right": right, "dry": self.dry,
            "device": self.device_name, "versions": measure.versions(),
            "seconds": round(time.monotonic() - self.began, 1), **facts,
        }  # fmt: skip
        draft = self.folder / "result.json.draft"
        draft.write_text(json.dumps(result, indent=1) + "\n")
        draft.replace(self.folder / "result.json")


def run_exact(stage: Stage) -> None:
    """Every configuration of this architecture on integers, the specialised ones first; goes on where it stopped."""
    ptxas = _ptxas()
    before = stage.before if stage.before.get("ptxas") == ptxas else {}
    done: list[str] = list(before.get("done", []))
    wrong: list[str] = list(before.get("wrong", []))
    tried, worst = before.get("tensors", 0), before.get("worst", 0.0)
    tasks = sorted(_exact_tasks(stage), key=lambda task: not task[1].specialised)
    left = [task for task in tasks if _named(task) not in done]
    processes = 0 if stage.dry else min(WORKERS, os.cpu_count() or 1)
    for outcome in outcomes(_exact, left, processes=processes, limit_s=TASK_S):
        findings = outcome.result
        done.append(_named(outcome.task))
        if isinstance(findings, Failure):
            wrong.append(f"{_named(outcome.task)}: {findings.reason}")
        else:
            tried += len(findings)
            worst = max([worst, *(finding.worst for finding in findings)])
            wrong += [_wrong(outcome.task, finding) for finding in findings if not finding.right]
        facts = {"ptxas": ptxas, "configurations": len(done), "tensors": tried, "worst": worst, "wrong": wrong}
        stage.write(complete=len(done) == len(tasks), right=not wrong, **facts, done=done)


def run_newer(stage: Stage) -> None:
    """The same with a newer assembler than triton's own, where this machine has one."""
    found = newer_ptxas()
    if found is None:
        stage.write(complete=True, right=True, skipped="no ptxas newer than triton's own was found")
        return
    os.environ["TRITON_PTXAS_PATH"] = os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(found)
    run_exact(stage)


def run_reference(stage: Stage) -> None:
    """Random numbers against float64: at most twice plain PyTorch's error."""
    dtypes = ("float16",) if stage.dry else ("bfloat16", "float16", "float32")
    tasks = [(kind, index, stage.dry) for kind in dtypes for index, _ in enumerate(_cases(kind, dry=stage.dry))]
    findings: list[dict[str, Any]] = []
    failed: list[str] = []
    processes = 0 if stage.dry else min(WORKERS, os.cpu_count() or 1)
    for done, outcome in enumerate(outcomes(_compare, tasks, processes=processes, limit_s=TASK_S), 1):
        kind, index, dry = outcome.task
        if isinstance(outcome.result, Failure):
            failed.append(f"{kind} {_cases(kind, dry=dry)[index].name}: {outcome.result.reason}")
        else:
            findings += [{**asdict(row), "dtype": kind, "right": row.right} for row in outcome.result]
        wrong = [f"{row['dtype']} {row['case']}: {row['tensor']}" for row in findings if not row["right"]]
        right = not wrong and not failed
        stage.write(complete=done == len(tasks), right=right, wrong=[*failed, *wrong], findings=findings)


def run_determinism(stage: Stage) -> None:
    """Forward, backward and AdamW a hundred times over: every bit the same."""
    repeats, kind = (2, torch.float16) if stage.dry else (REPEATS, torch.bfloat16)
    shapes = cases.cpu_cases()[:1] if stage.dry else [cases.gpu_cases(64)[1], cases.gpu_cases(128)[1]]
    shapes += [] if stage.dry else [case for case in cases.feature_cases() if "shared" in case.name]
    differ = {case.name: accuracy.attention_repeats(case, stage.device, repeats) for case in shapes}
    differ["adamw int8"] = accuracy.adamw_repeats(stage.device, repeats, numel=5000 if stage.dry else 5_000_000)
    stage.write(complete=True, right=not any(differ.values()), repeats=repeats, dtype=str(kind), differing_runs=differ)


def run_tests(stage: Stage) -> None:
    """The tests that are marked for a GPU, where the tests are at hand."""
    folder = Path(__file__).parents[2] / "tests"
    tests = [str(path) for path in sorted(folder.glob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not tests:
        stage.write(complete=True, right=True, skipped=f"no tests in {folder}")
        return
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]
    command = [sys.executable, "-m", "pytest", *(["--version"] if stage.dry else options)]
    limit = max(30.0, stage.deadline - time.monotonic())
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    print(done.stdout, done.stderr, sep="\n")
    stage.write(complete=True, right=done.returncode == 0, last=done.stdout.strip().splitlines()[-3:])


def run_bench(stage: Stage) -> None:
    """A part of the benchmarks; what an earlier try has measured is kept."""
    family, entries = _bench_entries(stage)
    kept = [row for row in stage.before.get("rows", []) if not str(row["error"]).startswith("not run")]
    done = frozenset((row["case"], row["provider"]) for row in kept)
    measured = bench.Bench(stage.device, deadline=stage.deadline, calls=1 if stage.dry else None)
    rows: list[bench.Row] = []

    def write(*, complete: bool) -> None:
        found = bench.report(family, measured, rows)
        stage.write(complete=complete, right=True, **{**found, "rows": [*kept, *found["rows"]]})

    for row in measured.run(entries, done):
        rows.append(row)
        write(complete=False)
    write(complete=not any(str(row.error).startswith("not run") for row in rows))


def run_tune(stage: Stage) -> None:
    """The fastest configuration of each kernel; the file stands beside the result."""
    path = stage.folder / "tuned.json"
    known = {str(key): key for key in configs.keys()}  # noqa: SIM118 (a function)
    kept = [_choice(row, known) for row in stage.before.get("choices", []) if row["key"] in known]
    keys = [Key(DRY_ARCH, "forward", 64, "full", "half")] if stage.dry else tune.choices(stage.device)
    small = {"length": 64, "dtypes": (torch.float16,)} if stage.dry else {}

    def keep(found: list[tune.Choice]) -> None:
        wrong = [f"{row.key}: {why}" for row in found for why in row.rejected.values() if why.startswith("wrong")]
        rows = [_choice_row(choice) for choice in found]
        complete = len(found) == len(keys) and (stage.dry or all(choice.whole for choice in found))
        stage.write(complete=complete, right=not wrong, wrong=wrong, choices=rows, file=json.loads(path.read_text()))

    tune.write(path, measure.device_name(stage.device), kept)
    keep(kept)
    found = tune.tune(
        path=path, device=stage.device, keys=keys, deadline=stage.deadline, before=kept, keep=keep, **small
    )  # fmt: skip
    print(tune.describe(found))


STAGES: dict[str, Callable[[Stage], None]] = {
    "exact": run_exact,
    "tune": run_tune,
    "reference": run_reference,
    "determinism": run_determinism,
    "bench-attention-128": run_bench,
    "bench-adamw": run_bench,
    "bench-attention-64": run_bench,
    "tests": run_tests,
    "bench-attention-features": run_bench,
    "exact-newer-ptxas": run_newer,
}
"""By name, what matters most first; what comes after `tune` runs with what was tuned."""


def newer_ptxas() -> Path | None:
    """The newest assembler of this machine that is newer than triton's own for this GPU; None if there is none."""
    from triton import knobs

    own = _version(Path(knobs.nvidia.ptxas.path))
    places = [Path(part) / "ptxas" for part in os.environ.get("PATH", "").split(os.pathsep)]
    places += [*Path("/usr/local").glob("cuda*/bin/ptxas")]
    for folder in map(Path, sys.path):
        places += [*folder.glob("nvidia/*/bin/ptxas"), *folder.glob("triton/backends/nvidia/bin/ptxas-blackwell")]
    known = {place: _version(place) for place in places if place.is_file()}
    newest = max(known, key=lambda place: known[place], default=None)
    return newest if newest is not None and known[newest] > own else None


def main(stages: Mapping[str, Callable[[Stage], None]] | None = None) -> None:
    """Run one stage of the given ones, or of `STAGES`."""
    stages = stages or STAGES
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=stages)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=450.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--before", type=Path, help="result.json of an earlier try")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the stage")
    chosen = parser.parse_args()
    options = dict(option.split("=", 1) for option in chosen.option)
    before = json.loads(chosen.before.read_text()) if chosen.before else {}
    deadline = time.monotonic() + chosen.seconds
    stages[chosen.name](Stage(chosen.name, chosen.folder, deadline, chosen.dry, before, options))


def _exact_tasks(stage: Stage) -> Iterator[tuple[Key, configs.Config, bool]]:
    arch = DRY_ARCH if stage.dry else configs.architecture(torch.cuda.get_device_capability(stage.device))
    every_key = configs.keys()
    for key in every_key:
        if key.arch == arch and (not stage.dry or (key.block_d, key.kind, key.dtype) == (64, "masked", "half")):
            for config in configs.candidates(key)[: 1 if stage.dry else None]:
                yield key, config, stage.dry


def _exact(task: tuple[Key, configs.Config, bool]) -> list[exact.Finding]:
    key, config, dry = task
    if dry:
        tried = exact.problems(key, length=64, dtypes=(torch.float16,))[:1]
        return exact.try_config(key, config, torch.device("cpu"), tried)
    return exact.try_config(key, config, measure.default_device(), exact.problems(key, length=512))


def _cases(kind: str, *, dry: bool) -> list[cases.Case]:
    return list(accuracy.cases(getattr(torch, kind), small=dry))


def _compare(task: tuple[str, int, bool]) -> list[accuracy.Finding]:
    kind, index, dry = task
    device = torch.device("cpu") if dry else measure.default_device()
    return accuracy.compare(_cases(kind, dry=dry)[index], device)


def _choice_row(choice: tune.Choice) -> dict[str, Any]:
    return {
        "key": str(choice.key), "config": asdict(choice.config),
        "seconds": [[asdict(config), seconds] for config, seconds in choice.seconds.items()],
        "rejected": [[asdict(config), why] for config, why in choice.rejected.items()],
    }  # fmt: skip


def _choice(row: dict[str, Any], known: dict[str, Key]) -> tune.Choice:
    seconds, rejected = ({configs.Config(**config): x for config, x in row[name]} for name in ("seconds", "rejected"))
    return tune.Choice(known[row["key"]], seconds, rejected)


def _named(task: tuple[Key, configs.Config, bool]) -> str:
    return f"{task[0]} {task[1]}"


def _wrong(task: tuple[Key, configs.Config, bool], finding: exact.Finding) -> str:
    return f"{_named(task)}: {finding.tensor} of {finding.problem} is off by {finding.worst:.3g} times the allowed"


def _bench_entries(stage: Stage) -> tuple[bench.Family, list[bench.Entry]]:
    if stage.name == "bench-adamw":
        return "adamw", bench_adamw.entries(stage.device, bench_adamw.tiny_cases() if stage.dry else None)
    part = stage.name.rpartition("-")[2]
    if stage.dry:
        number = {"128": 0, "64": 1}.get(part, 2)
        return "attention", bench_attention.entries(stage.device, cases.cpu_cases()[number : number + 1])
    chosen = cases.feature_cases() if part == "features" else cases.gpu_cases(int(part))
    return "attention", bench_attention.entries(stage.device, chosen)


def _ptxas() -> str:
    from triton import knobs

    return ".".join(map(str, _version(Path(knobs.nvidia.ptxas.path))))


def _version(ptxas: Path) -> tuple[int, ...]:
    """Such as (12, 8, 93); nothing where it does not say."""
    try:
        said = subprocess.run([str(ptxas), "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
        return tuple(int(part) for part in said.rpartition(" V")[2].split()[0].split("."))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()


if __name__ == "__main__":
    main()
