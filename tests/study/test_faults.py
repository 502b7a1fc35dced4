"""What goes wrong while a study runs: each fault ends one run, is named in the record, and loses nothing else."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from efftrain.meters.carbon.footprint import resolve
from efftrain.study.collect import collect
from efftrain.study.execute import execute
from efftrain.study.folder import StudyFolder, claim
from efftrain.study.planning.plan import make_plan
from efftrain.study.planning.request import Request
from efftrain.training.config import OptimizerConfig, RunConfig


class Quiet:
    def message(self, text: str) -> None: ...

    def run_started(self, run: Any, index: int, total: int) -> None: ...

    def line(self, line: Any) -> None: ...

    def run_ended(self, run: Any, status: str, detail: str) -> None: ...


def broken(config: RunConfig, variant: str) -> RunConfig:
    if variant == "baseline":  # 5 TB of weights: no machine has them, and the allocator says so at once
        return dataclasses.replace(config, model=dataclasses.replace(config.model, d_ff=10**10))
    if variant == "recompute":
        return dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=None))
    if variant == "pruned":  # a configuration that no model can be built from
        return dataclasses.replace(config, device="cuda:99")
    return config


@pytest.fixture(scope="module")
def faulty_study(text_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    request = Request(
        variants=("baseline", "bf16", "recompute", "pruned", "distilled"), seeds=1, steps=8, data=(str(text_folder),)
    )
    plan = make_plan(request)
    plan = dataclasses.replace(
        plan, runs=tuple(dataclasses.replace(run, config=broken(run.config, run.variant)) for run in plan.runs)
    )
    folder = claim(tmp_path_factory.mktemp("faulty") / "study", force=False)
    outcome = execute(plan, folder, {"carbon": resolve(None, None, None, None)}, Quiet())
    return outcome, collect(folder)


def test_each_fault_has_its_status_and_the_others_run(faulty_study):
    outcome, _ = faulty_study
    assert outcome.statuses == {
        "baseline-s0": "oom", "bf16-s0": "complete", "recompute-s0": "diverged", "pruned-s0": "failed",
    }  # fmt: skip
    assert not outcome.interrupted


def test_a_student_without_its_teacher_is_skipped_with_the_reason(faulty_study):
    outcome, collected = faulty_study
    assert outcome.not_made == {"distilled-s0": "its teacher baseline-s0 did not complete (oom)"}
    (distilled,) = [variant for variant in collected.study.variants if variant.name == "distilled"]
    assert distilled.skipped
    assert "did not complete (oom)" in (distilled.reason or "")


def test_failed_runs_have_records_that_say_why(faulty_study):
    _, collected = faulty_study
    runs = {run.run_id: run for run in collected.runs}
    assert any("loss is not finite" in note for note in runs["recompute-s0"].notes)
    assert runs["pruned-s0"].energy.total.value is None
    (failed,) = [check for check in runs["pruned-s0"].checks if check.status == "failed"]
    said = failed.detail.lower()
    assert "cuda" in said or "nvidia" in said  # torch without CUDA says the one, torch with it and no driver the other
    assert "allocate memory" in " ".join(runs["baseline-s0"].notes)


def wait_for_steps(folder: StudyFolder, run_id: str, steps: int) -> None:
    for _ in range(600):
        path = folder.journal(run_id)
        if path.exists() and path.read_text().count('"kind":"step"') >= steps:
            return
        time.sleep(0.1)
    raise AssertionError(f"{run_id} made no {steps} steps in a minute")


def worker_of(process: Any) -> psutil.Process:
    (worker,) = [child for child in psutil.Process(process.pid).children() if "worker" in " ".join(child.cmdline())]
    return worker


def test_a_killed_study_is_reported_with_all_but_its_last_second(start, efftrain, text_folder: Path, tmp_path: Path):
    folder = StudyFolder(tmp_path / "study")
    process = start(
        "bench", "--variants", "baseline", "--seeds", 1, "--steps", 100_000, "--data", text_folder, "--out", folder.root
    )
    wait_for_steps(folder, "baseline-s0", 20)
    worker = worker_of(process)
    killed_at = time.monotonic_ns()
    worker.kill()
    process.kill()
    process.communicate()
    done = efftrain("report", folder.root)
    assert done.returncode == 0, done.stderr
    run = json.loads(folder.record("baseline-s0").read_text())
    assert run["status"] == "killed"
    last = max(line["t"] for line in map(json.loads, folder.journal("baseline-s0").read_text().splitlines()[:-1]))
    assert killed_at - last < 1_200_000_000
    assert run["steps"] >= 20
    assert run["energy"]["total"]["value"] > 0


def test_a_killed_run_does_not_end_the_study(start, text_folder: Path, tmp_path: Path):
    folder = StudyFolder(tmp_path / "study")
    process = start(
        "bench", "--variants", "baseline,bf16", "--seeds", 1, "--steps", 30, "--data", text_folder,
        "--out", folder.root,
    )  # fmt: skip
    wait_for_steps(folder, "baseline-s0", 2)
    worker_of(process).kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "baseline-s0: killed" in output
    assert json.loads(folder.record("bf16-s0").read_text())["status"] == "complete"


def test_ctrl_c_stops_within_a_step_and_reports(start, efftrain, text_folder: Path, tmp_path: Path):
    folder = StudyFolder(tmp_path / "study")
    process = start(
        "bench", "--variants", "baseline,bf16", "--seeds", 1, "--steps", 100_000, "--data", text_folder,
        "--out", folder.root,
    )  # fmt: skip
    wait_for_steps(folder, "baseline-s0", 5)
    before = folder.journal("baseline-s0").read_text().count('"kind":"step"')
    worker = worker_of(process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not worker.is_running()
    run = json.loads(folder.record("baseline-s0").read_text())
    assert run["status"] == "interrupted"
    assert run["steps"] >= before
    assert (folder.root / "report.html").exists()
    assert not folder.run("bf16-s0").exists()
    assert "--resume" in output


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_ctrl_c_in_a_runs_first_seconds_ends_the_study(start, text_folder: Path, tmp_path: Path, seconds: float):
    folder = StudyFolder(tmp_path / "study")
    process = start(
        "bench", "--variants", "baseline,bf16", "--seeds", 1, "--steps", 100_000, "--data", text_folder,
        "--out", folder.root,
    )  # fmt: skip
    for _ in range(600):
        if folder.log("baseline-s0").exists():
            break
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert json.loads(folder.record("baseline-s0").read_text())["status"] == "interrupted"
    assert not folder.run("bf16-s0").exists()
    study = json.loads(folder.study.read_text())
    (bf16,) = [variant for variant in study["variants"] if variant["name"] == "bf16"]
    assert bf16["reason"] == "the study ended before its turn"


def test_a_run_whose_study_is_gone_stops_by_itself(start, text_folder: Path, tmp_path: Path):
    folder = StudyFolder(tmp_path / "study")
    process = start(
        "bench", "--variants", "baseline", "--seeds", 1, "--steps", 100_000, "--data", text_folder, "--out", folder.root
    )
    wait_for_steps(folder, "baseline-s0", 2)
    worker = worker_of(process)
    process.kill()
    process.communicate()
    for _ in range(100):
        if not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert folder.journal("baseline-s0").read_text().rstrip().endswith("}")
    assert '"status":"interrupted"' in folder.journal("baseline-s0").read_text()
