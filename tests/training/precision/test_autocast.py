"""Number formats: what is cast and what is not, what a device is refused, and that pure bf16 trains like bf16."""

import dataclasses
import io

import pytest
import torch

from efftrain.compression.pruning import prune_session
from efftrain.counting.flops import count_step, fake_mode
from efftrain.counting.memory import predict_memory
from efftrain.record.recorder import NullRecorder
from efftrain.study.running.costs import example_batch
from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.blocks import restored
from efftrain.training.config import OptimizerConfig, Precision, PruneConfig
from efftrain.training.evaluation import evaluate
from efftrain.training.loop import train
from efftrain.training.optimizer import set_learning_rate
from efftrain.training.precision.autocast import autocast, cast_parameters, loss_scaler, set_matmul_precision
from efftrain.training.precision.support import refusal
from efftrain.training.session import build_session, preserved, train_step

OPTIMIZERS = ("torch", "efftrain")


def ignore(phase) -> None:
    pass


def pure(tiny_config, name: str = "torch", **changes):
    return tiny_config(precision="pure-bf16", optimizer=OptimizerConfig(name=name), **changes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pure_bf16_has_weights_activations_and_gradients_in_bf16_and_the_rest_in_fp32(
    tiny_config, random_batches, name: str
):
    config = pure(tiny_config, name)
    session = build_session(config)
    seen: set[torch.dtype] = set()
    for module in session.model.modules():
        module.register_forward_hook(lambda m, i, o: seen.add(o.dtype) if isinstance(o, torch.Tensor) else None)
    for parameter in session.model.parameters():
        parameter.register_hook(lambda gradient: seen.add(gradient.dtype))
    result = train_step(session, lambda: random_batches(config).train(1), ignore)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in session.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in session.model.buffers()} == {torch.float32}
    assert result.loss.dtype == torch.float32
    for parameter in session.model.parameters():
        state = session.optimizer.state[parameter]
        assert {state[key].dtype for key in ("master", "exp_avg", "exp_avg_sq")} == {torch.float32}
        assert torch.equal(parameter, state["master"].bfloat16())
    full = train_step(build_session(tiny_config()), lambda: random_batches(config).train(1), ignore)
    assert result.loss.item() == pytest.approx(full.loss.item(), rel=0.02)
    assert session.scaler is None


def test_tied_weights_stay_tied():
    embedding, head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleList([embedding, head])
    model.register_buffer("positions", torch.arange(4.0))
    cast_parameters(model, torch.bfloat16)
    assert head.weight is embedding.weight
    assert head.weight.dtype == torch.bfloat16
    assert model.get_buffer("positions").dtype == torch.float32


