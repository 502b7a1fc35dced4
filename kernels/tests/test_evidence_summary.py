"""The summary of the GPU's results: aims are judged by ratios with their ranges, and nothing is left out."""

import pytest

from efftrain_kernels.evidence.summary import markdown


def row(case, provider, call, seconds, *, rate=1e12, share=0.5, error=None, joules=None):
    """A row of a benchmark whose latency is `seconds` give or take a tenth."""
    latency = None if error else {"p20_s": 0.9 * seconds, "p50_s": seconds, "p80_s": 1.1 * seconds, "calls": 9}
    return {
        "case": case, "provider": provider, "call": call, "settings": {"bytes_per_parameter": 28.0}, "latency": latency,
        "rate": rate, "ceiling_share": share, "joules": {"value": joules}, "max_error": {"out": 0.001}, "error": error,
    }  # fmt: skip


def document(*rows, **stages):
    common = {"stage": "", "right": True, "complete": True, "versions": {"torch": "2.11"}}
    ceilings = {"matrix_flops_per_s": 790e12, "copy_bytes_per_s": 4.3e12}
    bench = {**common, "ceilings": ceilings, "rows": list(rows)}
    return {"devices": ["a board"], "stages": {"bench": bench, **{k: {**common, **v} for k, v in stages.items()}}}


def verdict(text, *rows):
    """(Reached, verdict) of the one line about an aim."""
    (line,) = [line for line in markdown(document(*rows)).splitlines() if line.startswith(f"| {text}")]
    return tuple(cell.strip() for cell in line.split("|")[3:5])


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (0.5, ("2.00 [1.64, 2.44]", "met")),  # 1 / 0.5, 0.9 / 0.55, 1.1 / 0.45
        (1.0, ("1.00 [0.82, 1.22]", "not settled")),
        (2.0, ("0.50 [0.41, 0.61]", "missed")),
    ],
)
def test_a_ratio_is_judged_with_its_range(ours, expected):
    rows = [
        row("D128 causal 4k", name, "forward+backward", s) for name, s in (("efftrain triton", ours), ("sdpa cudnn", 1))
    ]
    assert verdict("causal attention of width 128", *rows) == expected


def test_a_share_of_the_ceiling_is_judged_with_its_range():
    found = verdict("AdamW at 90 %", row("1b bf16", "efftrain", "step", 0.01, share=0.95))
    assert found == ("0.95 [0.86, 1.06]", "not settled")
    assert verdict("AdamW at 90 %", row("1b bf16", "efftrain", "step", 0.01, share=1.2)) == ("1.20 [1.09, 1.33]", "met")


def test_optimizers_are_compared_in_the_same_formats():
    names = {"efftrain": 3.0, "efftrain bf16 moments": 1.0, "torch fused": 2.0}
    found = verdict("AdamW no slower", *(row("1b bf16", name, "step", seconds) for name, seconds in names.items()))
    assert found == ("2.00 [1.64, 2.44]", "met")
    names["efftrain"] = 1.0
    assert verdict("AdamW no slower", *(row("1b fp32", name, "step", s) for name, s in names.items())) == found


def test_cases_that_an_aim_is_not_about_are_left_out():
    rows = [row("D64 full 2k", name, "forward+backward", 1) for name in ("efftrain triton", "sdpa cudnn", "sdpa flash")]
    text = markdown(document(*rows))
    assert "| causal attention" not in text
    assert "| attention at least 1.3 times" in text


def test_a_peer_without_a_figure_is_not_known():
    ours = row("D128 causal 8k", "efftrain triton", "forward+backward", 1)
    broken = row("D128 causal 8k", "sdpa cudnn", "forward+backward", 1, error="RuntimeError: no kernel")
    assert verdict("causal attention of width 128", ours, broken) == ("sdpa cudnn has no figure", "not known")
    assert "- D128 causal 8k, sdpa cudnn, forward+backward: RuntimeError: no kernel" in markdown(document(ours, broken))


def test_every_stage_and_every_figure_is_told():
    from efftrain_kernels._kernels.configs import Config

    plain, divided = (
        {"block_m": 128, "block_n": 64, "num_warps": 4, "num_stages": 3, "specialised": flag} for flag in (False, True)
    )
    right = {"configurations": 103, "tensors": 900, "worst": 0.75, "ptxas": "12.8.93"}
    choice = {"key": "sm_90 forward", "seconds": [[plain, 0.002], [divided, 0.001]], "rejected": [[plain, "slow"]]}
    text = markdown(
        document(
            row("D64 causal 2k", "efftrain triton", "forward", 0.001, rate=512e12, share=0.65, joules=0.25),
            row("1b fp32", "torch fused", "step", 0.0075, rate=3.9e12, share=0.9),
            exact={**right, "wrong": ["dq is off"], "right": False},
            determinism={"repeats": 100, "differing_runs": {"D64": 0, "adamw": 2}},
            tune={"choices": [choice]},
        )
    )
    assert "Measured ceilings: 790 TFLOP/s in a matrix product, 4.3 TB/s in a copy." in text
    assert "| exact | WRONG | 103 configurations, 900 tensors, at worst 0.75 of what rounding allows, ptxas" in text
    assert "ptxas 12.8.93; dq is off |" in text
    assert "| determinism | right | 2 of 100 repetitions differ |" in text
    assert "| D64 causal 2k | 512 (65%) |" in text
    assert "| 1b fp32 | torch fused | 7.5 [6.75, 8.25] | 28 | 3900 | 90% | 0.001 |" in text
    assert "| D64 causal 2k | efftrain triton | forward | 0.25 |" in text
    assert f"| sm_90 forward | {Config(**divided)}: 1, {Config(**plain)}: 2 | {Config(**plain)}: slow |" in text
