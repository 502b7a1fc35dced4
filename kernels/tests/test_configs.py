"""The table of configurations, and the tuned file beside it."""

import pytest
import torch

from efftrain_kernels._kernels import configs
from efftrain_kernels._kernels.configs import Config, Key

DEVICE = "NVIDIA Test GPU"
KEY = Key(90, "forward", 64, "masked", "half")


def test_every_key_has_a_configuration_of_powers_of_two():
    shipped = configs.shipped()
    assert len(shipped) == len(set(configs.keys())) == 4 * 3 * 3 * 3 * 2
    for key, config in shipped:
        for size in (config.block_m, config.block_n, config.num_warps):
            assert size & (size - 1) == 0, key
        assert min(config.block_m, config.block_n) >= 16, key  # the least that tl.dot takes


@pytest.mark.parametrize(("dim", "block"), [(1, 64), (32, 64), (64, 64), (80, 128), (128, 128), (129, 256), (256, 256)])
def test_the_key_of_a_call(dim, block):
    q = torch.empty(1, 1, 1, dim, dtype=torch.float16)
    assert Key.of(90, "keys", q, masked=True, capped=False) == Key(90, "keys", block, "masked", "half")
    assert Key.of(80, "keys", q.float(), masked=True, capped=True) == Key(80, "keys", block, "capped", "float")


def test_the_table_serves_the_generations_that_fit():
    assert [configs.architecture(c) for c in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]] == [
        80, 86, 86, 90, 100, 86,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"compute capability 7\.5; there are some for 8\.0"):
        configs.architecture((7, 5))


def test_a_tuned_file_is_taken(tuned):
    other = configs.candidates(KEY)[1]
    tuned(configs.tuned_document(DEVICE, [(KEY, other)], triton="3.6.0"))
    assert configs.config_for(KEY, DEVICE) == other
    assert configs.config_for(KEY) == configs.candidates(KEY)[0]
    full = Key(90, "forward", 64, "full", "half")
    assert configs.config_for(full, DEVICE) == configs.candidates(full)[0]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"device": DEVICE, "configs": {str(KEY): [256, 256, 4, 2]}}, "not among the compiled candidates"),
        ({"device": "another", "configs": {}}, "it was tuned for 'another'"),
        ({"device": DEVICE}, "is not used: 'configs'"),
        ([], "is not used"),
        ({"device": DEVICE, "configs": {str(KEY): [1]}}, "is not used"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_so_once(tuned, document, message):
    tuned(document)
    with pytest.warns(RuntimeWarning, match=message):
        assert configs.config_for(KEY, DEVICE) == configs.candidates(KEY)[0]
    assert configs.config_for(KEY, DEVICE) == configs.candidates(KEY)[0]  # and no second warning


def test_where_the_file_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv(configs.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert configs.tuned_path("NVIDIA H200") == tmp_path / "efftrain" / "kernels" / "NVIDIA-H200.json"
    assert isinstance(configs.candidates(KEY)[0], Config)
