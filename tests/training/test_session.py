import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.training.batch import Batch
from efftrain.training.config import OptimizerConfig
from efftrain.training.objectives import data_objective
from efftrain.training.session import build_session, preserved, train_step


def ignore(_: object) -> None: ...


def gradients(session, batch: Batch) -> list[Tensor]:
    """Gradients of one step, caught before the update."""
    caught: list[Tensor] = []

    class Catch(torch.optim.Optimizer):
        def __init__(self) -> None:
            super().__init__(session.model.parameters(), {})

        def step(self, closure=None):
            caught.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    session.optimizer = Catch()
    train_step(session, lambda: batch, ignore)
    return caught


def test_phases_come_in_order_for_each_micro_batch(tiny_config, random_batches):
    config = tiny_config(grad_accumulation=2)
    seen: list[str] = []
    train_step(build_session(config), lambda: random_batches(config).train(1), seen.append)
    assert seen == ["data", "forward", "backward", "forward", "backward", "optimizer"]


def test_loss_is_the_mean_cross_entropy_of_the_step(tiny_config, random_batches):
    config = tiny_config(grad_accumulation=2)
    session = build_session(config)
    batch = random_batches(config).train(1)
    with torch.no_grad():
        expected = F.cross_entropy(session.model(batch.inputs).flatten(0, 1), batch.targets.flatten())
    result = train_step(session, lambda: batch, ignore)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_k_micro_batches_equal_one_batch_in_float64(tiny_config, random_batches):
    optimizer = OptimizerConfig(max_grad_norm=None)
    batch = random_batches(tiny_config(batch_size=8)).train(1)
    found = []
    for batch_size, micro in ((8, 1), (2, 4)):
        config = tiny_config(batch_size=batch_size, grad_accumulation=micro, optimizer=optimizer)
        session = build_session(config)
        session.model.double()
        found.append(gradients(session, batch))
    for one, many in zip(*found, strict=True):
        assert (one - many).norm() <= 1e-12 * one.norm()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "efftrain"])
def test_recomputed_gradients_are_bitwise_those_without(tiny_config, random_batches, attention: str):
    base = tiny_config()
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, attention=attention))
    batch = random_batches(base).train(1)
    plain, full, selective = (
        gradients(build_session(dataclasses.replace(base, recompute=recompute)), batch)
        for recompute in ("none", "full", "selective")
    )
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, full, selective, strict=True))


def test_recomputation_with_dropout_repeats_the_same_draws(tiny_config, random_batches):
    base = tiny_config()
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, dropout=0.3))
    batch = random_batches(base).train(1)
    found = []
    for recompute in ("none", "full"):
        session = build_session(dataclasses.replace(base, recompute=recompute))
        torch.manual_seed(3)
        found.append(gradients(session, batch))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_clipping_bounds_the_update_and_reports_the_norm_before(tiny_config, random_batches):
    config = tiny_config(optimizer=OptimizerConfig(max_grad_norm=1e-3))
    batch = random_batches(config).train(1)
    session = build_session(config)
    raw = gradients(build_session(tiny_config(optimizer=OptimizerConfig(max_grad_norm=None))), batch)
    clipped = gradients(session, batch)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in raw))
    assert math.sqrt(sum(g.double().square().sum().item() for g in clipped)) == pytest.approx(1e-3, rel=1e-3)
    result = train_step(build_session(config), lambda: batch, ignore)
    assert result.grad_norm is not None
    assert result.grad_norm.item() == pytest.approx(norm, rel=1e-5)


def test_bf16_autocast_changes_the_products_and_keeps_fp32_weights(tiny_config, random_batches):
    config = tiny_config(precision="bf16")
    session = build_session(config)
    seen: list[torch.dtype] = []
    session.model.blocks[0].mlp.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    result = train_step(session, lambda: random_batches(config).train(1), ignore)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}
    full = train_step(build_session(tiny_config()), lambda: random_batches(config).train(1), ignore)
    assert result.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


def test_fp16_scales_its_loss_and_unscales_its_gradients(tiny_config, random_batches):
    config = tiny_config(precision="fp16")
    session = build_session(config)
    assert session.scaler is not None
    before = [p.detach().clone() for p in session.model.parameters()]
    result = train_step(session, lambda: random_batches(config).train(1), ignore)
    full = train_step(build_session(tiny_config()), lambda: random_batches(config).train(1), ignore)
    assert result.grad_norm is not None
    assert full.grad_norm is not None
    assert result.grad_norm.item() == pytest.approx(full.grad_norm.item(), rel=0.05)
    assert any(not torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))


def test_preserved_restores_weights_moments_and_random_state(tiny_config, random_batches):
    config = tiny_config()
    session = build_session(config)
    weights = {name: value.clone() for name, value in session.model.state_dict().items()}
    torch.manual_seed(5)
    draw = torch.rand(1)
    torch.manual_seed(5)
    with preserved(session):
        train_step(session, lambda: random_batches(config).train(1), ignore)
        torch.rand(7)
        assert session.optimizer.state
    assert torch.equal(torch.rand(1), draw)
    assert not session.optimizer.state
    assert all(torch.equal(weights[name], value) for name, value in session.model.state_dict().items())


def test_weight_decay_spares_norms_and_embeddings(tiny_config):
    session = build_session(tiny_config())
    groups = {group["weight_decay"]: group["params"] for group in session.optimizer.param_groups}
    assert {p.ndim for p in groups[0.1]} == {2}
    assert any(p is session.model.embedding.weight for p in groups[0.0])
    assert sum(len(params) for params in groups.values()) == len(list(session.model.parameters()))


def test_objective_sums_over_tokens(tiny_config, random_batches):
    config = tiny_config()
    session = build_session(config)
    batch = random_batches(config).train(1)
    losses = data_objective(session.model, batch)
    mean = F.cross_entropy(session.model(batch.inputs).flatten(0, 1), batch.targets.flatten())
    assert losses.data.item() == pytest.approx(mean.item() * batch.targets.numel(), rel=1e-6)
