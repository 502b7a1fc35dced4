"""What AdamW's kernels are launched with: whose device, which tables are kept, and state that fits its parameter."""

from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from efftrain_kernels import AdamW
from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels._optimizer import formats, plan, settings, state, tables
from efftrain_kernels._optimizer.checks import Options

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
KERNELS = Options(backend="triton")


def parameter(shape=(2, 8, 4, 4), dtype=torch.float32):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype))


def optimizer(params, backend="triton", **options):
    return AdamW(params, lr=0.1, backend=backend, **options)


def step(adamw, seed=0):
    for p in adamw.param_groups[0]["params"]:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p)
    adamw.step()


@pytest.fixture
def cache(monkeypatch):
    kept = tables._Kept(capacity=tables._tables.capacity)
    monkeypatch.setattr(tables, "_tables", kept)
    return kept


def test_every_launch_is_on_the_device_of_the_tensors(monkeypatch):
    current, launched = [], []

    @contextmanager
    def made_current(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(tables, "_current", made_current)
    monkeypatch.setattr(Launch, "run", lambda self: launched.append((self.kernel.__name__, current[-1:])))
    step(optimizer([parameter()], max_grad_norm=1.0))
    assert {name for name, _ in launched} == {"_square_sums", "_total", "_coefficients", "_update"}
    assert all(devices == [DEVICE] for _, devices in launched)


def test_a_capture_is_looked_for_on_the_device_itself(monkeypatch):
    current = []

    @contextmanager
    def made_current(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", made_current)
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current == [second])
    assert tables.capturing(second)
    assert not tables.capturing(torch.device("cuda", 0))
    assert not tables.capturing(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    results = []
    for device in ("cuda:0", "cuda:1"):
        p = nn.Parameter(torch.linspace(-1, 1, 5000, device=device))
        adamw = AdamW([p], lr=0.1, max_grad_norm=1.0)
        for seed in range(3):
            step(adamw, seed)
        results.append((p.detach().cpu(), adamw.grad_norm.cpu()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": True}, {"state_dtype": "bfloat16", "master_weights": "float32"}, {"master_weights": "split16"},
        {"state_dtype": "int8"},
    ],
)  # fmt: skip
def test_state_follows_its_parameter_into_other_strides(options):
    dtype = torch.bfloat16 if "master_weights" in options else torch.float32
    p, q = parameter((16, 32, 4, 4), dtype), parameter((16, 32, 4, 4), dtype)
    ours, plain = optimizer([p], **options), optimizer([q], "reference", **options)
    for adamw in (ours, plain):
        step(adamw)
    with torch.no_grad():
        q.copy_(p)
    plain.load_state_dict(ours.state_dict())
    p.data = p.data.to(memory_format=torch.channels_last)
    for adamw in (ours, plain):
        step(adamw, 1)
    assert p.stride() != q.stride()
    assert plan.fits(p, ours.state[p])
    first, second = ours.to_torch_state_dict()["state"][0], plain.to_torch_state_dict()["state"][0]
    loose = {"float32": 1e-6, "bfloat16": 2**-7, "int8": 0.05}[options.get("state_dtype", "float32")]
    for key, value in second.items():
        torch.testing.assert_close(first[key], value, rtol=loose, atol=loose)
    torch.testing.assert_close(ours.master_parameters()[0], plain.master_parameters()[0], rtol=loose, atol=loose)


def test_state_is_moved_once():
    adamw = optimizer([p := parameter()])
    step(adamw)
    p.data = p.data.to(memory_format=torch.channels_last)
    step(adamw)
    kept = dict(adamw.state[p])
    step(adamw)
    assert all(adamw.state[p][key] is value for key, value in kept.items())


def test_state_elsewhere_does_not_fit_and_is_moved():
    p = parameter()
    for key in ("exp_avg", "exp_avg_sq", "step"):
        begun = state.fresh_state(p, KERNELS)
        assert plan.fits(p, begun)
        begun[key] = begun[key].to("meta")
        assert not plan.fits(p, begun)
    eighths = state.fresh_state(parameter((64, 64)), Options(backend="triton", state_dtype="int8"))
    assert not plan.fits(parameter((64, 64)), eighths | {"exp_avg_scale": eighths["exp_avg_scale"].to("meta")})


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((4, 1), (1, 7)), ((0, 3), (3, 1)), ((3, 0), (5, 2)), ((), ()), ((2, 3), (1, 2)), ((1, 4, 3, 3), (36, 1, 12, 4))],
)
def test_fresh_state_fits_every_parameter_that_kernels_take(shape, stride):
    p = nn.Parameter(torch.empty_strided(shape, stride, device=DEVICE))
    assert plan.uses_kernels(p, KERNELS)
    begun = state.fresh_state(p, KERNELS)
    assert plan.fits(p, begun)
    assert plan.fits(p, {key: state._place(p, key, value, KERNELS) for key, value in begun.items()})


