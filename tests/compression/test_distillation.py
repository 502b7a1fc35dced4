import pytest
import torch
import torch.nn.functional as F

from efftrain.compression.distillation import distillation_objective, forward_kl_sum
from efftrain.training.batch import next_token_batch
from efftrain.training.config import DistillConfig
from efftrain.training.session import build_session
from efftrain.workload.models.presets import ModelConfig


def logits(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_model_against_itself_is_exactly_zero(dtype: torch.dtype, temperature: float):
    assert forward_kl_sum(logits(0, dtype), logits(0, dtype), temperature).item() == 0.0


def test_forward_kl_is_cross_entropy_minus_entropy():
    teacher, student = logits(0), logits(1)
    p = teacher.softmax(-1)
    cross = -(p * student.log_softmax(-1)).sum()
    entropy = -(p * p.log()).sum()
    assert forward_kl_sum(student, teacher, 1.0).item() == pytest.approx((cross - entropy).item(), rel=1e-12)


def test_the_vocabulary_is_summed_not_averaged():
    by_hand = sum(
        (p * (p.log() - q.log())).sum().item()
        for p, q in zip(logits(0).softmax(-1).flatten(0, 1), logits(1).softmax(-1).flatten(0, 1), strict=True)
    )
    assert forward_kl_sum(logits(1), logits(0), 1.0).item() == pytest.approx(by_hand, rel=1e-12)


def test_the_gradient_tends_to_that_of_the_logits_square_distance_at_high_temperature():
    # arXiv:1503.02531, equation 4: for large τ and centred logits, τ² · dKL/dz tends to (z − v) / V.
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (logits(1), logits(0)))
    student.requires_grad_()
    forward_kl_sum(student, teacher, 1e4).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 11, rtol=1e-3, atol=1e-4)


def test_the_objective_mixes_both_terms_and_leaves_the_teacher_alone(session):
    teacher = build_session(session.config).model
    shape = ModelConfig(**{name: getattr(session.config.model, name) for name in ModelConfig.__slots__})
    config = DistillConfig(teacher=shape, temperature=2.0, weight=0.25)
    objective = distillation_objective(teacher, config)
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = objective(session.model, next_token_batch(tokens))
    data = F.cross_entropy(session.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    assert losses.data.item() == pytest.approx(data.item())
    assert losses.objective.item() == pytest.approx(0.75 * data.item()), "the teacher is the student: its term is 0"
    losses.objective.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in session.model.parameters())
