from efftrain.meters.windows import billed_windows, clip, seconds

S = 1_000_000_000


def step(start, end):
    return {"kind": "step", "t": start * S, "t_end": end * S}


def span(name, start, end):
    return {"kind": "span", "name": name, "t": start * S, "t_end": end * S}


def windows(*lines):
    return [(start // S, end // S) for start, end in billed_windows(lines)]


def test_a_run_without_steps_has_no_bill():
    assert windows(span("compile", 0, 5), span("evaluate", 6, 7)) == []


def test_work_before_training_is_billed_apart_from_warmup_and_idle():
    lines = [span("idle", 0, 2), span("compile", 2, 4), span("calibrate", 5, 6), span("warmup", 6, 9), step(10, 12)]
    assert windows(*lines) == [(2, 4), (5, 6), (10, 12)]


def test_training_is_one_window_up_to_the_last_evaluation():
    assert windows(step(0, 2), step(5, 6), span("evaluate", 6, 9)) == [(0, 9)]


def test_pauses_inside_training_are_cut_out():
    lines = [step(0, 2), span("warmup", 3, 5), span("idle", 7, 8), step(9, 10)]
    assert windows(*lines) == [(0, 3), (5, 7), (8, 10)]


def test_a_compilation_inside_a_warmup_is_billed():
    assert windows(span("warmup", 0, 10), span("compile", 2, 5), step(10, 11)) == [(2, 5), (10, 11)]


def test_overlapping_spans_are_billed_once():
    assert windows(span("compile", 0, 4), span("calibrate", 3, 6), step(8, 9)) == [(0, 6), (8, 9)]


def test_what_follows_the_last_step_and_evaluation_is_not_billed():
    assert windows(step(0, 2), span("checkpoint", 3, 5), span("idle", 5, 9)) == [(0, 2)]


def test_idle_around_the_run_takes_nothing_away():
    assert windows(span("idle", 0, 5), step(4, 8), span("idle", 7, 12)) == [(5, 7)]


def test_clip_and_seconds():
    assert clip([(0, 4 * S), (6 * S, 9 * S), (10 * S, 11 * S)], 7 * S) == [(0, 4 * S), (6 * S, 7 * S)]
    assert seconds([(0, 4 * S), (6 * S, 9 * S)]) == 7.0


def test_without_steps_all_that_was_measured_is_billed():
    begun, ended = span("whole", 3, 3), span("whole", 3, 9)
    tick = {"kind": "tick", "t": 7 * S}
    assert windows(begun, tick, ended, {"kind": "tick", "t": 10 * S}) == [(3, 9)]
    assert windows(begun, tick) == [(3, 7)]  # cut off: up to the last line
    assert windows(begun, step(4, 6), ended) == [(4, 6)]
