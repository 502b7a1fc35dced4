"""The figures in a few lines: what stands there adds up for whoever reads it."""

from records import run_record

from efftrain.adapters.words import lines
from efftrain.record.quantities import exact, missing


def _carbon_line(embodied: object) -> str:
    run = run_record()
    run = run.model_copy(update={"carbon": run.carbon.model_copy(update={"embodied": embodied})})
    return next(line for line in lines(run, None, []) if line.startswith("CO₂e"))


def test_grams_that_no_joule_made_are_named():
    said = _carbon_line(exact(0.002, "g", source="a share of a server", method="assumed"))
    assert "of which 2.00 mg for making the hardware, the rest at" in said


def test_hardware_that_is_not_known_is_not_spoken_of():
    assert "hardware" not in _carbon_line(missing("g", source="nothing is known of the hardware"))
