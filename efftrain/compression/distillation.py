"""Distillation: a student is trained on the data and on a teacher's logits at once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain.training.batch import Batch
from efftrain.training.config import DistillConfig
from efftrain.training.objectives import Forward, Losses, Objective, cross_entropy_sum
from efftrain.workload.text.batches.masking import IGNORED


def forward_kl_sum(student: Tensor, teacher: Tensor, temperature: float, asked: Tensor | None = None) -> Tensor:
    """τ² · KL(teacher ‖ student) of the softmaxes at temperature τ, in nat.

    Summed over the vocabulary and over predictions; whoever calls divides by those, never by the vocabulary. τ² keeps
    the gradient's size as τ grows (Hinton et al., arXiv:1503.02531, section 2). Both distributions enter as
    logarithms: only so is a model against itself exactly 0.

    Args:
        student: logits [..., V].
        teacher: logits [..., V]; no gradient flows into them.
        temperature: τ > 0.
        asked: [...] bool, where something is predicted; None: everywhere.
    """
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    ours = F.log_softmax(student.to(wide) / temperature, dim=-1)
    theirs = F.log_softmax(teacher.detach().to(wide) / temperature, dim=-1)
    if asked is None:
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return (each * asked).sum() * temperature**2


def distillation_objective(teacher: nn.Module, config: DistillConfig) -> Objective:
    """(1 − weight) · cross-entropy + weight · KL, each a sum over tokens; the teacher stays as it is."""
    teacher.requires_grad_(False).eval()

    def objective(forward: Forward, batch: Batch) -> Losses:
        with torch.no_grad():
            teacher_logits = teacher(batch.inputs, batch.lengths)
        logits = forward(batch.inputs, batch.lengths)
        data = cross_entropy_sum(logits, batch.targets)
        asked = batch.targets != IGNORED
        kl = forward_kl_sum(logits, teacher_logits, config.temperature, asked)
        return Losses(objective=(1 - config.weight) * data + config.weight * kl, data=data.detach())

    return objective
