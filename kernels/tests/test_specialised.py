"""Which calls go to the specialised kernel, and only where a file says that it is faster."""

import dataclasses

import pytest
import torch

from efftrain_kernels._kernels import configs, specialised
from efftrain_kernels._kernels.attention import Call, Target, backward_launches, forward_launches
from efftrain_kernels._kernels.configs import Config, Key
from efftrain_kernels.evidence import tune

DEVICE = "NVIDIA Test GPU"
KEY = Key(90, "forward", 128, "masked", "half")
PLAIN, *_, DIVIDED = configs.candidates(KEY)
CAUSAL = Call(0.1, None, 0, 0.0, 256, 256)


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


Q, KV = meta(2, 8, 256, 128), meta(2, 2, 256, 128)
OFFSETS = meta(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("q", "kv", "call", "taken"),
    [
        (Q, KV, CAUSAL, True),
        (Q, KV, dataclasses.replace(CAUSAL, right=None), True),
        (Q, KV, dataclasses.replace(CAUSAL, left=255), True),  # a window that hides nothing
        (meta(2, 256, 8, 128).transpose(1, 2), meta(2, 256, 2, 128).transpose(1, 2), CAUSAL, True),
        (meta(2, 8, 256, 64, dtype=torch.float16), meta(2, 2, 256, 64, dtype=torch.float16), CAUSAL, True),
        (Q, KV, dataclasses.replace(CAUSAL, left=64), False),
        (Q, KV, dataclasses.replace(CAUSAL, right=3), False),
        (Q, KV, dataclasses.replace(CAUSAL, softcap=30.0), False),
        (Q, KV, dataclasses.replace(CAUSAL, scale=-0.1), False),
        (Q, KV, dataclasses.replace(CAUSAL, sinks=meta(8)), False),
        (meta(512, 8, 128), meta(512, 2, 128), Call(0.1, None, 0, 0.0, 256, 256, None, OFFSETS, OFFSETS), False),
        (meta(2, 8, 256, 112), meta(2, 2, 256, 112), CAUSAL, False),
        (meta(2, 8, 256, 128, dtype=torch.float32), meta(2, 2, 256, 128, dtype=torch.float32), CAUSAL, False),
        (meta(2, 8, 256, 132)[..., :128], meta(2, 2, 256, 132)[..., :128], CAUSAL, False),  # rows of 264 bytes
        (Q, meta(2, 2, 1, 128).expand(2, 2, 256, 128), CAUSAL, False),  # a stride of 0
        (Q, KV[:, :, :100], dataclasses.replace(CAUSAL, max_seqlen_k=100), False),  # queries that see nothing
        (Q, KV[:, :, :100], Call(0.1, None, None, 0.0, 256, 100), True),
        (meta(2, 8, 0, 128), KV, dataclasses.replace(CAUSAL, max_seqlen_q=0), False),
    ],
)
def test_it_takes_plain_calls(q, kv, call, taken):
    assert specialised.takes(call, q, kv, kv, torch.empty_like(q)) == taken


def test_not_where_gluon_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(specialised, "_gluon", lambda: False)
    assert not specialised.takes(CAUSAL, Q, KV, KV, Q)


def forward(call, device=None, **given):
    lse = meta(*Q.shape[:3], dtype=torch.float32)
    (launch,) = forward_launches(Q, KV, KV, Q, lse, call, Target(90, device, configs=given or None))
    return launch


def backward(call, device=None, lse=None, **given):
    lse = meta(*Q.shape[:3], dtype=torch.float32) if lse is None else lse
    return backward_launches(
        Q, None, Q, KV, KV, Q, lse, lse.contiguous(), Q, KV, KV, call, Target(90, device, configs=given or None)
    )


