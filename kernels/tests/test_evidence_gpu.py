"""The script for a GPU: it goes on where it stopped, survives what its stages do, and runs dry without a GPU."""

import json
import subprocess
import sys
import tarfile

import pytest

from efftrain_kernels._kernels import configs
from efftrain_kernels.evidence import gpu, stages, tune

FAKE = """
import json, sys, time
from pathlib import Path
name, folder, before = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[4]).read_text())
print("the log of", name)
result = {"stage": name, "complete": True, "right": True, "device": "a board", "tries": before.get("tries", 0) + 1}
if name == "exact" and not before:
    result["complete"] = False
if name == "reference":
    result |= {"right": False, "wrong": ["dq of D64"]}
if name != "determinism":
    (folder / "result.json").write_text(json.dumps(result))
if name == "determinism":
    print("RuntimeError: illegal memory access")
    sys.exit(3)
if name == "tests":
    time.sleep(60)
if name == "tune":
    (folder / "tuned.json").write_text("{}")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Stages that answer as told above, in place of the real ones."""
    (tmp_path / "fake_stages.py").write_text(FAKE)
    monkeypatch.setattr(gpu, "STAGES_MODULE", "fake_stages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "out"


def test_stages_that_are_done_are_skipped(fake, capsys):
    assert gpu.run(["bench-adamw"], out=fake, dry=True) == 0
    assert gpu.run(["bench-adamw"], out=fake, dry=True) == 0
    assert "bench-adamw: done before" in capsys.readouterr().out
    assert gpu.read(fake, "bench-adamw")["tries"] == 1


def test_a_stage_goes_on_from_what_it_left(fake, capsys):
    assert gpu.run(["exact"], out=fake, dry=True) == 0
    assert "left for the next call: exact" in capsys.readouterr().out
    gpu.run(["exact"], out=fake, dry=True)
    assert gpu.read(fake, "exact") == {
        "stage": "exact", "complete": True, "right": True, "device": "a board", "tries": 2,
    }  # fmt: skip


def test_what_is_wrong_is_said_and_returned(fake, capsys):
    assert gpu.run(["reference", "bench-adamw"], out=fake, dry=True) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said
    assert "dq of D64" in said
    assert "bench-adamw: right" in said


def test_a_stage_that_dies_is_wrong_and_not_done(fake):
    assert gpu.run(["determinism"], out=fake, dry=True) == 1
    result = gpu.read(fake, "determinism")
    assert not result["complete"]
    assert result["error"] == "its process ended with status 3: RuntimeError: illegal memory access"


def test_a_stage_that_outlives_its_time_keeps_what_it_wrote(fake, monkeypatch):
    monkeypatch.setattr(gpu, "STAGE_S", 2.0)
    assert gpu.run(["tests"], out=fake, budget_s=2.0, dry=True) == 0
    result = gpu.read(fake, "tests")
    assert (result["complete"], result["right"], result["tries"]) == (False, True, 1)
    assert result["error"] == "stopped after 2 s"


def test_nothing_is_begun_without_time(fake):
    assert gpu.run(["exact"], out=fake, budget_s=0.0, dry=True) == 0
    assert not (fake / "stages").exists()


def test_archives_hold_result_and_log_and_one_file_holds_all(fake):
    gpu.run(["exact", "tune"], out=fake, dry=True)
    with tarfile.open(fake / "stages" / "exact.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["log.txt", "result.json"]
        log = archive.extractfile("log.txt")
        assert log is not None
        assert log.read() == b"the log of exact\n"
    found = json.loads((fake / "kernels.json").read_text())
    assert found["devices"] == ["a board"]
    assert set(found["stages"]) == {"exact", "tune"}
    assert (fake / "tuned.json").exists()
    assert not list(fake.rglob("*.draft"))
    assert (fake / "kernels.md").read_text().startswith("# Kernels on a board\n")


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--stage exactly: no such stage; choose from exact, tune"):
        gpu.run(["exactly"], out=tmp_path, dry=True)


def test_without_a_gpu_it_says_how_to_run_dry(capsys, monkeypatch):
    from efftrain_kernels.evidence.__main__ import main

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err == (
        "efftrain_kernels.evidence: there is no CUDA device here; --dry runs the script without one\n"
    )


def test_a_newer_assembler_is_newer(monkeypatch, tmp_path):
    from triton import knobs

    def tool(name, version):
        path = tmp_path / name / "ptxas"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release x, V{version}'\n")
        path.chmod(0o755)
        return path

    old, new = tool("old", "11.0.1"), tool("new", "99.10.2")
    tool("broken", "unknown")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("old", "new", "broken")))
    assert stages.newer_ptxas() == new
    new.unlink()
    own = stages._version(stages.Path(knobs.nvidia.ptxas.path))
    assert own > stages._version(old)
    monkeypatch.setattr(stages.Path, "glob", lambda *_: [])
    assert stages.newer_ptxas() is None


def test_what_was_tuned_before_is_kept():
    key, other = configs.Key(90, "keys", 64, "full", "half"), configs.Config(1, 2, 4, 3)
    config = configs.candidates(key)[0]
    choice = tune.Choice(key, {config: 0.25}, {other: "wrong"})
    row = json.loads(json.dumps(stages._choice_row(choice)))
    assert stages._choice(row, {str(key): key}) == choice


@pytest.mark.slow
def test_the_whole_script_runs_dry(tmp_path):
    command = [sys.executable, "-m", "efftrain_kernels.evidence", "gpu", "--dry", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--budget-s", "900"], capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all stages are done" in done.stdout
    found = json.loads((tmp_path / "kernels.json").read_text())["stages"]
    assert set(found) == set(stages.STAGES)
    assert all(result["complete"] and result["right"] and result["dry"] for result in found.values())
    assert found["exact"]["tensors"] > 0
    rows = [row for name, result in found.items() if name.startswith("bench") for row in result["rows"]]
    ours = [row for row in rows if row["provider"] == "efftrain triton, interpreted"]
    assert ours
    assert all(row["error"] is None for row in ours)
    read = (tmp_path / "kernels.md").read_text()
    assert "**A dry run on a CPU: no figure here means anything.**" in read
    assert "## Attention, forward+backward: TFLOP/s" in read
    assert "## AdamW, one step" in read
