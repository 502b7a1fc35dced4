from efftrain.cli.progress import describe
from efftrain.meters.live import LiveFigures

KNOWN = LiveFigures(
    step=3, steps_total=10, loss=2.5, validation_loss=None, tokens_per_second=1234.0, mfu=0.25, watts=8.0,
    joules_per_token=0.001, grams_co2e=0.002, eta_s=7.0, method="assumed", lower_bound=True,
)  # fmt: skip
UNKNOWN = LiveFigures(
    step=0, steps_total=None, loss=None, validation_loss=None, tokens_per_second=None, mfu=None, watts=None,
    joules_per_token=None, grams_co2e=None, eta_s=None, method="missing", lower_bound=False,
)  # fmt: skip


def test_the_line_says_everything_and_how_the_joules_were_had():
    assert describe(KNOWN) == (
        "step 3/10  loss 2.500  1,234 tok/s  MFU 25.0%  8.0 W  ≥ 1 mJ/token  ≥ 2 mgCO2e  joules assumed  ETA 7 s"
    )


def test_what_is_not_known_is_left_out_and_never_zero():
    assert describe(UNKNOWN) == "step 0  joules missing"
