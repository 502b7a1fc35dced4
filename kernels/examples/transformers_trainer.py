"""Hugging Face's Trainer with both kernels: a registration, `attn_implementation`, and one argument of the Trainer.

The model is small and random and learns to count in steps of 3; rows of different length are padded, which the
attention kernel cuts out. Run it with `python transformers_trainer.py`; it downloads nothing and needs no GPU.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from efftrain_kernels.integrations import register_with_transformers, trainer_optimizer


def rows(count: int, tokens: int = 24) -> list[dict[str, torch.Tensor]]:
    """Each a sequence of 8 to `tokens` numbers below 30, padded on the right."""
    lengths = torch.randint(8, tokens + 1, (count,)).tolist()
    counted = [(torch.randint(30, ()) + 3 * torch.arange(tokens)) % 30 + 1 for _ in lengths]
    real = [torch.arange(tokens) < length for length in lengths]
    return [
        {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}
        for ids, mask in zip(counted, real, strict=True)
    ]


def main() -> None:
    """Trains 40 steps and prints the loss before and after."""
    torch.manual_seed(0)
    register_with_transformers()
    config = LlamaConfig(
        vocab_size=31, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="efftrain")  # or from_pretrained(..., the same)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=40, per_device_train_batch_size=8, learning_rate=3e-3, weight_decay=0.1, logging_steps=5,
            report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=rows(320), optimizer_cls_and_kwargs=trainer_optimizer(args))
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} with {type(trainer.optimizer.optimizer).__name__}")


if __name__ == "__main__":
    main()
