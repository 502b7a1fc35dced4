"""Every example runs as it stands and learns what it says it learns."""

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def case(name, *, needs):
    missing = [library for library in needs if find_spec(library) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")
    return pytest.param(name, marks=skip, id=name)


CASES = [
    case("nanogpt_loop", needs=[]),
    case("packed_sequences", needs=["transformers"]),
    case("transformers_trainer", needs=["transformers", "accelerate"]),
    case("lightning_module", needs=["lightning"]),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    first, last = map(float, re.search(r"loss (\d+\.\d+) -> (\d+\.\d+)", printed).groups())
    assert last < first / 4
    if name == "packed_sequences":
        single, packed = map(float, re.search(r"(\d+\.\d+) one by one, (\d+\.\d+) packed", printed).groups())
        assert packed == pytest.approx(single, abs=2e-6)  # printed to six places


def test_every_example_is_listed():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(case.id for case in CASES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_can_be_read_in_a_minute(path):
    assert len(path.read_text().splitlines()) < 60
