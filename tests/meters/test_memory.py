from efftrain.meters.memory import memory_section


def memory(from_step, peak, phase="backward", rss=7000):
    return {
        "kind": "memory", "t": 0, "from_step": from_step, "peak_bytes": peak, "peak_phase": phase, "phases": {},
        "live_before_bytes": 0, "process_peak_bytes": rss, "source": "profiler",
    }  # fmt: skip


def predicted(from_step, peak):
    body = {"peak_bytes": peak, "peak_phase": "backward", "categories": {"gradients": peak // 2}, "source": "tracker"}
    return {"kind": "cost", "t": 0, "from_step": from_step, "predicted_memory": body}


def test_the_highest_peak_is_held_against_the_prediction_of_its_stage(journal):
    lines = [predicted(1, 900), predicted(9, 400), memory(1, 1000), memory(9, 500, "optimizer", 8000)]
    section = memory_section(journal(lines))
    assert section.peak.value == section.peak.low == section.peak.high == 1000
    assert (section.peak.method, section.peak.source, section.peak_phase) == ("measured", "profiler", "backward")
    assert (section.predicted_peak.value, section.predicted_peak.method) == (900, "modelled")
    assert section.categories["gradients"].value == 450
    assert section.unexplained.value == 100
    assert section.process_peak.value == 8000


def test_unexplained_may_be_negative(journal):
    assert memory_section(journal([predicted(1, 900), memory(1, 800)])).unexplained.value == -100


def test_nothing_measured_is_missing(journal):
    section = memory_section(journal([predicted(9, 500), predicted(3, 900)]))
    assert (section.peak.value, section.peak_phase, section.process_peak.value) == (None, None, None)
    assert section.predicted_peak.value == 900
    assert section.unexplained.value is None


def test_nothing_predicted_is_missing(journal):
    section = memory_section(journal([predicted(5, 900), memory(1, 800, rss=None)]))
    assert (section.predicted_peak.value, section.unexplained.value) == (None, None)
    assert section.categories == {}
    assert section.process_peak.value is None
