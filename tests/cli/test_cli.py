"""The command as a user meets it: help at once, and every fault of a command line in one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from efftrain.cli import main

COMMAND = [sys.executable, "-c", "from efftrain.cli import main; main()"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Call the command in this process, in an empty folder; its exit status and what it said on standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["efftrain", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


def test_help_is_quick():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.4


@pytest.mark.parametrize("command", ["bench", "train", "run", "report", "doctor"])
def test_each_command_has_help(command: str):
    done = run(command, "--help")
    assert done.returncode == 0
    assert command in done.stdout


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "sys.argv = ['efftrain', *sys.argv[1:]]\n"
        "from efftrain.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False"


BAD = [
    (["bench", "--variants", "baseline,magic"], ["magic", "bf16"]),
    (["bench", "--variants", ""], ["--variants", "names separated by commas", "baseline, bf16"]),
    (["bench", "--preset", "huge"], ["huge", "quick, standard, full"]),
    (["bench", "--model", "gpt9"], ["gpt9", "nano, micro, small, 1b"]),
    (["bench", "--country", "FRX"], ["FRX", "FRA"]),
    (["bench", "--country", "USA", "--region", "atlantis"], ["atlantis"]),
    (["bench", "--region", "texas"], ["--region", "--country"]),
    (["bench", "--device", "toaster"], ["toaster", "auto, cpu, cuda"]),
    (["bench", "--device", "cuda:99"], ["cuda:99"]),
    (["bench", "--steps", "0"], ["--steps 0", "at least 1"]),
    (["bench", "--seeds", "0"], ["--seeds 0", "at least 1"]),
    (["bench", "--tokens", "-1"], ["--tokens -1", "at least 1"]),
    (["bench", "--steps", "many"], ["--steps", "integer"]),
    (["bench", "--pue", "0.5"], ["--pue", "1"]),
    (["bench", "--pue", "nan"], ["--pue"]),
    (["bench", "--intensity", "-3"], ["--intensity"]),
    (["bench", "--intensity", "inf"], ["--intensity"]),
    (["bench", "--attention", "magic"], ["magic", "sdpa"]),
    (["bench", "--optimizer", "magic"], ["magic", "torch"]),
    (["train", "--phase-energy", "magic"], ["--phase-energy", "magic", "regression", "blocks"]),
    (["train", "--variant", "magic"], ["magic", "bf16"]),
    (["train", "--variant", "distilled"], ["distilled", "efftrain bench --variants baseline,distilled"]),
    (["train", "--seed", "99999999999999999999999"], ["--seed"]),
    (["train", "--seed", "-1"], ["--seed -1"]),
    (["train", "--resume"], ["--resume"]),
    (["bench", "--no-such-option"], ["--no-such-option"]),
    (["bench", "--resume"], ["--resume"]),
    (["report", "absent"], ["absent"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(refused, arguments: list[str], words: list[str], tmp_path: Path):
    status, said = refused(*arguments, *([] if arguments[0] == "report" else ["--out", "study"]))
    assert status == 2
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith("efftrain: ")
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_refuses_with_the_same_line():
    done = run("bench", "--preset", "huge")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "efftrain: --preset 'huge': unknown; choose from quick, standard, full\n"


def test_bad_text_is_one_line_that_names_the_file(refused, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\xff" * 100)
    (tmp_path / "fieldless.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    for name in ("absent.txt", "empty.txt", "short.txt", "binary.txt", "fieldless.jsonl", "broken.jsonl"):
        status, said = refused("bench", "--data", name, "--out", "study")
        assert status == 2, name
        assert len(said.strip().splitlines()) == 1, said
        assert name in said
        assert not (tmp_path / "study").exists()


def test_doctor_names_every_sensor_and_what_is_missing():
    done = run("doctor", "--seconds", "0.3")
    assert done.returncode == 0, done.stderr
    assert "rest-of-node" in done.stdout
    assert "no sensor reads fans" in " ".join(done.stdout.replace("│", " ").split())
    assert "rapl" in done.stdout.lower()


def test_version():
    assert run("--version").stdout.startswith("efftrain 0.")
