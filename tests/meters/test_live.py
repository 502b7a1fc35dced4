import pytest

from efftrain.meters.assemble import assemble
from efftrain.meters.live import LiveMeter

S = 1_000_000_000


def fed(header, lines):
    meter = LiveMeter(header)
    for line in lines:
        meter.feed(line)
    return meter.figures()


def test_the_last_live_figures_are_those_of_the_record(journal, header, run_lines):
    run, live = assemble(journal(run_lines)), fed(header(), run_lines)
    assert live.joules_per_token == pytest.approx(run.energy.per_token.value, rel=1e-12)
    assert live.grams_co2e == pytest.approx(run.carbon.total.value, rel=1e-12)
    assert live.tokens_per_second == pytest.approx(run.time.tokens_per_second.value)
    assert live.mfu == pytest.approx(run.flops.mfu.value)
    assert (live.method, live.lower_bound) == (run.energy.total.method, run.energy.total.lower_bound)
    assert (live.step, live.steps_total, live.loss, live.validation_loss) == (20, 20, run.loss.train[-1], 5.0)
    assert live.eta_s == 0


@pytest.mark.parametrize("until", [6, 8, 11, 13])
def test_live_agrees_with_the_record_of_what_was_fed(journal, header, run_lines, until):
    lines = [line for line in run_lines if line.get("t_end", line["t"]) <= until * S]
    run, live = assemble(journal(lines)), fed(header(), lines)
    assert live.joules_per_token == pytest.approx(run.energy.per_token.value, rel=1e-12)
    assert live.step == run.steps


def test_rates_are_of_the_last_seconds(header, run_lines):
    lines = [line for line in run_lines if line.get("t_end", line["t"]) <= 9 * S]
    live = fed(header(), lines)
    assert live.watts == pytest.approx(200 + 2 * 4)
    assert live.eta_s == pytest.approx(0.5 * 12)  # 8 of 20 steps are done


def test_a_slower_pace_shows_at_once(header):
    def step(n, start, end):
        return {"kind": "step", "t": start * S, "t_end": end * S, "step": n, "tokens": 100, "loss": 1.0, "phases": []}

    live = fed(header(), [step(1, 0, 1), step(2, 1, 2), step(3, 2, 12)])
    assert live.tokens_per_second == pytest.approx(10)


def test_before_anything_all_is_unknown(header):
    live = fed(header(config={}), [])
    assert live.step == 0
    unknown = [live.steps_total, live.loss, live.validation_loss, live.tokens_per_second, live.mfu, live.watts,
               live.joules_per_token, live.grams_co2e, live.eta_s]  # fmt: skip
    assert unknown == [None] * 9
    assert live.method == "missing"


def test_a_lost_sensor_has_no_watts(header, run_lines):
    lines = [line for line in run_lines if line["kind"] != "tick" or line["t"] < 10 * S]
    assert fed(header(), lines).watts is None


def test_the_pace_of_a_resumed_run_is_that_of_its_own_steps(header):
    steps = [
        {"kind": "step", "t": n * S, "t_end": (n + 1) * S, "step": 10 + n, "tokens": 100, "loss": 1.0, "phases": []}
        for n in (1, 2)
    ]
    assert fed(header(), steps).eta_s == pytest.approx(8)  # 12 of 20 steps are done, two of them here, in two seconds
