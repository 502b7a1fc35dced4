"""The accuracy benchmark's short form: efftrain alone, against boards of known energy."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "energy_accuracy.py"


@pytest.mark.slow
def test_the_truth_lies_in_our_intervals():
    """It ends with 1 where they hold the truth in less than 91 % of 200 windows or more."""
    done = subprocess.run([sys.executable, str(BENCHMARK), "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
