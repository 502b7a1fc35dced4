"""`efftrain kernels` passes its options on, and says in one line what is wrong with them."""

import subprocess
import sys

import pytest

from efftrain.cli import main
from efftrain_kernels.evidence import __main__ as evidence


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Call the command in this process; its exit status."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["efftrain", "kernels", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["check", "--quick"], ["check", "--arch", "80,86,90,100", "--quick"]),
        (
            ["check", "--arch", "90", "--only", "adamw", "--ptxas", "p", "--json", "j"],
            ["check", "--arch", "90", "--only", "adamw", "--ptxas", "p", "--json", "j"],
        ),
        (["bench"], ["bench"]),
        (["bench", "adamw", "--json", "j"], ["bench", "adamw", "--json", "j"]),
        (["tune"], ["tune"]),
    ],
)
@pytest.mark.parametrize("status", [0, 1])
def test_options_and_status_are_passed_on(call, monkeypatch, given, passed, status):
    monkeypatch.setattr(evidence, "main", lambda arguments, program: status if arguments == passed else 99)
    assert call(*given) == status


def test_faults_are_said_in_one_line(call, capsys):
    assert call("bench", "softmax") == 2
    said = capsys.readouterr().err
    assert said.startswith("efftrain kernels: argument what: invalid choice: 'softmax'")
    assert len(said.splitlines()) == 1


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "sys.argv = ['efftrain', 'kernels', '--help']\n"
        "from efftrain.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "check" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
