"""A decoder-only transformer in plain PyTorch: RMSNorm, rotary embeddings, SwiGLU, grouped-query attention.

Shapes: B sequences, T tokens, D = d_model, H query heads, K key/value heads, Q = head_dim, F = d_ff, V = vocabulary.
Every matrix product is an `nn.Linear` or stands in one of the three attention functions below, so that the closed form
for model FLOPs (`ModelConfig.model_flops_per_token`) can be checked against a count of the operations.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain.workload.models.presets import Attention, ModelConfig
from efftrain_kernels import attention as efftrain_attention

AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q_bhtq, k_bktq, v_bktq, dropout probability) -> out_bhtq; causal."""


def eager_attention(q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, dropout: float) -> Tensor:
    """Causal attention with its T × T weights spelled out; keys and values are repeated for their query heads."""
    groups = q_bhtq.shape[1] // k_bktq.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k_bktq, v_bktq))
    scores = (q_bhtq @ k.transpose(-2, -1)) / math.sqrt(q_bhtq.shape[-1])
    length = scores.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


def sdpa_attention(q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, dropout: float) -> Tensor:
    """Causal attention by torch's own choice of kernel."""
    grouped = q_bhtq.shape[1] != k_bktq.shape[1]
    return F.scaled_dot_product_attention(q_bhtq, k_bktq, v_bktq, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


def kernel_attention(q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, dropout: float) -> Tensor:
    """Causal attention by efftrain_kernels, which has no dropout.

    Raises:
        ValueError: dropout above 0.
    """
    if dropout:
        raise ValueError(f"attention 'efftrain' has no dropout ({dropout} was asked for); use 'sdpa' or dropout 0")
    # The kernel itself on CUDA, where "auto" may hand a plain call to torch.
    return efftrain_attention(q_bhtq, k_bktq, v_bktq, causal=True, backend="triton" if q_bhtq.is_cuda else "auto")


ATTENTION: dict[Attention, AttentionFunction] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "efftrain": kernel_attention,
}

ATTENTION_OPS = frozenset(
    {
        torch.ops.efftrain.attention_forward.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""The ops that those functions come down to; `eager` has none of its own."""


class SelfAttention(nn.Module):
    """Grouped-query causal self-attention with rotary embeddings, [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]
        self.q_proj = nn.Linear(config.d_model, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.d_model, bias=False)

    def forward(self, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor) -> Tensor:
        """Attend within each sequence; `cos_tq`, `sin_tq` come from `rotary_tables`."""
        q = rotate(self._heads(self.q_proj(x_btd), self.num_heads), cos_tq, sin_tq)
        k = rotate(self._heads(self.k_proj(x_btd), self.num_kv_heads), cos_tq, sin_tq)
        v = self._heads(self.v_proj(x_btd), self.num_kv_heads)
        out_bhtq = self.attend(q, k, v, self.dropout if self.training else 0.0)
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

    def forward(self, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor) -> Tensor:
        """Apply both branches."""
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), cos_tq, sin_tq))
        return x_btd + self.dropout(self.mlp(self.mlp_norm(x_btd)))


BlockRunner = Callable[[Block, Tensor, Tensor, Tensor], Tensor]
"""How a block is called: directly, or under activation recomputation."""


def call_block(block: Block, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor) -> Tensor:
    """The direct `BlockRunner`."""
    return block(x_btd, cos_tq, sin_tq)


class Transformer(nn.Module):
    """The whole model, token ids [B, T] int64 -> logits [B, T, V].

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
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.embedding.weight
        cos, sin = rotary_tables(config.seq_len, config.head_dim, config.rope_theta)
        self.register_buffer("cos_tq", cos, persistent=False)
        self.register_buffer("sin_tq", sin, persistent=False)

    def forward(self, tokens_bt: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """Logits at each position, of what `config` has a head for.

        Args:
            tokens_bt: ids [B, T].
            lengths_b: tokens of each sequence, what follows being padding; None: all are whole.

        Raises:
            ValueError: more tokens than `config.seq_len`.
        """
        length = tokens_bt.shape[1]
        if length > self.config.seq_len:
            raise ValueError(f"{length} tokens in a sequence; this model holds {self.config.seq_len}")
        cos, sin = self.get_buffer("cos_tq")[:length], self.get_buffer("sin_tq")[:length]
        x_btd = self.embedding(tokens_bt)
        for block in self.blocks:
            assert isinstance(block, Block)
            x_btd = self.run_block(block, x_btd, cos, sin)
        return self.lm_head(self.norm(x_btd))


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


def initialise(model: Transformer, seed: int) -> None:
    """Fill all weights from `seed`, alike on every device.

    Each matrix is drawn from N(0, 1 / fan-in), which keeps the size of activations (LeCun et al., Efficient BackProp,
    1998, section 4.6); an embedding counts its width as fan-in, so that a tied head starts with logits of unit
    variance. The two projections that write into the residual stream are scaled by 1/√(2L) besides, so that its
    variance does not grow with depth (Radford et al., 2019, section 2.3). Norms start at 1.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = 1 / math.sqrt(2 * model.config.num_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.ones_(parameter)
            continue
        std = (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0) / math.sqrt(
            parameter.shape[1]
        )
        draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        with torch.no_grad():
            parameter.copy_(draw)
