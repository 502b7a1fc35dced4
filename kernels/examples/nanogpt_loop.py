"""A training loop in the manner of nanoGPT: two imports differ from the stock one.

`scaled_dot_product_attention` has torch's signature, and `AdamW` torch's with the clipping inside, so
`clip_grad_norm_` goes as well. Run it with `python nanogpt_loop.py`; it needs no GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain_kernels import AdamW, scaled_dot_product_attention  # stock: torch.optim.AdamW, F.scaled_dot_...


class Block(nn.Module):
    """Attention with 4 heads of 16 and a feed-forward network, on [B, S, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64, bias=False), nn.LayerNorm(64, bias=False)
        self.qkv, self.out = nn.Linear(64, 192, bias=False), nn.Linear(64, 64, bias=False)
        self.up, self.down = nn.Linear(64, 256, bias=False), nn.Linear(256, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, 64] to the same."""
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(64, dim=-1))
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def main() -> None:
    """Trains 30 steps and prints the loss before and after."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Embedding(32, 64), Block(), Block(), nn.Linear(64, 32, bias=False)).to(device)
    optimizer = AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0)
    losses = []
    for _ in range(30):
        tokens = (torch.randint(32, (8, 1), device=device) + 3 * torch.arange(25, device=device)) % 32
        with torch.autocast(device, torch.bfloat16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, last gradient norm {optimizer.grad_norm:.3f}")


if __name__ == "__main__":
    main()
