"""Distillation: a student is trained on the data and on a teacher's logits at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.training.config import DistillConfig
from efftrain.training.session import Forward, Losses, Objective, cross_entropy_sum
from efftrain.workload.models.transformer import Transformer


def forward_kl_sum(student_btv: Tensor, teacher_btv: Tensor, temperature: float) -> Tensor:
    """τ² · KL(teacher ‖ student) of the softmaxes at temperature τ, in nat.

    Summed over the vocabulary and over tokens; whoever calls divides by tokens, never by the vocabulary. τ² keeps the
    gradient's size as τ grows (Hinton et al., arXiv:1503.02531, section 2). Both distributions enter as logarithms:
    only so is a model against itself exactly 0.

    Args:
        student_btv: logits [B, T, V].
        teacher_btv: logits [B, T, V]; no gradient flows into them.
        temperature: τ > 0.
    """
    wide = torch.float64 if student_btv.dtype == torch.float64 else torch.float32
    student = F.log_softmax(student_btv.to(wide) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_btv.detach().to(wide) / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def distillation_objective(teacher: Transformer, config: DistillConfig) -> Objective:
    """(1 − weight) · cross-entropy + weight · KL, each a sum over tokens; the teacher stays as it is."""
    teacher.requires_grad_(False).eval()

    def objective(forward: Forward, inputs_bt: Tensor, targets_bt: Tensor) -> Losses:
        with torch.no_grad():
            teacher_logits = teacher(inputs_bt)
        logits = forward(inputs_bt)
        data = cross_entropy_sum(logits, targets_bt)
        kl = forward_kl_sum(logits, teacher_logits, config.temperature)
        return Losses(objective=(1 - config.weight) * data + config.weight * kl, data=data.detach())

    return objective
