"""Records for the tests of this folder."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from efftrain.record.schema import Run


@pytest.fixture(scope="session")
def run_record() -> Callable[..., Run]:
    """Builds a record from a few choices; tests/ is no package, so its module is loaded by path."""
    spec = importlib.util.spec_from_file_location("records", Path(__file__).parent.parent / "records.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.run_record
