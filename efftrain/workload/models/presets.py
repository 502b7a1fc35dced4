"""Sizes of models, without torch, so that a command line can list and check them at once."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Attention = Literal["eager", "sdpa", "efftrain"]
"""`eager` spells out the softmax, `sdpa` is torch's scaled_dot_product_attention, `efftrain` our own kernel."""

Initialisation = Literal["scaled", "xavier", "he"]
"""How matrices are drawn: see efftrain.workload.models.initialisation."""

HF_PREFIX: Final = "hf:"
"""Before the path of a Hugging Face config.json, where a model is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a transformer: a decoder, or an encoder where `causal` is False.

    Attributes:
        d_model: width of the residual stream.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides `num_heads` (grouped-query attention, arXiv:2305.13245).
        head_dim: width of one head; even, for rotary embeddings.
        d_ff: hidden width of the SwiGLU (arXiv:2002.05202).
        vocab_size: rows of the embedding; a tokenizer may use fewer.
        seq_len: tokens of context.
        tied_embeddings: the output head shares the embedding's weight.
        dropout: probability on both residual branches and on attention; 0 in all presets.
        rope_theta: base of the rotary frequencies (arXiv:2104.09864).
        attention: which implementation computes it.
        causal: each token sees itself and those before it; else all tokens of its sequence.
        window: tokens that one sees to the left, itself included, and to the right as well where attention is not
            causal (arXiv:2004.05150, arXiv:2310.06825); None: all.
        num_classes: classes that a head tells apart, in place of the head over the vocabulary; None for the latter.
        initialisation: how the weights are drawn.
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    seq_len: int
    tied_embeddings: bool = True
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    attention: Attention = "sdpa"
    causal: bool = True
    window: int | None = None
    num_classes: int | None = None
    initialisation: Initialisation = "scaled"

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {self.num_classes}")
        for name, choices in (("attention", Attention), ("initialisation", Initialisation)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")
        if self.dropout and self.attention == "efftrain":
            raise ValueError(f"attention 'efftrain' has no dropout, and {self.dropout} is asked for: use 'sdpa'")

    @property
    def block_parameters(self) -> int:
        """Weights of the linear layers of all blocks."""
        attention = self.d_model * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.d_model * self.d_ff)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head, over the vocabulary or over classes."""
        return (self.num_classes or self.vocab_size) * self.d_model

    @property
    def matmul_parameters(self) -> int:
        """Weights of all linear layers, the output head once, without norms and the embedding look-up: PaLM's N."""
        return self.block_parameters + self.head_parameters

    @property
    def parameters(self) -> int:
        """All weights: linear layers, embedding (once where the head shares it), and norms."""
        shared = self.tied_embeddings and self.num_classes is None
        embedding = 0 if shared else self.vocab_size * self.d_model
        return self.matmul_parameters + embedding + (2 * self.num_layers + 1) * self.d_model

    @property
    def visible_keys(self) -> int:
        """Keys that a query is counted with: all of the sequence, or those of its window; causal not halved."""
        if self.window is None:
            return self.seq_len
        return min(self.seq_len, self.window if self.causal else 2 * self.window - 1)

    @property
    def model_flops_per_token(self) -> float:
        """6N + 12·L·H·Q·T FLOP for forward and backward (PaLM, arXiv:2204.02311, appendix B); causal not halved.

        T is the window's length where there is one. A head over classes reads one vector a sequence, so its share of a
        token is 1/T.
        """
        attention = 12 * self.num_layers * self.num_heads * self.head_dim * self.visible_keys
        head = 6 * self.head_parameters / (self.seq_len if self.num_classes else 1)
        return 6 * self.block_parameters + attention + head


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceModel:
    """A language model of `transformers`, built from its configuration with fresh weights.

    Attributes:
        path: of its config.json.
        architecture: what stands in there.
        causal: whether it predicts the next token; else masked ones.
        vocab_size: rows of its embedding.
        seq_len: tokens of context that are trained; at most what its positions allow.
        num_layers: blocks.
        d_model: width of the residual stream.
        attention: which implementation computes attention.
        parameters: all weights.
        model_flops_per_token: FLOP for forward and backward, counted by operation under PaLM's convention; the windows
            of a model's own eager attention cannot be told from it and count in full.
    """

    path: str
    architecture: dict[str, Any]
    causal: bool
    vocab_size: int
    seq_len: int
    num_layers: int
    d_model: int = 768
    attention: Attention = "sdpa"
    parameters: int = 0
    model_flops_per_token: float = 0.0

    @property
    def num_classes(self) -> None:
        """No head over classes."""
        return


AnyModel = ModelConfig | HuggingFaceModel
"""What a run may train."""


PRESETS: dict[str, ModelConfig] = {
    # 0.9 M parameters: learns something in half a minute on two cores.
    "nano": ModelConfig(
        d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384, vocab_size=1024, seq_len=128,
    ),
    # 3.3 M parameters.
    "micro": ModelConfig(
        d_model=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=640, vocab_size=2048, seq_len=256,
    ),
    # 124 M parameters, the class of GPT-2 small.
    "small": ModelConfig(
        d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=2048, vocab_size=50_304,
        seq_len=1024,
    ),
    # 1.24 G parameters, the shape of Llama-3.2-1B.
    "1b": ModelConfig(
        d_model=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, d_ff=8192, vocab_size=128_256,
        seq_len=2048, rope_theta=500_000.0,
    ),
}  # fmt: skip
