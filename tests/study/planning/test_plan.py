import dataclasses
import json
from pathlib import Path

import pytest

from efftrain.record.plain import from_plain
from efftrain.study.folder import StudyFolder, claim, stored_plan, write_opening
from efftrain.study.planning.plan import Plan, make_plan
from efftrain.study.planning.request import PlanError, Request
from efftrain.training.config import ConfigError


def order(plan: Plan) -> list[str]:
    return [run.run_id for run in plan.runs]


def test_the_quick_study_interleaves_and_reverses():
    plan = make_plan(Request())
    assert order(plan) == [
        "baseline-s0", "bf16-s0", "recompute-s0", "pruned-s0", "distilled-s0",
        "pruned-s1", "recompute-s1", "bf16-s1", "baseline-s1", "distilled-s1",
    ]  # fmt: skip


def test_a_teacher_comes_before_its_student_and_leaves_its_weights():
    plan = make_plan(Request(variants=("distilled", "baseline"), seeds=3))
    for run in plan.runs:
        if run.teacher:
            assert order(plan).index(run.teacher) < order(plan).index(run.run_id)
            assert next(r for r in plan.runs if r.run_id == run.teacher).teaches
    assert not any(run.teaches for run in make_plan(Request(variants=("baseline", "bf16"))).runs)


def test_a_variant_that_cannot_run_here_is_skipped_with_its_reason():
    plan = make_plan(Request(variants=("baseline", "tf32")))
    assert plan.skipped == {"tf32": "tf32 is a format of NVIDIA's matrix units; a CPU has none"}
    assert {run.variant for run in plan.runs} == {"baseline"}
    assert plan.variants == ("baseline", "tf32")


def test_a_study_of_which_nothing_can_run_is_refused():
    with pytest.raises(PlanError, match="variant 'tf32': tf32 is a format of NVIDIA's matrix units; a CPU has none"):
        make_plan(Request(variants=("tf32",)))


def test_the_baseline_of_a_study_without_one_is_a_variant_that_runs():
    assert make_plan(Request(variants=("tf32", "bf16"))).baseline == "bf16"


def test_all_variants_train_the_same_tokens_with_the_same_seeds():
    plan = make_plan(Request())
    assert len({(run.config.steps, run.config.tokens_per_step) for run in plan.runs}) == 1
    assert all(run.config.seed == run.seed for run in plan.runs)


def test_tokens_round_up_to_steps():
    plan = make_plan(Request(variants=("baseline",), tokens=1025))
    assert plan.runs[0].config.steps == 3


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(preset="huge"), "--preset 'huge': unknown; choose from quick, standard, full"),
        (Request(model="gpt9"), "--model 'gpt9': unknown; choose from nano"),
        (Request(variants=("baseline", "magic")), "variant 'magic': unknown"),
        (Request(variants=()), "--variants: none given"),
        (Request(variants=("distilled",)), "--variants baseline,distilled"),
        (Request(seeds=0), "--seeds 0: at least 1"),
        (Request(steps=0), "--steps 0: at least 1"),
        (Request(tokens=-5), "--tokens -5: at least 1"),
        (Request(steps=1, tokens=1), "same thing twice"),
        (Request(first_seed=-1), "--seed -1: 0 to"),
        (Request(first_seed=2**40), "--seed 1099511627776: 0 to 4294967295"),
    ],
)
def test_wishes_that_cannot_be_planned(request_: Request, words: str):
    with pytest.raises(PlanError) as caught:
        make_plan(request_)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_steps_to_prune_in():
    with pytest.raises(ConfigError, match="too few"):
        make_plan(Request(steps=1))


def test_a_plan_survives_its_study_record(tmp_path: Path):
    plan = make_plan(Request())
    assert from_plain(Plan, json.loads(json.dumps(dataclasses.asdict(plan)))) == plan
    folder = claim(tmp_path / "study", force=False)
    write_opening(folder, plan, {"carbon": {"location": "FRA"}})
    again, settings = stored_plan(folder)
    assert again == plan
    assert settings == {"carbon": {"location": "FRA"}}


def test_a_folder_that_holds_a_study_is_not_touched_without_force(tmp_path: Path):
    plan = make_plan(Request())
    folder = claim(tmp_path / "study", force=False)
    write_opening(folder, plan, {})
    (folder.root / "mine.txt").write_text("keep me")
    with pytest.raises(PlanError, match=r"--resume goes on with it, --force overwrites it"):
        claim(folder.root, force=False)
    assert folder.study.exists()
    claim(folder.root, force=True)
    assert not folder.study.exists()
    assert (folder.root / "mine.txt").read_text() == "keep me", "--force removes a study's own files alone"


def test_force_removes_nothing_that_the_new_study_reads(tmp_path: Path):
    folder = claim(tmp_path / "study", force=False)
    write_opening(folder, make_plan(Request()), {})
    kept = folder.root / "runs/a/checkpoints/step-00000008"
    kept.mkdir(parents=True)
    with pytest.raises(PlanError, match=r"--force would remove .*step-00000008, which is read"):
        claim(folder.root, force=True, needed=[str(kept)])
    assert kept.is_dir()
    assert folder.study.exists()


def test_a_folder_with_other_things_is_refused_even_with_force(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(PlanError, match="is not empty and holds no study"):
            claim(tmp_path, force=force)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="--out"):
        claim(tmp_path / "file", force=False)


def test_nothing_to_resume(tmp_path: Path):
    with pytest.raises(PlanError, match="--resume"):
        stored_plan(StudyFolder(tmp_path))
