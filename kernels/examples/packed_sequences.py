"""Training without padding: texts of different length stand one after another in one row.

transformers' own collator makes the row and says where each text begins; the kernel attends within the texts alone.
The loss is that of the texts one by one. Run it with `python packed_sequences.py`; it downloads nothing.
"""

import torch
from transformers import DataCollatorWithFlattening, MistralConfig, MistralForCausalLM

from efftrain_kernels import AdamW
from efftrain_kernels.integrations import register_with_transformers


def texts(count: int) -> list[dict[str, list[int]]]:
    """Numbers below 30 counted in steps of 3, 5 to 40 of them."""
    lengths = torch.randint(5, 41, (count,)).tolist()
    return [{"input_ids": ((torch.randint(30, ()) + 3 * torch.arange(n)) % 30).tolist()} for n in lengths]


def main() -> None:
    """Compares one packed batch with its texts one by one, then trains 25 steps."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    register_with_transformers()
    config = MistralConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    model = MistralForCausalLM._from_config(config, attn_implementation="efftrain").to(device)
    collate = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)

    def loss_of(batch: list[dict[str, list[int]]]) -> torch.Tensor:
        inputs = {name: x.to(device) if torch.is_tensor(x) else x for name, x in collate(batch).items()}
        return model(**inputs, use_cache=False).loss

    batch = texts(4)
    predicted = [len(text["input_ids"]) - 1 for text in batch]
    with torch.no_grad():
        single = sum(loss_of([text]) * n for text, n in zip(batch, predicted, strict=True)) / sum(predicted)
        print(f"loss of 4 texts {single:.6f} one by one, {loss_of(batch):.6f} packed")
    optimizer = AdamW(model.parameters(), lr=3e-3, max_grad_norm=1.0)
    losses = []
    for _ in range(25):
        loss = loss_of(texts(8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
