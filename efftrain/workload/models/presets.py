"""Sizes of the default model, without torch, so that a command line can list them at once."""

from dataclasses import dataclass
from typing import Literal, get_args

Attention = Literal["eager", "sdpa", "efftrain"]
"""`eager` spells out the softmax, `sdpa` is torch's scaled_dot_product_attention, `efftrain` our own kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer.

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
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention {self.attention!r}: choose one of {', '.join(get_args(Attention))}")

    @property
    def matmul_parameters(self) -> int:
        """Weights of all linear layers, the output head once, without norms and the embedding look-up: PaLM's N."""
        attention = self.d_model * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.d_model * self.d_ff) + self.vocab_size * self.d_model

    @property
    def model_flops_per_token(self) -> int:
        """6N + 12·L·H·Q·T FLOP for forward and backward (PaLM, arXiv:2204.02311, appendix B); causal not halved."""
        attention = 12 * self.num_layers * self.num_heads * self.head_dim * self.seq_len
        return 6 * self.matmul_parameters + attention


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
