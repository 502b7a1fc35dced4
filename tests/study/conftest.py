"""Commands run as a user runs them, in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-c", "from efftrain.cli import main; main()"]
COMMAND_IN_FOREGROUND = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom efftrain.cli import main; main()",
]

Efftrain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def efftrain() -> Efftrain:
    """Run the command to its end."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300,
            env={**os.environ, **environment}, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the command and go on; what is left of it at the test's end is killed.

    A shell that puts the tests into the background has SIGINT ignored, which children inherit; a user's has not.
    """
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND_IN_FOREGROUND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="session")
def small_study(efftrain: Efftrain, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study of six variants, one of which cannot run on a CPU: one seed, eight steps."""
    out = tmp_path_factory.mktemp("study") / "small"
    done = efftrain(
        "bench", "--variants", "baseline,bf16,recompute,pruned,distilled,tf32", "--seeds", 1, "--steps", 8,
        "--data", text_folder, "--device", "cpu", "--country", "FRA", "--pue", 1.2, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    return out
