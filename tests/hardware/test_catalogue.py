import subprocess
import sys

import pytest

from efftrain.hardware.catalogue import DTYPES, PEAK, cpu_tdp, peak_flops, watts_per_thread


@pytest.mark.parametrize(
    ("name", "tflops"),
    [  # dense bfloat16, from the makers' datasheets; each beside the name it has been mistaken for
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA RTX A4000", 76.7),
        ("NVIDIA A40", 149.7),
        ("NVIDIA H20", 148),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_each_name_has_its_own_peak(name: str, tflops: float):
    peak = peak_flops(name, "bfloat16")
    assert peak is not None
    assert peak.flops_per_s == tflops * 1e12
    assert peak.source


@pytest.mark.parametrize(
    "name",
    [
        "", "NVIDIA", "H100", "GH100 [H20]", "GH100", "NVIDIA H100", "NVIDIA H100 80GB HBM3 ", " NVIDIA L4",
        "nvidia l4", "NVIDIA L4 Tensor", "NVIDIA L400", "NVIDIA A4000", "NVIDIA A400", "NVIDIA GH200",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H20-3e", "Tesla V100", "NVIDIA Graphics Device", "Intel(R) Xeon(R) Processor", "cpu", ".*",
    ],
)  # fmt: skip
def test_a_name_that_only_resembles_one_has_no_peak(name: str):
    assert all(peak_flops(name, dtype) is None for dtype in DTYPES)


def test_a_type_that_a_part_has_no_rate_for_is_unknown():
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("NVIDIA L4", "float8") is None
    assert peak_flops("NVIDIA L4", "source") is None


@pytest.mark.parametrize("name", sorted(PEAK))
def test_no_part_is_faster_in_wider_types(name: str):
    part = PEAK[name]
    rates = [rate for rate in (part.float32, part.tf32, part.float16) if rate is not None]
    assert rates == sorted(rates)
    assert part.bfloat16 in (part.float16, None)
    assert 5 < rates[0] < 3000  # TFLOP/s


@pytest.mark.parametrize(
    ("model", "watts"),
    [
        ("AMD EPYC 7763 64-Core Processor", 280),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 120),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 65),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", 28),
        ("AMD Ryzen 7 5800H with Radeon Graphics", 45),
        ("Intel(R) Xeon(R) Processor", None),
        ("Intel(R) Xeon(R) Processor @ 2.20GHz", None),
        ("AMD EPYC", None),
        ("AMD EPYC 776", None),
        ("Intel Celeron 1200", None),  # the table says 29.32.9
        ("Intel Atom E665CT", None),  # the table says two things
        ("", None),
    ],
)
def test_design_power_by_whole_name(model: str, watts: float | None):
    assert cpu_tdp(model) == watts


def test_a_known_part_shares_its_design_power_among_its_cores():
    watts, method, source = watts_per_thread("AMD EPYC 7763 64-Core Processor", cores_per_package=64, guest=False)
    assert (watts, method) == ((4.375, 2.1875, 8.75), "modelled")
    assert "280 W" in source


@pytest.mark.parametrize(("model", "guest"), [("AMD EPYC 7763 64-Core Processor", True), ("Mystery 9000", False)])
def test_a_guest_and_an_unknown_part_are_assumed(model: str, guest: bool):
    watts, method, source = watts_per_thread(model, cores_per_package=64, guest=guest)
    assert (watts, method) == ((4.0, 2.0, 10.0), "assumed")
    assert source


def test_neither_torch_nor_codecarbon_is_imported():
    code = (
        "import sys; from efftrain.hardware import catalogue, probe, calibrate; catalogue.cpu_tdp('x'); "
        "print(sorted({'torch', 'codecarbon', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
