"""Two ranks train what one does with the same sequences."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training.two_ranks import EXACT, ROUNDED, Outcome, trained

pytestmark = pytest.mark.slow  # three processes import torch

RANK = "from training.two_ranks import main; main()"
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder / "store"), str(out)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS},
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [torch.load(out, weights_only=False) for out in outs]


def assert_alike(one: Outcome, two: Outcome, tolerance: float) -> None:
    for (loss, norm), (loss_of_two, norm_of_two) in zip(one.steps, two.steps, strict=True):
        assert loss_of_two == pytest.approx(loss, rel=tolerance)
        assert norm_of_two == pytest.approx(norm, rel=tolerance)
    assert one.weights.keys() == two.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(two.weights[name], weight, rtol=tolerance, atol=tolerance)
    assert two.evaluation.loss == pytest.approx(one.evaluation.loss, rel=tolerance)
    assert two.evaluation.stderr == pytest.approx(one.evaluation.stderr, rel=100 * tolerance)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_equal_one_in_float64(both: list[dict[str, Any]], name: str, parallel: str):
    one = trained(EXACT[name], double=True)
    assert any(norm > 0.3 for _, norm in one.steps), "gradients are clipped"
    # The journal's losses are float32; everything else stays in float64.
    for found in both:
        two = found[f"{name}-{parallel}"]
        assert [loss for loss, _ in two.steps] == pytest.approx([loss for loss, _ in one.steps], rel=2e-7)
        two.steps = [(loss, norm) for (loss, _), (_, norm) in zip(one.steps, two.steps, strict=True)]
        assert_alike(one, two, 1e-11)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ROUNDED)
def test_two_ranks_equal_one_within_rounding(both: list[dict[str, Any]], name: str, parallel: str):
    one = trained(ROUNDED[name], double=False)
    # A few roundings of the format in which the products are summed: bfloat16 has 8 bits, fp16 11, fp32 24.
    tolerance = {"bf16": 2**-7, "pure-bf16": 2**-7, "fp16": 2**-10}.get(name, 2e-5)
    for found in both:
        assert_alike(one, found[f"{name}-{parallel}"], tolerance)


def test_a_gradient_that_overflows_on_one_rank_skips_the_step_on_all(both: list[dict[str, Any]]):
    for found in both:
        assert found["overflow"] == [(False, 2.0**15), (False, 2.0**15)]  # the scale was halved


def test_ranks_agree_and_add_up(both: list[dict[str, Any]]):
    for found in both:
        assert found["any"] == [True, True, False]
        assert found["total"].item() == 3.0
        assert found["again"].item() == 2.0