@pytest.mark.parametrize(
    ("key", "options"),
    [("exp_avg_sq", {}), ("max_exp_avg_sq", {"amsgrad": True}), ("remainder", {"master_weights": "split16"})],
)
def test_state_of_another_shape_is_refused_by_name(key, options):
    adamw = optimizer([p := parameter((4, 6), torch.bfloat16)], **options)
    step(adamw)
    adamw.state[p][key] = adamw.state[p][key].reshape(6, 4)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=rf"^{key} has the shape \[6, 4\], its parameter \[4, 6\]"):
        step(adamw)
    assert torch.equal(p, before)


def test_state_is_not_moved_in_a_capture(monkeypatch):
    adamw = optimizer([p := parameter()])
    step(adamw)
    p.data = p.data.to(memory_format=torch.channels_last)
    monkeypatch.setattr(tables, "capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="take a few on a side stream first"):
        step(adamw)


def test_lists_whose_addresses_run_together_are_told_apart(cache):
    x, y = torch.zeros(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    empty = {name: [] for name in tables.Lists.__slots__}
    # The same addresses one after another: a largest moment, or a master weight.
    for name in ("max_exp_avg_sqs", "masters"):
        tables._table(tables.Lists(**empty | {"params": [x], "grads": [y], "steps": [x], name: [y]}), [16])
    assert len(cache.latest) == 2


def test_what_is_built_in_a_capture_is_the_graphs_alone(cache, monkeypatch):
    monkeypatch.setattr(tables, "capturing", lambda _: True)
    during = cache.get(("table",), DEVICE, lambda: torch.zeros(1))
    assert cache.captured == [during]
    assert cache.latest == OrderedDict()
    monkeypatch.setattr(tables, "capturing", lambda _: False)
    after = cache.get(("table",), DEVICE, lambda: torch.ones(1))
    assert after is not during
    monkeypatch.setattr(tables, "capturing", lambda _: True)
    assert cache.get(("table",), DEVICE, lambda: torch.zeros(1)) is after
    assert cache.captured[-1] is after


def test_an_optimizer_for_each_of_seventy_parameters_builds_its_tables_once(cache, monkeypatch):
    monkeypatch.setattr(Launch, "run", lambda _: None)
    many = [optimizer([parameter((16,))], max_grad_norm=1.0) for _ in range(70)]
    for adamw in many:
        step(adamw)
    built = list(map(id, cache.latest.values()))
    assert len(built) == 140
    for adamw in many:
        adamw.step()
    assert list(map(id, cache.latest.values())) == built


def test_kept_bytes_are_limited_but_one_is_always_kept():
    kept = tables._Kept(capacity=100)
    for number, size in enumerate((40, 40, 40, 200)):
        kept.get((number,), DEVICE, lambda size=size: torch.zeros(size, dtype=torch.uint8))
        assert [key for (key,) in kept.latest] == [[0], [0, 1], [1, 2], [3]][number]
        assert kept.held == sum(x.nbytes for x in kept.latest.values())


@pytest.mark.parametrize("captured", [0.1, 0.2])
def test_eager_settings_neither_write_nor_believe_those_of_a_graph(monkeypatch, captured):
    device, written, during = torch.device("meta"), {}, False
    monkeypatch.setattr(settings, "capturing", lambda _: during)
    monkeypatch.setattr(settings, "_upload", lambda values, tensor: written.update({id(tensor): values[0][0]}))
    group = optimizer([parameter()]).param_groups[0]
    cache = settings.SettingsCache()
    eager = cache.on(device, [group | {"lr": 0.1}], None)
    assert cache.on(device, [group | {"lr": 0.1}], None) is eager
    during = True
    graphs = cache.on(device, [group | {"lr": captured}], None)
    during = False
    for lr in (captured, 0.1, 0.3):
        after = cache.on(device, [group | {"lr": lr}], None)
        assert after is not graphs
        assert written[id(after)] == lr
        assert written[id(graphs)] == captured


def test_parameters_of_several_forms_share_the_settings_of_a_step(monkeypatch):
    asked, on = [], settings.SettingsCache.on
    monkeypatch.setattr(settings.SettingsCache, "on", lambda *args: asked.append(args[1]) or on(*args))
    step(optimizer([parameter(), parameter(dtype=torch.bfloat16)]))
    assert asked == [DEVICE]


def test_recoding_eighths_keeps_their_blocks_in_order():
    p = parameter((16, 32, 4, 4))
    options = Options(backend="triton", state_dtype="int8")
    moment = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    begun = state.from_torch(p, {"step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment**2}, options)
    p.data = p.data.to(memory_format=torch.channels_last)
    state.settle(p, begun, options)
    decoded = formats.decode_first(begun["exp_avg"], begun["exp_avg_scale"])
    # Twice half the widest of 127 quadratic steps, 2 · 127 / 127² of a largest value below 5.
    torch.testing.assert_close(decoded, moment, rtol=0.0, atol=5 * 2 / 127)
