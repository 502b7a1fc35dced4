"""Lightning with both kernels: `attention` in the module, `AdamW` from `configure_optimizers`.

Either the optimizer clips, in the pass that it makes over the gradients anyway, as here; or Lightning does, with
`Trainer(gradient_clip_val=1.0)` and no `max_grad_norm`. Run it with `python lightning_module.py`; it needs no GPU.
"""

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain_kernels import AdamW, attention


class Counter(lightning.LightningModule):
    """One layer of causal attention, 4 query heads on 2 key heads of 16, that learns to count in steps of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 64), nn.Linear(64, 32)
        self.q, self.k, self.v = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(64, 32)
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Loss of predicting each next token; batch [B, S]."""
        x = self.embed(batch)
        q, k, v = (layer(x).unflatten(-1, (-1, 16)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = attention(q, k, v, causal=True).transpose(1, 2).flatten(2)
        logits = self.head(x + mixed)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> AdamW:
        """Weight decay for matrices alone."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return AdamW(groups, lr=3e-3, max_grad_norm=1.0)


def main() -> None:
    """Trains 60 steps and prints the loss before and after."""
    lightning.seed_everything(0, verbose=False)
    rows = (torch.randint(32, (480, 1)) + 3 * torch.arange(24)) % 32
    model = Counter()
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=8))
    print(f"loss {model.losses[0]:.3f} -> {model.losses[-1]:.3f} with {type(trainer.optimizers[0]).__name__}")


if __name__ == "__main__":
    main()
