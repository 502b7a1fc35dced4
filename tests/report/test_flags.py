"""Whether a check passed is said first, and what is said of one that did not is what was found."""

import pytest

from efftrain.comparison.checks import RUN_CHECKS, study_checks
from efftrain.meters.energy.consistency import consistency
from efftrain.meters.energy.ledger import Ledger
from efftrain.record.schema import Check
from efftrain.report.flags import FINDINGS, LABELS, WEAKER, study_flags


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("steps_steady", "warning", "warning: steps not steady"),
        ("steps_steady", "passed", "check passed: steps steady"),
        ("idle_steady", "skipped", "not checked: idle steady"),
        ("same_corpus", "failed", "check failed: not the same data"),
        ("utilization_below_peak", "failed", "check failed: utilization above the peak rate"),
        ("utilization_below_peak", "warning", "warning: utilization is an upper bound"),
        ("of_a_later_version", "failed", "check failed: not so: of a later version"),
    ],
)
def test_a_heading_says_what_was_found(name: str, status: str, said: str) -> None:
    (flag,) = study_flags([Check.model_validate({"name": name, "status": status, "detail": "why"})])
    assert (f"{flag.label} {flag.heading}", flag.check, flag.detail) == (said, name, "why")


def test_every_check_has_a_finding_that_is_not_what_it_expects() -> None:
    steps = consistency(Ledger({"sensors": []}), [], [], {})
    known = {*RUN_CHECKS, *(check.name for check in [*study_checks([], []), *steps])}
    assert known <= FINDINGS.keys()
    assert WEAKER.keys() <= FINDINGS.keys()
    assert all(said != name.replace("_", " ") for name, said in FINDINGS.items())
    assert LABELS.keys() == {"passed", "warning", "failed", "skipped"}
