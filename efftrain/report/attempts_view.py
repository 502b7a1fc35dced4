"""A run that was stopped and resumed, in a sentence: what each of its processes did and used."""

from collections.abc import Sequence

from efftrain.record.schema import Attempt, Run
from efftrain.report.format import figure


def attempt_lines(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run that took several attempts; steps that were done twice are on its bill."""
    return [_sentence(run) for run in runs if len(run.attempts) > 1]


def _sentence(run: Run) -> str:
    made = sum(a.last_step - a.first_step + 1 for a in run.attempts if a.last_step)
    again = made - run.steps
    twice = f"; {again:,} {'step was' if again == 1 else 'steps were'} done again" if again > 0 else ""
    listed = "; ".join(_attempt(attempt) for attempt in run.attempts)
    return f"{run.run_id}: {len(run.attempts)} attempts, all in its bill{twice}: {listed}."


def _attempt(attempt: Attempt) -> str:
    if not attempt.last_step:
        return f"no step ({attempt.status})"
    used = f"{figure(attempt.energy, interval=False)} in {figure(attempt.time)}"
    return f"steps {attempt.first_step:,} to {attempt.last_step:,} ({attempt.status}), {used}"
