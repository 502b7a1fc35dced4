"""What a Hugging Face configuration is told to be, or what is wrong with it, in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from efftrain.study.planning.hub import describe
from efftrain.study.planning.hub_worker import describe_here
from efftrain.training.config import ConfigError

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 80,
    "max_position_embeddings": 64,
}  # fmt: skip
BERT = {key: LLAMA[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")} | {
    "model_type": "bert", "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path):
    def write(content: object) -> Path:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def here(architecture, task=None, seq_len=None, attention="sdpa"):
    return describe_here(architecture=architecture, task=task, seq_len=seq_len, attention=attention)


def test_a_llama_is_described(written):
    path = written(LLAMA)
    model = describe(path.parent, seq_len=16)
    assert (model.causal, model.vocab_size, model.seq_len, model.num_layers) == (True, 80, 16, 2)
    assert (model.path, model.architecture) == (str(path), LLAMA)
    # 2 blocks of q and o (32·32), k and v (32·16) and a gated MLP, an output head; embedding and 5 norms besides.
    n = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 80 * 32
    assert model.parameters == n + 80 * 32 + 5 * 32
    # PaLM (arXiv:2204.02311), appendix B: 6N + 12·L·H·Q·T
    assert model.model_flops_per_token == 6 * n + 12 * 2 * 32 * 16


def test_a_fault_of_transformers_reaches_the_parent_as_one_line(written):
    path = written({**LLAMA, "num_attention_heads": 0})
    with pytest.raises(ConfigError) as caught:
        describe(path)
    assert str(caught.value).startswith(f"--model hf:{path}: transformers cannot build it: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ([], "has no model_type"),
        ({"hidden_size": 3}, "has no model_type"),
    ],
)
def test_a_file_that_is_no_configuration(written, content, message):
    path = written(content)
    with pytest.raises(ConfigError, match=message) as caught:
        describe(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json: No such file or directory; expected a config\.json"):
        describe(tmp_path / "nothing.json")


def test_what_cannot_be_asked_is_not_asked(written, monkeypatch):
    path = written(LLAMA)
    with pytest.raises(ConfigError, match="learns 'causal' or 'masked', not 'classification'"):
        describe(path, task="classification")
    monkeypatch.setattr("efftrain.study.planning.hub.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"transformers is missing; install efftrain\[hf\]"):
        describe(path)


def test_a_process_that_dies_leaves_its_last_line(written, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho killed by a friend >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ConfigError, match="could not be built: killed by a friend"):
        describe(written(LLAMA))


@pytest.mark.parametrize(
    ("architecture", "wish", "message"),
    [
        ({"model_type": "nobody"}, {}, "model_type 'nobody' is unknown to this version of transformers"),
        ({"model_type": "t5"}, {}, "is an encoder-decoder; expected a causal or a masked language model"),
        ({"model_type": "vit"}, {}, "model_type 'vit' is neither a causal nor a masked language model"),
        (LLAMA, {"seq_len": 65}, "--seq-len 65: its positions allow at most 64 tokens, and at least 2 are needed"),
        (LLAMA, {"seq_len": 1}, "--seq-len 1: its positions allow at most 64 tokens"),
        (LLAMA, {"task": "masked"}, "is a causal decoder, which does not learn 'masked'"),
        (BERT, {"task": "causal"}, "is a masked encoder, which does not learn 'causal'"),
        (
            {**LLAMA, "architectures": ["BertForMaskedLM"]},
            {},
            "BertForMaskedLM does not go with a model_type 'llama' that is a causal decoder",
        ),
        (BERT, {"attention": "efftrain"}, "asks for attention dropout 0.1, which the kernels do not have"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(architecture, wish, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        here(architecture, **wish)


def test_a_bert_is_an_encoder_unless_it_says_that_it_decodes():
    assert not here(BERT, seq_len=8).causal
    assert here({**BERT, "is_decoder": True}, seq_len=8).causal


def test_asking_imports_neither_torch_nor_transformers():
    code = "import sys, efftrain.study.planning.hub; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