def test_the_backward_kernels_are_chosen_one_by_one(tuned):
    key = dataclasses.replace(KEY, kernel="keys")
    divided = configs.candidates(key)[-1]
    tuned(configs.tuned_document(DEVICE, [(key, divided)]))
    _, keys, queries = backward(CAUSAL, DEVICE)
    assert (keys.max_registers, queries.max_registers) == (168, None)
    assert keys.grid == (2 * 2 * 2,)  # two blocks of 128 keys
    assert list(keys.arguments["lse_desc"].shape) == [2 * 8 * 256]
    assert keys.arguments["q_desc"].block_shape == [1, 1, 64, 128]
    in_rows = meta(2, 256, 8, dtype=torch.float32).transpose(1, 2)
    assert backward(CAUSAL, DEVICE, in_rows)[1].max_registers is None  # not one piece


def test_the_table_has_none():
    assert forward(CAUSAL, DEVICE).max_registers is None
    assert not any(config.specialised for _, config in configs.shipped())


def test_a_tuned_file_chooses_it_for_the_calls_that_it_takes(tuned):
    other = configs.candidates(KEY)[1]
    tuned(configs.tuned_document(DEVICE, [(KEY, other), (KEY, DIVIDED)]))
    assert configs.config_for(KEY, DEVICE, specialised=True) == DIVIDED
    assert configs.config_for(KEY, DEVICE) == other
    assert configs.config_for(KEY, specialised=True) == PLAIN
    launch = forward(CAUSAL, DEVICE)
    assert launch.max_registers is not None
    assert launch.grid == (2 * 8 * 2,)  # two blocks of at most 192 queries
    assert forward(dataclasses.replace(CAUSAL, left=64), DEVICE).max_registers is None


@pytest.mark.parametrize("swapped", [[(KEY, PLAIN)], [(KEY, DIVIDED)]])
def test_an_entry_in_the_wrong_place_is_refused(tuned, swapped):
    document = configs.tuned_document(DEVICE, swapped)
    ((name, values),) = document["configs"].items()
    other = name.removesuffix(" specialised") if name.endswith("specialised") else f"{name} specialised"
    tuned({**document, "configs": {other: values}})
    with pytest.warns(RuntimeWarning, match="not among the compiled candidates"):
        assert configs.config_for(KEY, DEVICE, specialised=True) == PLAIN


def test_a_given_one_is_not_quietly_replaced():
    assert forward(CAUSAL, forward=DIVIDED).max_registers is not None
    with pytest.raises(ValueError, match="is not one that the specialised kernel takes"):
        forward(dataclasses.replace(CAUSAL, left=64), forward=DIVIDED)


def test_descriptors_skip_strides_that_are_never_used():
    one = meta(1, 8, 256, 136)[..., :128]
    odd = one.as_strided(one.shape, (7, *one.stride()[1:]))
    assert specialised.takes(CAUSAL, odd, odd, odd, odd)
    descriptor = specialised._descriptor(odd, 64)
    assert list(descriptor.strides) == [128, 256 * 136, 136, 1]


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, True), (1.5, False)])
def test_tuning_takes_it_where_it_is_faster(seconds, chosen, tmp_path, tuned):
    choice = tune.Choice(KEY, {PLAIN: 1.0, DIVIDED: seconds})
    assert choice.specialised == (DIVIDED if chosen else None)
    tune.write(tmp_path / "tuned.json", DEVICE, [choice])
    assert configs.config_for(KEY, DEVICE, specialised=True) == (DIVIDED if chosen else PLAIN)
    assert (str(DIVIDED) in tune.describe([choice])) == chosen


def test_its_groups_have_64_queries_and_as_many_registers_as_there_are():
    found = {config for key in configs.keys() for config in configs.candidates(key) if config.specialised}  # noqa: SIM118
    assert found
    for config in found:
        groups = max(config.block_m, config.block_n) // 64  # a group's own tile is never the smaller one
        assert max(config.block_m, config.block_n) == 64 * groups
        assert specialised._REGISTERS[groups] * 128 * (groups + 1) <= 65536
        assert isinstance(config, Config)
