"""The script for a GPU's energy counter: what its verdicts are worth, and that it runs where no GPU is."""

import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from nvml_driver import Device, World, constant, square

ROOT = Path(__file__).parents[2]
TICK_S = 0.04


@pytest.fixture(autouse=True)
def truth(monkeypatch):
    """The package, which stands beside the tests."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def seen_by_phase(tmp_path: Path, window_s: float | None) -> list[float]:
    """Mean W by the counters of eight boards, each with the same wave an eighth of a tick later."""
    from benchmarks.gpu_truth.sensors import series_of, watched
    from benchmarks.gpu_truth.verdicts import mean_watts
    from efftrain.sensors.nvml import find_gpus

    waves = [square(TICK_S, 100, 500, phase_s=(phase + 0.3) * TICK_S / 8) for phase in range(8)]
    world = World([Device(wave, tick_s=TICK_S, counter_window_s=window_s) for wave in waves])
    with world.installed():
        found, absent = find_gpus(None)
        assert not absent
        counters = [sensor for sensor in found if sensor.info.kind == "energy"]
        with watched(tmp_path / "watched.jsonl", counters, period_s=0.004):
            start = time.monotonic_ns()
            time.sleep(1.0)
            end = time.monotonic_ns()
        for sensor in found:
            sensor.close()
    watts = mean_watts(series_of(tmp_path / "watched.jsonl"), (start, end))
    return [w for w in watts.values() if w is not None]


@pytest.mark.parametrize(("looks", "share"), [(1.0, 1.0), (0.75, 0.75), (0.25, 0.5)])
def test_a_counter_that_looks_part_of_the_time_is_found(tmp_path, looks, share):
    """Simulated boards look during a known share of each tick; below a half the swing says no more than `half`."""
    from benchmarks.gpu_truth.verdicts import part_time

    means = seen_by_phase(tmp_path, None if looks == 1.0 else looks * TICK_S)
    assert len(means) == 8
    found = part_time(means, [0.5] * 8, 100.0, 500.0)
    assert found["full_time"] == (looks == 1.0)
    assert found["share"] == pytest.approx(share, abs=0.08)
    words = {1.0: "looks all the time", 0.75: "part of the time, about", 0.25: "perhaps half or less"}
    assert words[looks] in found["verdict"]


def test_what_the_load_itself_differed_by_is_not_the_counters():
    from benchmarks.gpu_truth.verdicts import part_time

    duties = [0.4, 0.5, 0.6, 0.5, 0.45, 0.55, 0.5, 0.5]
    assert part_time([100 + 400 * duty for duty in duties], duties, 100, 500)["swing"] == pytest.approx(0)
    assert part_time([300] * 3, [0.5] * 3, 100, 500)["full_time"] is None
    assert part_time([300] * 8, [0.5] * 8, 100, 100)["full_time"] is None


def test_a_boards_three_readings_agree_with_what_it_draws(tmp_path):
    from benchmarks.gpu_truth.sensors import open_board, series_of, watched
    from benchmarks.gpu_truth.verdicts import mean_watts, ratios, rhythms, tick_facts
    from efftrain.record.journal import read_journal

    world = World([Device(square(0.2, 200, 300), tick_s=TICK_S, power_gain=1.1), Device(constant(50))])
    with world.installed():
        sensors = open_board()
        with watched(tmp_path / "watched.jsonl", sensors):
            start = time.monotonic_ns()
            time.sleep(1.5)
            end = time.monotonic_ns()
        for sensor in sensors:
            sensor.close()
    assert [sensor.info.name for sensor in sensors] == ["counter", "instant", "average"]
    series = series_of(tmp_path / "watched.jsonl")
    watts = mean_watts(series, (start, end))
    assert watts["counter"] == pytest.approx(world.true_energy(0, start, end) / (end - start) * 1e9, rel=0.03)
    assert ratios(watts)["average"] == pytest.approx(1.1, rel=0.03)
    facts = tick_facts(series["counter"].track)
    assert facts["period_s"] == pytest.approx(TICK_S, rel=0.01)
    assert rhythms(read_journal(tmp_path / "watched.jsonl").of("tick"))["counter"]["median_gap_s"] == pytest.approx(
        TICK_S, rel=0.1
    )
    assert (tmp_path / "watched.jsonl.gz").exists()


def test_joules_per_step_of_a_steady_load():
    """100 W and a step of 0.25 s are 25 J, however windows cut steps; a window holds whole ticks."""
    from benchmarks.gpu_truth.verdicts import joules_per_step, scatter, windows_at_ticks
    from efftrain.meters.energy.ticks import Track

    tick_ns = 30_000_000
    track = Track([k * tick_ns for k in range(400)], [3.0 * k for k in range(400)])
    ends = [k * 250_000_000 for k in range(45)]
    windows = windows_at_ticks(track, 1.0, (ends[0], ends[-1]))
    assert len(windows) == 10
    assert all(end - start == 34 * tick_ns for (start, end), _ in windows)
    assert all(a[0][1] == b[0][0] for a, b in itertools.pairwise(windows))
    steps = joules_per_step(windows, ends)
    assert steps == pytest.approx([25.0] * 10)
    assert scatter(steps)["relative_sd"] == pytest.approx(0, abs=1e-9)
    assert scatter([9.0, 11.0])["relative_sd"] == pytest.approx(2**0.5 / 10)
    assert scatter([1.0])["mean"] is None


def test_resolution_is_the_unit_of_all_steps():
    from benchmarks.gpu_truth.verdicts import tick_facts
    from efftrain.meters.energy.ticks import Track

    steps = Track([0, 10, 20, 30, 40], [0.0, 0.012, 0.03, 0.036, 0.054])
    assert tick_facts(steps)["resolution_j"] == 0.006
    assert tick_facts(Track([0, 10], [0.0, 1.0]))["period_s"] is None


@pytest.fixture
def command(tmp_path):
    """Run the script as on the target, where neither pydantic nor codecarbon is installed."""
    for name in ("pydantic", "codecarbon"):
        package = tmp_path / "without" / name / "__init__.py"
        package.parent.mkdir(parents=True)
        package.write_text(f"raise ModuleNotFoundError('{name} is not installed here', name='{name}')\n")
    bare = {**os.environ, "PYTHONPATH": str(tmp_path / "without"), "OMP_NUM_THREADS": "1"}

    def run(*arguments: object, complete: bool = False) -> subprocess.CompletedProcess[str]:
        environ = dict(os.environ) if complete else bare
        line = [sys.executable, "-m", "benchmarks.gpu_truth", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, env=environ, cwd=ROOT, check=False, timeout=600)

    return run


def test_stages_of_the_counter_run_dry_without_pydantic(command, tmp_path):
    out = tmp_path / "found"
    done = command("run", "--dry", "--out", out, "--stage", "counter", "--stage", "agreement")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["agreement.tar.gz", "counter.tar.gz", "truth.json"]
    found = json.loads((out / "truth.json").read_text())["stages"]
    assert all(stage["dry"] and stage["complete"] for stage in found.values())
    idle = found["counter"]["idle_with_context"]["idle"]
    assert idle["average"]["watts"] == pytest.approx(100)
    assert found["agreement"]["rows"]["full"]["watts"]["counter"] == pytest.approx(500, rel=0.1)
    with tarfile.open(out / "agreement.tar.gz") as archive:
        assert "kept/steady-half.jsonl.gz" in archive.getnames()


def test_faults_of_the_command_line_are_said_in_one_line(command, tmp_path):
    done = command("run", "--out", tmp_path / "found")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("the first board has no energy counter; --dry runs the script without one") or "NVML" in line
    done = command("run", "--dry", "--out", tmp_path / "found", "--stage", "meter")
    assert done.stderr.startswith("gpu_truth: --stage meter: no such stage; choose from counter, ")


@pytest.mark.slow
def test_the_whole_script_runs_dry_and_its_studies_are_rendered(command, tmp_path):
    plans, out, reports = tmp_path / "plans", tmp_path / "found", tmp_path / "reports"
    assert command("prepare", "--dry", "--steps", 6, "--out", plans, complete=True).returncode == 0
    first = command("run", "--dry", "--out", out, "--plans", plans, "--stage", "study-small", "--stage-s", 41)
    assert first.returncode == 0, first.stdout + first.stderr
    done = command("run", "--dry", "--out", out, "--plans", plans)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all stages are done" in done.stdout
    assert command("collect", out, reports, complete=True).returncode == 0
    for name, runs in (("study-small", 3), ("study-1b", 1)):
        line = [sys.executable, "-c", "from efftrain.cli import main; main()", "report", str(reports / name)]
        assert subprocess.run(line, capture_output=True, check=False).returncode == 0
        assert len(json.loads((reports / name / "study.json").read_text())["runs"]) == runs
        assert (reports / name / "report.html").exists()
    teacher = json.loads((reports / "study-small" / "runs" / "baseline-s0" / "run.json").read_text())
    pupil = json.loads((reports / "study-small" / "runs" / "distilled-s0" / "run.json").read_text())
    assert pupil["teacher"]["training_energy"]["value"] == pytest.approx(teacher["energy"]["total"]["value"])
