import dataclasses

import pytest

from efftrain.study.planning.plan import make_plan
from efftrain.study.planning.request import Request
from efftrain.study.planning.variants import BASELINE, QUICK_VARIANTS, VARIANTS, apply_variant, unavailable
from efftrain.training.config import RunConfig
from efftrain.workload.models.presets import PRESETS

BASE = RunConfig(model=PRESETS["nano"], steps=30, batch_size=4)


def test_the_baseline_changes_nothing():
    assert apply_variant(BASE, VARIANTS[BASELINE]) == BASE


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != BASELINE])
def test_every_other_variant_changes_something_and_says_what(name: str):
    assert apply_variant(BASE, VARIANTS[name]) != BASE
    assert VARIANTS[name].summary


def test_the_student_is_smaller_than_its_teacher():
    student = apply_variant(BASE, VARIANTS["distilled"])
    assert student.model.num_layers == 2
    assert student.distill is not None
    assert student.distill.teacher == BASE.model


def test_the_kernels_are_attention_and_the_optimizer():
    config = apply_variant(BASE, VARIANTS["kernels"])
    assert (config.model.attention, config.optimizer.name) == ("efftrain", "efftrain")


def test_availability_depends_on_the_device():
    cuda = dataclasses.replace(BASE, device="cuda:0")
    assert unavailable(VARIANTS["tf32"], BASE)
    assert unavailable(VARIANTS["kernels"], BASE)
    assert unavailable(VARIANTS["tf32"], cuda) is None
    assert "8.0" in (unavailable(VARIANTS["bf16"], cuda, (7, 5)) or "")
    assert unavailable(VARIANTS["compile"], cuda, (7, 5)) is None
    assert all(unavailable(VARIANTS[name], BASE) is None for name in QUICK_VARIANTS)
    assert [v for v in QUICK_VARIANTS if v not in make_plan(Request()).variants] == []
