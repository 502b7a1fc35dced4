"""`efftrain run` as a shell meets it: streams, signals, exit status, and the bill of a whole process tree."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from efftrain.record.folder import StudyFolder
from efftrain.record.journal import read_journal
from efftrain.record.schema import Run, load
from efftrain.study.collect import collect

EFFTRAIN = [sys.executable, "-c", "from efftrain.cli import main; main()", "run"]
BURN = "import time\nwhile time.process_time() < {}: pass"


def efftrain_run(*arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [*EFFTRAIN, *arguments]
    return subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, timeout=120, check=False)


@dataclass
class Done:
    """A command that was run once, for many tests: what it did, and the record of it."""

    process: subprocess.CompletedProcess[str]
    folder: Path
    record: dict[str, Any]


TREE = f"""
cat
echo to-stderr >&2
{sys.executable} -c '{BURN.format(1)}' &
( {sys.executable} -c '{BURN.format(1)}' & ) # its parent ends at once
wait
sleep 0.6
exit 7
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    cwd = tmp_path_factory.mktemp("run")
    options = ["--json", "--country", "FRA", "--name", "tree", "--out", "here", "--device", "cpu"]
    process = efftrain_run(*options, "--", "bash", "-c", TREE, cwd=cwd, text="from stdin\n")
    return Done(process, cwd / "here", json.loads(process.stdout))


def test_the_exit_status_is_the_commands(done: Done):
    assert done.process.returncode == 7
    assert done.record["status"] == "failed"
    assert "failed: exit status 7" in done.record["notes"]


def test_json_is_one_line_and_all_else_is_on_standard_error(done: Done):
    assert done.process.stdout.count("\n") == 1
    assert done.record == json.loads((done.folder / "runs/tree/run.json").read_text())
    for part in ("from stdin", "to-stderr", "efftrain: tree: failed", "CO₂e", "report.html"):
        assert part in done.process.stderr


def test_the_record_of_a_command(done: Done):
    record = done.record
    assert (record["schema"], record["steps"], record["variant"]) == ("efftrain.run/1", 0, "tree")
    assert record["config"]["command"][0] == "bash"
    assert record["carbon"]["location"] == "France"
    assert record["time"]["total"]["value"] > 1.0
    assert record["energy"]["total"]["value"] > 0
    assert record["energy"]["total"]["value"] == pytest.approx(
        sum(part["value"] or 0 for part in record["energy"]["components"].values())
    )
    for name in ("study.json", "report.html", "report.md", "runs.csv", "steps.parquet"):
        assert (done.folder / name).stat().st_size > 0


def test_orphans_count_and_are_seen_while_they_run(done: Done):
    ticks = [
        t for t in read_journal(done.folder / "runs/tree/journal.jsonl").of("tick") if t["sensor"] == "process-tree"
    ]
    if not ticks:
        pytest.skip("this machine's processor has a counter of its own")
    seconds = [tick["value"] for tick in ticks]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(2.05, abs=0.25)  # twice a second, and the start of two interpreters
    assert any(0.2 < value < 1.8 for value in seconds)


def test_report_makes_the_same_record_again(done: Done, tmp_path: Path):
    copy = shutil.copytree(done.folder, tmp_path / "here")
    assert json.loads(collect(StudyFolder(copy)).runs[0].model_dump_json(by_alias=True)) == done.record


def test_streams_pass_untouched(tmp_path: Path):
    done = efftrain_run("--device", "cpu", sys.executable, "-c", "print(input()[::-1])", cwd=tmp_path, text="abc\n")
    assert (done.returncode, done.stdout) == (0, "cba\n")
    folder = next((tmp_path / "efftrain-runs").iterdir())
    assert folder.name.startswith(f"{Path(sys.executable).name}-2")
    assert load(next(folder.glob("runs/*/run.json")), Run).status == "complete"


