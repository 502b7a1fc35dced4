from efftrain.record.quantities import exact
from efftrain.record.schema import Attempt
from efftrain.report.attempts_view import attempt_lines
from efftrain.report.markdown import markdown
from tests.report.conftest import study_of


def attempt(status: str, first: int, last: int, joules: float) -> Attempt:
    return Attempt(
        status=status, first_step=first, last_step=last, energy=exact(joules, "J", source="a counter"),
        time=exact(joules / 100, "s", source="clock"),
    )  # fmt: skip


def test_a_run_in_one_piece_needs_no_word(run_record):
    assert attempt_lines([run_record()]) == []


def test_each_attempt_is_said_with_what_it_used_and_what_was_done_again(run_record):
    attempts = [attempt("killed", 1, 312, 120), attempt("failed", 0, 0, 0), attempt("complete", 301, 600, 100)]
    run = run_record(steps=600).model_copy(update={"attempts": attempts})
    (line,) = attempt_lines([run])
    assert line == (
        "baseline-s0: 3 attempts, all in its bill; 12 steps were done again: steps 1 to 312 (killed), 120 J in 1.20 s; "
        "no step (failed); steps 301 to 600 (complete), 100 J in 1.00 s."
    )
    assert "3 attempts, all in its bill" in markdown(*study_of([run]))
