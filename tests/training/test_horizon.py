"""Ends before the last step, against lists of losses worked out by hand, and steps from tokens and FLOPs."""

import pytest

from efftrain.record.recorder import NullRecorder
from efftrain.training.config import ConfigError, HorizonConfig
from efftrain.training.horizon import Horizon
from efftrain.training.horizon_steps import steps_for_flops, steps_for_tokens_per_parameter
from efftrain.training.loop import train
from efftrain.training.session import build_session


def ends(losses: list[float], **limits: float) -> tuple[int, str] | None:
    """The evaluation, from 1, after which training ends, and how."""
    horizon = Horizon(HorizonConfig(**limits))  # pyright: ignore[reportArgumentType]
    for number, loss in enumerate(losses, start=1):
        status = horizon.after_evaluation(loss)
        if status:
            return number, status
    return None


@pytest.mark.parametrize(
    ("losses", "limits", "expected"),
    [
        ([5.0, 4.0, 3.0, 2.0], {"patience": 1}, None),
        ([5.0, 4.0, 4.1, 3.0], {"patience": 1}, (3, "early-stopped")),
        ([5.0, 4.0, 4.1, 3.0, 3.2, 3.1, 2.0], {"patience": 2}, (6, "early-stopped")),
        ([5.0, 4.0, 4.0, 4.0], {"patience": 2}, (4, "early-stopped")),  # an equal loss is no better one
        ([5.0, 4.0, 4.5, 4.4, 4.3, 4.2], {"patience": 4}, (6, "early-stopped")),  # better than the last is not the best
        ([5.0, 4.95, 4.9, 4.85], {"patience": 2, "min_delta": 0.1}, (3, "early-stopped")),
        ([5.0, 4.95, 4.8, 4.75, 4.6], {"patience": 2, "min_delta": 0.1}, None),  # small steps add up to a better one
        ([5.0, 4.75, 4.5], {"patience": 1, "min_delta": 0.25}, (2, "early-stopped")),  # by more than min_delta
        ([5.0, 4.0, 3.0], {"target_loss": 4.0}, (2, "target-reached")),
        ([5.0, 4.5, 4.01], {"target_loss": 4.0}, None),
        ([5.0, 5.0, 3.9], {"target_loss": 4.0, "patience": 1}, (2, "early-stopped")),
        ([3.0, 3.0], {"target_loss": 4.0, "patience": 1}, (1, "target-reached")),
        ([5.0, 6.0, 7.0], {}, None),
    ],
)
def test_a_list_of_losses_ends_where_it_should(losses, limits, expected):
    assert ends(losses, **limits) == expected


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_training_ends_where_the_whole_one_does(cut: int):
    losses, config = [5.0, 4.0, 4.1, 3.0, 3.2, 3.1, 2.0], HorizonConfig(patience=2)
    first = Horizon(config)
    assert {first.after_evaluation(loss) for loss in losses[:cut]} <= {None} or cut == 6
    resumed = Horizon(config, best=first.best, waited=first.waited)
    statuses = [resumed.after_evaluation(loss) for loss in losses[cut:6]]
    assert cut == 6 or statuses == [None] * (5 - cut) + ["early-stopped"]


def test_the_loop_stops_where_the_horizon_says(tiny_config, random_batches):
    """Random tokens cannot be learnt: a rate of nearly 0 leaves the loss where it was."""
    config = tiny_config(steps=60, eval_every=3, horizon=HorizonConfig(patience=2, min_delta=1.0))
    session = build_session(config)
    assert train(session, random_batches(config), NullRecorder()) == "early-stopped"
    assert {int(state["step"]) for state in session.optimizer.state.values()} == {9}


def test_a_spent_budget_ends_the_loop_with_a_last_evaluation(tiny_config, random_batches):
    seen: list[int] = []

    class Evaluations(NullRecorder):
        def evaluation(self, **fields) -> None:
            seen.append(fields["step"])

    config, answers = tiny_config(steps=60, eval_every=50), iter([False, False, False, True])
    horizon = Horizon(HorizonConfig(), spent=lambda: next(answers))
    assert train(build_session(config), random_batches(config), Evaluations(), horizon=horizon) == "budget-spent"
    assert seen == [4]


def test_a_budget_that_is_spent_with_the_last_step_completes(tiny_config, random_batches):
    config = tiny_config(steps=3)
    horizon = Horizon(HorizonConfig(), spent=lambda: True)
    config_of_one = tiny_config(steps=1)
    assert train(build_session(config), random_batches(config), NullRecorder(), horizon=horizon) == "budget-spent"
    done = train(build_session(config_of_one), random_batches(config_of_one), NullRecorder(), horizon=horizon)
    assert done == "complete"


def test_tokens_per_parameter_are_reached_and_not_by_a_step_more():
    assert steps_for_tokens_per_parameter(20, 1_000_000, 1000) == 20_000
    assert steps_for_tokens_per_parameter(20, 1_000_000, 1024) == 19_532  # 19 531.25
    assert steps_for_tokens_per_parameter(1e-9, 10, 512) == 1


def test_flops_are_not_exceeded():
    # Chinchilla's C = 6 N D: 1e9 parameters, 500 tokens a step, 3e15 FLOP a step
    assert steps_for_flops(3e18, 6e9, 500_000) == 1000
    assert steps_for_flops(2.9e18, 6e9, 500_000) == 966
    assert steps_for_flops(3e15, 6e9, 500_000) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: steps_for_flops(2.9e15, 6e9, 500_000), "--max-flops 2.9e+15: one step of this model takes 3e+15 FLOP"),
        (lambda: steps_for_flops(0.0, 6e9, 1), "--max-flops 0: expected FLOP above 0"),
        (lambda: steps_for_flops(float("inf"), 6e9, 1), "--max-flops inf"),
        (lambda: steps_for_tokens_per_parameter(-1.0, 10, 1), "--tokens-per-parameter -1: expected a number above 0"),
        (lambda: steps_for_tokens_per_parameter(float("nan"), 10, 1), "--tokens-per-parameter nan"),
    ],
)
def test_what_holds_no_step_is_refused_by_the_options_name(call, said: str):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
