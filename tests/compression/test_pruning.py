import dataclasses

import pytest
import torch

from efftrain.compression.pruning import Importance, Kept, choose, measure_importance, prune, prune_session
from efftrain.training.batch import next_token_batch
from efftrain.training.config import ConfigError
from efftrain.training.session import build_session, train_step


def tokens(seed: int = 0, length: int = 8) -> torch.Tensor:
    return torch.randint(32, (4, length), generator=torch.Generator().manual_seed(seed))


def zeroed(model, kept: Kept) -> None:
    """Silence in the dense model what pruning would remove."""
    width = model.config.head_dim
    for block, heads, channels in zip(model.blocks, kept.heads, kept.channels, strict=True):
        for head in set(range(model.config.num_heads)) - set(heads.tolist()):
            block.attention.o_proj.weight.data[:, head * width : (head + 1) * width] = 0
        gone = sorted(set(range(model.config.d_ff)) - set(channels.tolist()))
        block.mlp.down_proj.weight.data[:, gone] = 0


def test_a_pruned_model_equals_the_dense_one_with_the_same_units_zeroed(session):
    model = session.model.double()
    kept = choose(measure_importance(model, [tokens()]), model, session.config.pruned_model)
    smaller = prune(model, kept)
    zeroed(model, kept)
    with torch.no_grad():
        dense, pruned = model(tokens(1)), smaller(tokens(1))
    assert (dense - pruned).norm() <= 1e-12 * dense.norm()


def test_matrices_really_shrink(session):
    before = sum(p.numel() for p in session.model.parameters())
    prune_session(session, [tokens()])
    attention, mlp = session.model.blocks[0].attention, session.model.blocks[0].mlp
    assert tuple(attention.q_proj.weight.shape) == (4 * 4, 16)
    assert tuple(attention.k_proj.weight.shape) == (2 * 4, 16)
    assert tuple(mlp.down_proj.weight.shape) == (16, 12)
    gone = 2 * (2 * 16 * 16 + 3 * 16 * 12)
    assert sum(p.numel() for p in session.model.parameters()) == before - gone


def test_importance_is_the_mean_magnitude_of_activations(session):
    model = session.model
    seen: list[torch.Tensor] = []
    handle = model.blocks[1].mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    found = measure_importance(model, [tokens()])
    handle.remove()
    expected = seen[0].abs().double().mean(dim=(0, 1))
    torch.testing.assert_close(found.channels[1].double(), expected, rtol=1e-5, atol=1e-8)


def test_the_most_important_units_of_each_group_stay(session):
    model, target = session.model, session.config.pruned_model
    heads = torch.tensor([9.0, 1, 8, 2, 0, 5, 1, 7])  # groups are heads 0-3 and 4-7
    channels = torch.arange(24.0)
    kept = choose(Importance([heads] * 2, [channels] * 2), model, target)
    assert kept.heads[0].tolist() == [0, 2, 5, 7]
    assert kept.channels[0].tolist() == list(range(12, 24))


def test_moments_of_what_stays_go_along(session):
    train_step(session, lambda: next_token_batch(tokens(length=9)), lambda _: None)
    old, optimizer = session.model, session.optimizer
    down = old.blocks[0].mlp.down_proj.weight
    moments = optimizer.state[down]["exp_avg"].clone()
    kept = choose(measure_importance(old, [tokens()]), old, session.config.pruned_model)
    prune_session(session, [tokens()])
    state = session.optimizer.state[session.model.blocks[0].mlp.down_proj.weight]
    assert torch.equal(state["exp_avg"], moments[:, kept.channels[0]])
    assert state["step"].item() == 1
    train_step(session, lambda: next_token_batch(tokens(length=9)), lambda _: None)
    assert state["step"].item() == 2


def test_pruning_to_the_same_shape_changes_nothing(session):
    model = session.model
    kept = choose(measure_importance(model, [tokens()]), model, model.config)
    same = prune(model, kept)
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_changes_are_refused(session):
    wider = dataclasses.replace(session.config.model, d_ff=48)
    importance = measure_importance(session.model, [tokens()])
    with pytest.raises(ConfigError, match="heads and channels alone"):
        choose(importance, session.model, wider)
    plain = build_session(dataclasses.replace(session.config, prune=None))
    with pytest.raises(ConfigError, match="prunes nothing"):
        prune_session(plain, [tokens()])
