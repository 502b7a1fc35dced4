"""Real runs of transformers' Trainer: both kernels in place of sdpa and torch's AdamW give the same losses."""

from importlib.util import find_spec

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.17")

from efftrain_kernels import AdamW  # noqa: E402
from efftrain_kernels.integrations import register_with_transformers, trainer_optimizer  # noqa: E402

pytestmark = pytest.mark.skipif(find_spec("accelerate") is None, reason="the Trainer needs accelerate")
STEPS = 12


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small, and the order of sums is the same everywhere
    yield
    torch.set_num_threads(threads)


def rows():
    """Padded on the right to 16 tokens, of which 6 to 16 are real."""
    torch.manual_seed(0)
    for length in torch.randint(6, 17, (4 * STEPS,)).tolist():
        ids = torch.zeros(16, dtype=torch.int64)
        ids[:length] = (torch.randint(1, 31, ()) + torch.arange(length) * 3) % 30 + 1
        yield {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def arguments(folder, **changes):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    cpu = {"use_cpu": True, "dataloader_pin_memory": False}
    return transformers.TrainingArguments(
        output_dir=folder, **settings | quiet | cpu | {"optim": "adamw_torch"} | changes
    )


def losses(folder, implementation, *, dtype=torch.float32, optimizer=None, clip=1.0):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=implementation).to(dtype)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.loss.item()))
    args = arguments(folder, max_grad_norm=clip)
    trainer = transformers.Trainer(
        model, args, train_dataset=list(rows()), optimizer_cls_and_kwargs=optimizer(args) if optimizer else None
    )
    trainer.train()
    assert len(seen) == STEPS
    expected = AdamW if optimizer else torch.optim.AdamW
    assert isinstance(trainer.optimizer.optimizer, expected)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    return torch.tensor(seen, dtype=torch.float64)


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [(trainer_optimizer, 0.5), (lambda args: trainer_optimizer(args, max_grad_norm=0.5), 0.0)],
    ids=["the Trainer clips", "the optimizer clips"],
)
def test_a_run_has_the_stock_losses(tmp_path, optimizer, clip):
    register_with_transformers()
    exact = losses(tmp_path, "sdpa", dtype=torch.float64, clip=0.5)
    stock = losses(tmp_path, "sdpa", clip=0.5)
    ours = losses(tmp_path, "efftrain", optimizer=optimizer, clip=clip)
    assert stock[-1] < 0.9 * stock[0]
    # Twice the error of the stock run against float64, and one rounding to float32 a step.
    allowed = 2 * (stock - exact).abs().max() + STEPS * torch.finfo(torch.float32).eps * exact.max()
    assert (ours - exact).abs().max() <= allowed


def test_settings_come_from_the_arguments(tmp_path):
    args = arguments(tmp_path, learning_rate=2e-4, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7)
    optimizer_class, settings = trainer_optimizer(args)
    assert optimizer_class is AdamW
    assert settings == {"lr": 2e-4, "betas": (0.8, 0.95), "eps": 1e-7}


def test_what_would_be_ignored_or_done_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"args\.optim is 'adafactor', which would be ignored"):
        trainer_optimizer(arguments(tmp_path, optim="adafactor"))
    with pytest.raises(ValueError, match="gradients would be clipped twice"):
        trainer_optimizer(arguments(tmp_path, max_grad_norm=1.0), max_grad_norm=1.0)


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    def run(steps, resume):
        args = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=3, lr_scheduler_type="constant")
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        )
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="efftrain")
        trainer = transformers.Trainer(
            model, args, train_dataset=list(rows()), optimizer_cls_and_kwargs=trainer_optimizer(args)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    register_with_transformers()
    through = run(6, None)
    resumed = run(6, str(tmp_path / "checkpoint-3"))
    assert all(resumed[name].equal(x) for name, x in through.items())
