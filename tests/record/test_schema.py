from pathlib import Path

import pytest

from efftrain.record.schema import SCHEMA_FOLDER, RecordError, Study, dumps, json_schemas, load


def test_committed_json_schemas_are_those_of_the_models():
    for name, text in json_schemas().items():
        assert (SCHEMA_FOLDER / name).read_text() == text, "run `make schemas`"


def test_study_round_trip(tmp_path: Path):
    study = Study(
        study_id="s", created="2026-01-01T00:00:00+00:00", command="efftrain bench", baseline="baseline", runs=[],
        variants=[], checks=[],
    )  # fmt: skip
    (tmp_path / "study.json").write_text(dumps(study))
    assert load(tmp_path / "study.json", Study) == study
    assert '"schema": "efftrain.study/1"' in dumps(study)


def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "study.json").write_text('{"schema": "efftrain.study/9"}')
    with pytest.raises(RecordError) as caught:
        load(tmp_path / "study.json", Study)
    assert "study.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match="cannot be read"):
        load(tmp_path / "absent.json", Study)
