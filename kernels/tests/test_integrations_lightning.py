"""Real runs of Lightning's Trainer: both kernels in place of torch's give the same losses, however it clips."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from efftrain_kernels import AdamW, attention

STEPS, CLIP = 12, 0.5
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "max_steps": STEPS,
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small, and the order of sums is the same everywhere
    yield
    torch.set_num_threads(threads)


def build(optimizer, attend):
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.losses = []
            self.embed = torch.nn.Embedding(32, 32)
            self.qkv = torch.nn.Linear(32, 96)
            self.head = torch.nn.Linear(32, 32)

        def training_step(self, batch, index):
            x = self.embed(batch)
            q, k, v = self.qkv(x).view(*batch.shape, 3, 4, 8).permute(2, 0, 3, 1, 4)
            logits = self.head(x + attend(q, k, v).transpose(1, 2).flatten(2))
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return optimizer(self.parameters())

    torch.manual_seed(0)
    return Model()


def torch_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def our_attention(q, k, v):
    return attention(q, k, v, causal=True)


def losses(optimizer, attend, *, double=False, **settings):
    import lightning

    model = build(optimizer, attend)
    batches = (torch.randint(0, 31, (4 * STEPS, 1)) + 3 * torch.arange(12)) % 32
    settings = settings | ({"precision": "64-true"} if double else {})
    lightning.Trainer(**QUIET, **settings).fit(model, torch.utils.data.DataLoader(batches, batch_size=4))
    assert len(model.losses) == STEPS
    return torch.tensor(model.losses, dtype=torch.float64)


def stock(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3)


def ours(parameters):
    return AdamW(parameters, lr=3e-3)


def ours_clipping(parameters):
    return AdamW(parameters, lr=3e-3, max_grad_norm=CLIP)


def half_precision(scale):
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [(ours, {"gradient_clip_val": CLIP}), (ours_clipping, {})],
    ids=["Lightning clips", "the optimizer clips"],
)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16 with a scaler"])
def test_a_run_has_the_stock_losses(optimizer, settings, half):
    def plugins():
        return {"plugins": half_precision(2.0**10)} if half else {}

    exact = losses(stock, torch_attention, double=True, gradient_clip_val=CLIP)
    theirs = losses(stock, torch_attention, gradient_clip_val=CLIP, **plugins())
    found = losses(optimizer, our_attention, **settings, **plugins())
    assert theirs[-1] < 0.9 * theirs[0]
    # Twice the error of the stock run against float64, and one rounding of the working type a step.
    rounding = torch.finfo(torch.float16 if half else torch.float32).eps
    assert (found - exact).abs().max() <= 2 * (theirs - exact).abs().max() + STEPS * rounding * exact.max()


def test_clipping_has_an_effect_here():
    clipped = losses(stock, torch_attention, gradient_clip_val=CLIP)
    free = losses(stock, torch_attention)
    assert (clipped - free).abs().max() > 1e-3


def test_a_skipped_step_leaves_the_parameters_alone():
    # A scale so large that float16 gradients overflow: the scaler must skip the first steps and recover.
    plugin = half_precision(2.0**40)
    found = losses(ours_clipping, our_attention, plugins=plugin)
    assert found.isfinite().all()
    assert plugin.scaler.get_scale() < 2.0**40
