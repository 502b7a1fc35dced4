"""What making the hardware emits, by published figures and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.meters.carbon.embodied import HOURS_PER_YEAR, accelerator, embodied, server, time_share

SETTINGS = {"lifetime_years": 4.0, "utilization": 0.85}
GPU = {"device": "cuda", "devices": [{"name": "NVIDIA H100 80GB HBM3"}], "cpu": {"cores": 64, "threads": 128}}


def test_bloom_s_hardware():
    """11.2 t: 7.57 of servers and 3.64 of GPUs, over 6 years at 85 % (Luccioni et al. 2022, section 4.1)."""
    hour = time_share(3600.0, lifetime_years=6, utilization=0.85)
    assert 2500 * hour == pytest.approx(0.056, abs=5e-4)
    assert 150 * hour == pytest.approx(0.00336, abs=5e-6)
    servers = server().value * hour * 1_082_990 / 8
    gpus = accelerator("unheard of").value * hour * 1_082_990
    assert servers == pytest.approx(7.57e6, abs=0.01e6)
    assert gpus == pytest.approx(3.64e6, abs=0.005e6)
    assert servers + gpus == pytest.approx(11.2e6, abs=0.05e6)


def test_the_example_of_the_specification():
    """1000 kg, 4 years, 1 hour: 28 g (SCI 1.1)."""
    assert int(1e6 * time_share(3600.0, lifetime_years=4)) == 28


def test_embodied_of_an_h100():
    """164 kg and an eighth of 2500 kg, over 4 years at 85 %: 5.5 g and 10.5 g an hour."""
    q = embodied(GPU, 3600.0, SETTINGS)
    assert q.value == pytest.approx(1000 * (164 + 2500 / 8) / (4 * 8760 * 0.85))
    assert q.method == "assumed"
    assert q.low < 0.8 * q.value < 1.5 * q.value < q.high
    for word in ("HGX H100 PCF", "HPE", "4 years × 0.85", "1/8"):
        assert word in q.source
    assert "cradle to gate" in q.boundary


@pytest.mark.parametrize(
    ("name", "kg", "word"),
    [
        ("NVIDIA A100-SXM4-40GB", 127.6, "arXiv:2509.00093"),
        ("NVIDIA A100-SXM4-80GB", 127.6, "as of an A100"),
        ("NVIDIA H100 PCIe", 164.0, "as of an H100"),
        ("NVIDIA H200", 164.0, "as of an H100"),
        ("NVIDIA GeForce RTX 4090", 150.0, "without a published footprint"),
    ],
)
def test_boards(name, kg, word):
    q = accelerator(name)
    assert q.value == pytest.approx(1000 * kg)
    assert word in q.source
    assert (q.high - q.low) / q.value > 0.75


def test_the_less_is_known_the_wider():
    spread = [(q.high - q.low) / q.value for q in map(accelerator, ("H100 80GB HBM3", "NVIDIA H200", "other"))]
    assert spread == sorted(spread)


def test_eight_boards_bear_a_whole_server():
    eight = embodied({**GPU, "devices": GPU["devices"] * 8}, 3600.0, SETTINGS)
    assert eight.value == pytest.approx(8 * embodied(GPU, 3600.0, SETTINGS).value)


@given(seconds=st.floats(1e-3, 1e8), years=st.floats(0.1, 20), use=st.floats(0.01, 1.0))
def test_embodied_is_proportional_to_time(seconds, years, use):
    settings = {"lifetime_years": years, "utilization": use}
    one, two = embodied(GPU, seconds, settings), embodied(GPU, 2 * seconds, settings)
    assert two.value == pytest.approx(2 * one.value)
    assert one.value * years * use == pytest.approx(embodied(GPU, seconds, SETTINGS).value * 4 * 0.85)


def test_embodied_of_processors():
    def hour(**cpu):
        return embodied({"device": "cpu", "devices": [], "cpu": cpu}, 3600.0, SETTINGS)

    whole = 2500e3 / (4 * HOURS_PER_YEAR * 0.85)
    assert hour(cores=32, threads=64, guest=False).value == pytest.approx(whole)
    assert hour(cores=32, threads=8, guest=False).value == pytest.approx(whole / 4)
    guest = hour(cores=2, threads=2, guest=True)
    assert guest.value == pytest.approx(whole / 64)
    assert guest.low < 0.35 * guest.value < 2.3 * guest.value < guest.high
    assert "virtual machine; its host assumed" in guest.source


@pytest.mark.parametrize(
    ("environment", "seconds", "why"),
    [
        ({}, 1.0, "does not say what machine"),
        ({"device": "cpu", "devices": []}, 1.0, "does not say what machine"),
        ({**GPU, "devices": []}, 1.0, "which accelerators"),
        (GPU, 0.0, "no time that is billed"),
    ],
)
def test_embodied_that_nobody_can_tell_is_missing(environment, seconds, why):
    q = embodied(environment, seconds, SETTINGS)
    assert q.value is None
    assert why in q.source
