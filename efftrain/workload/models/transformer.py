"""A transformer in plain PyTorch, decoder or encoder: RMSNorm, rotary embeddings, SwiGLU, grouped-query attention.

Shapes: B sequences, T tokens, D = d_model, H query heads, K key/value heads, Q = head_dim, F = d_ff, V = vocabulary,
C = classes. Every matrix product is an `nn.Linear` or stands in one of the functions of `attention.py`, so that the
closed form for model FLOPs (`ModelConfig.model_flops_per_token`) can be checked against a count of the operations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain.workload.models.attention import ATTENTION, attention_layout, band_mask
from efftrain.workload.models.presets import ModelConfig


class SelfAttention(nn.Module):
    """Grouped-query self-attention with rotary embeddings, [B, T, D] -> [B, T, D].

    Attributes:
        visible_keys: those that a query is counted with; see efftrain.counting.flops.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.dropout = config.dropout
        self.causal, self.window, self.visible_keys = config.causal, config.window, config.visible_keys
        self.attend = ATTENTION[config.attention]
        self.q_proj = nn.Linear(config.d_model, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.d_model, bias=False)

    def forward(self, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor, layout: Tensor | None = None) -> Tensor:
        """Attend within each sequence.

        Args:
            x_btd: what is read.
            cos_tq: from `rotary_tables`, as `sin_tq` is.
            sin_tq: see `cos_tq`.
            layout: from `attention_layout`.
        """
        q = rotate(self._heads(self.q_proj(x_btd), self.num_heads), cos_tq, sin_tq)
        k = rotate(self._heads(self.k_proj(x_btd), self.num_kv_heads), cos_tq, sin_tq)
        v = self._heads(self.v_proj(x_btd), self.num_kv_heads)
        window = self.window if self.window is not None and self.window < x_btd.shape[1] else None
        dropout = self.dropout if self.training else 0.0
        out_bhtq = self.attend(q, k, v, layout, causal=self.causal, window=window, dropout=dropout)
        return self.o_proj(out_bhtq.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), [B, T, D] -> [B, T, D] (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Apply the gated layer."""
        return self.down_proj(F.silu(self.gate_proj(x_btd)) * self.up_proj(x_btd))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each on a residual branch, [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor, layout: Tensor | None = None) -> Tensor:
        """Apply both branches; the arguments are those of `SelfAttention.forward`."""
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), cos_tq, sin_tq, layout))
        return x_btd + self.dropout(self.mlp(self.mlp_norm(x_btd)))


BlockRunner = Callable[[Block, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""How a block is called: directly, or under activation recomputation."""


def call_block(block: Block, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor, layout: Tensor | None) -> Tensor:
    """The direct `BlockRunner`."""
    return block(x_btd, cos_tq, sin_tq, layout)


class Transformer(nn.Module):
    """The whole model, token ids [B, T] int64 -> logits [B, T, V], or [B, C] of a classifier.

    Attributes:
        config: the shape it was built with; a pruned model is a new one.
        run_block: how each block is called; activation recomputation replaces it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_block: BlockRunner = call_block
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        if config.num_classes is not None:
            self.classifier = nn.Linear(config.d_model, config.num_classes, bias=False)
        else:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            if config.tied_embeddings:
                self.lm_head.weight = self.embedding.weight
        cos, sin = rotary_tables(config.seq_len, config.head_dim, config.rope_theta)
        self.register_buffer("cos_tq", cos, persistent=False)
        self.register_buffer("sin_tq", sin, persistent=False)
        self.band_tt: Tensor | None
        self.register_buffer("band_tt", band_mask(config), persistent=False)

    def forward(self, tokens_bt: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """Logits of what `config` has a head for: at each position, or of each sequence's class.

        A decoder classifies by its last token, an encoder by the mean over its tokens.

        Args:
            tokens_bt: ids [B, T].
            lengths_b: tokens of each sequence, at least 1, what follows being padding; None: all are whole.

        Raises:
            ValueError: more tokens than `config.seq_len`.
        """
        length = tokens_bt.shape[1]
        if length > self.config.seq_len:
            raise ValueError(f"{length} tokens in a sequence; this model holds {self.config.seq_len}")
        cos, sin = self.get_buffer("cos_tq")[:length], self.get_buffer("sin_tq")[:length]
        layout = attention_layout(self.config, self.band_tt, length, lengths_b)
        x_btd = self.embedding(tokens_bt)
        for block in self.blocks:
            assert isinstance(block, Block)
            x_btd = self.run_block(block, x_btd, cos, sin, layout)
        if self.config.num_classes is None:
            return self.lm_head(self.norm(x_btd))
        return self.classifier(self._summary(x_btd, lengths_b))

    def _summary(self, x_btd: Tensor, lengths_b: Tensor | None) -> Tensor:
        """One vector [B, D] a sequence, normed."""
        if self.config.causal:
            if lengths_b is None:
                return self.norm(x_btd[:, -1])
            return self.norm(x_btd[torch.arange(len(x_btd), device=x_btd.device), lengths_b - 1])
        x_btd = self.norm(x_btd)
        if lengths_b is None:
            return x_btd.mean(dim=1)
        real_bt1 = (torch.arange(x_btd.shape[1], device=x_btd.device) < lengths_b[:, None])[..., None]
        return torch.where(real_bt1, x_btd, 0).sum(dim=1) / lengths_b[:, None].to(x_btd.dtype)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, Q] of position × theta^(-2i/Q), each half of Q alike (arXiv:2104.09864)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_bhtq: Tensor, cos_tq: Tensor, sin_tq: Tensor) -> Tensor:
    """Rotate the pairs (i, i + Q/2) of each head by their position's angle."""
    first, second = x_bhtq.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_bhtq * cos_tq + turned * sin_tq).to(x_bhtq.dtype)