def test_the_grid_must_be_known_before_the_command_starts(tmp_path: Path):
    for arguments, words in (
        (["--country", "FRX"], "FRX"), (["--device", "tpu"], "cuda:N"), (["--name", "a/b"], "slash"),
        (["--out", "."], "--out ."), (["--node-overhead-w", "-1"], "at least 0"), (["--frobnicate"], "--frobnicate"),
    ):  # fmt: skip
        (tmp_path / "there").touch()
        done = efftrain_run(*arguments, "--", "touch", "started", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
        assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/hostname", 126)])
def test_a_command_that_cannot_start(tmp_path: Path, command: str, status: int):
    done = efftrain_run("--device", "cpu", "--", command, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (status, 1, "")
    assert command in done.stderr
    assert list(tmp_path.glob("efftrain-runs/*")) == []


def _wait_for(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


COUNT_SIGNALS = """
import pathlib, signal, time
count = 0
def add(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, add)
signal.signal(signal.SIGTERM, add)
pathlib.Path("ready").touch()
end = time.monotonic() + 20
while not count and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path("count").write_text(str(count))
raise SystemExit(40 + count)
"""


def test_a_signal_to_the_runner_is_handed_on(tmp_path: Path):
    process = subprocess.Popen([*EFFTRAIN, "--device", "cpu", sys.executable, "-c", COUNT_SIGNALS], cwd=tmp_path)
    _wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 41
    assert (tmp_path / "count").read_text() == "1"


def test_ctrl_c_reaches_the_command_once(tmp_path: Path):
    """On a terminal of its own: the terminal sends SIGINT to both, and the record is written all the same."""
    master, slave = pty.openpty()
    script = tmp_path / "count.py"
    script.write_text(COUNT_SIGNALS)
    take_terminal = "import os, fcntl, termios, sys; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    start = f"{take_terminal} os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", start, *EFFTRAIN, "--device", "cpu", sys.executable, str(script)]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave)
    try:
        _wait_for((tmp_path / "ready").exists)
        os.write(master, b"\x03")
        _wait_for(lambda: process.poll() is not None or not _drain(master))
        assert process.wait(60) == 41
    finally:
        os.close(master)
        os.close(slave)
    assert (tmp_path / "count").read_text() == "1"
    assert load(next(tmp_path.glob("efftrain-runs/count-*/runs/count/run.json")), Run).status == "interrupted"


def _drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b"."


def test_death_by_signal_is_128_and_the_number(tmp_path: Path):
    done = efftrain_run("--device", "cpu", "--", "bash", "-c", "kill -9 $$", cwd=tmp_path)
    assert done.returncode == 128 + 9
    record = load(next(tmp_path.glob("efftrain-runs/*/runs/bash/run.json")), Run)
    assert record.status == "failed"
    assert "failed: ended by SIGKILL" in record.notes


def test_a_killed_runner_leaves_a_bill(tmp_path: Path):
    command = [*EFFTRAIN, "--device", "cpu", "--out", "killed", "sleep", "30"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed/runs/sleep/journal.jsonl"
    _wait_for(lambda: journal.exists() and journal.read_text().count("whole"))
    began = time.monotonic()
    time.sleep(1.5)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.kill()
    process.wait()
    os.kill(child, signal.SIGTERM)
    run = collect(StudyFolder(tmp_path / "killed")).runs[0]
    assert run.status == "killed"
    assert run.time.total.value == pytest.approx(time.monotonic() - began, abs=1.0)


def test_nobody_listens(tmp_path: Path):
    """Standard output and error are pipes without readers: status and record are there all the same."""
    out, error = os.pipe(), os.pipe()
    command = [*EFFTRAIN, "--json", "--device", "cpu", "--out", "here", "--", "bash", "-c", "exit 5"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=out[1], stderr=error[1])
    for descriptor in (*out, *error):
        os.close(descriptor)
    assert process.wait(60) == 5
    assert load(tmp_path / "here/runs/bash/run.json", Run).status == "failed"


def test_impatience_does_not_lose_the_record(tmp_path: Path):
    """Signals that come while the record is being written, and until the very end, change neither it nor the status."""
    (tmp_path / "end.sh").write_text("touch ended; exit 6")
    process = subprocess.Popen([*EFFTRAIN, "--device", "cpu", "--out", "here", "--", "bash", "end.sh"], cwd=tmp_path)
    _wait_for((tmp_path / "ended").exists)
    time.sleep(0.2)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert process.wait(60) == 6
    assert (tmp_path / "here/report.html").exists()