def test_pure_bf16_learns_as_well_as_autocast(tiny_config):
    class Counting:
        def __init__(self, config) -> None:
            self.config = config

        def train(self, step: int) -> Batch:
            start = torch.arange(self.config.batch_size)[:, None] + step
            return next_token_batch((start + torch.arange(self.config.model.seq_len + 1)) % 32)

        def validation(self) -> list[Batch]:
            return [self.train(0)]

    losses = {}
    precisions: tuple[Precision, ...] = ("bf16", "pure-bf16")
    for precision in precisions:
        config = tiny_config(steps=150, optimizer=OptimizerConfig(learning_rate=1e-2), precision=precision)
        session = build_session(config)
        train(session, Counting(config), NullRecorder())
        losses[precision] = evaluate(session, Counting(config).validation()).loss
    assert losses["pure-bf16"] < 0.5, "the next number is certain; ln 32 = 3.47 is where it starts"
    assert losses["pure-bf16"] == pytest.approx(losses["bf16"], abs=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pure_bf16_is_counted_and_its_masters_are_optimizer_state(tiny_config, name: str):
    config = pure(tiny_config, name)
    with fake_mode():
        session, batch = build_session(config), example_batch(config, config.batch_size)

        def run_step(mark) -> None:
            train_step(session, lambda: batch, mark)

        count_step(run_step, session.model)
        predicted = predict_memory(run_step, [session.model, session.optimizer, batch.inputs, batch.targets])
    parameters = config.model.parameters
    assert predicted.categories["parameters"] == 2 * parameters
    tensors = len(list(session.model.parameters()))
    assert predicted.categories["optimizer"] - 12 * parameters in range(4 * tensors + 1)  # step counts beside


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_warm_up_leaves_no_trace_in_weights_or_masters(tiny_config, random_batches, name: str):
    config = pure(tiny_config, name)
    warmed, cold = build_session(config), build_session(config)
    with preserved(warmed):
        train_step(warmed, lambda: random_batches(config).train(1), ignore)
    assert not warmed.optimizer.state
    for step in (1, 2):
        for session in (warmed, cold):
            train_step(session, lambda step=step: random_batches(config).train(step), ignore)
    assert all(torch.equal(p, q) for p, q in zip(warmed.model.parameters(), cold.model.parameters(), strict=True))


def test_repeated_blocks_leave_no_trace_in_masters(tiny_config, random_batches):
    config = pure(tiny_config)
    session = build_session(config)
    train_step(session, lambda: random_batches(config).train(1), ignore)
    before = {p: session.optimizer.state[p]["master"].clone() for p in session.model.parameters()}
    weights = [p.detach().clone() for p in session.model.parameters()]
    with restored(session):
        set_learning_rate(session.optimizer, 1.0)
        train_step(session, lambda: random_batches(config).train(2), ignore)
    assert all(torch.equal(session.optimizer.state[p]["master"], master) for p, master in before.items())
    assert all(torch.equal(p, w) for p, w in zip(session.model.parameters(), weights, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_takes_the_masters_along(tiny_config, random_batches, name: str):
    config = pure(tiny_config, name, prune=PruneConfig())
    session = build_session(config)
    train_step(session, lambda: random_batches(config).train(1), ignore)
    prune_session(session, [random_batches(config).train(2).inputs])
    for parameter in session.model.parameters():
        master = session.optimizer.state[parameter]["master"]
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, master.bfloat16())
        assert not torch.equal(parameter.float(), master)
    assert {b.dtype for b in session.model.buffers()} == {torch.float32}
    train_step(session, lambda: random_batches(config).train(3), ignore)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_is_kept_and_loaded_goes_on_bitwise(tiny_config, random_batches, name: str):
    config = pure(tiny_config, name)
    whole = build_session(config)
    train_step(whole, lambda: random_batches(config).train(1), ignore)
    file = io.BytesIO()
    torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = build_session(dataclasses.replace(config, seed=9))
    resumed.model.load_state_dict(kept["model"])
    resumed.optimizer.load_state_dict(kept["optimizer"])
    for session in (whole, resumed):
        train_step(session, lambda: random_batches(config).train(2), ignore)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "pure-bf16"])
def test_each_precision_sets_what_is_its_own(precision: Precision):
    device = torch.device("cpu")
    with autocast(precision, device):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    assert (loss_scaler(precision, device) is not None) == (precision == "fp16")
    before = torch.get_float32_matmul_precision()
    try:
        set_matmul_precision(precision)
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "said"),
    [
        ("tf32", "cpu", None, "a CPU has none"),
        ("tf32", "cuda", (7, 5), "tf32 needs compute capability 8.0 or above; cuda has 7.5"),
        ("bf16", "cuda:1", (7, 0), "bf16 needs compute capability 8.0 or above; cuda:1 has 7.0"),
        ("pure-bf16", "cuda", (7, 5), "pure-bf16 needs compute capability 8.0"),
        ("fp16", "cuda", (5, 2), "fp16 needs compute capability 5.3"),
    ],
)
def test_what_a_device_cannot_do_is_refused_by_name(precision: Precision, device: str, capability, said: str):
    why = refusal(precision, device, capability)
    assert why is not None
    assert said in why
    assert "\n" not in why


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "pure-bf16"])
def test_what_a_device_can_do_is_not_refused(precision: Precision):
    assert refusal(precision, "cpu") is None
    assert refusal(precision, "cuda", (8, 0)) is None
    assert refusal(precision, "cuda", (10, 3)) is None
    assert refusal(precision, "cuda", None) is None
    assert refusal("fp32", "cuda", (3, 5)) is None
