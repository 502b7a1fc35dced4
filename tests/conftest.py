"""What tests of several rooms share: a cache of their own, and a little real text."""

import itertools
import os
from pathlib import Path

import pytest

from efftrain.hardware.calibrate import ENOUGH, Calibration, peak
from efftrain.hardware.probe import cpu

# Two tests at once share the processors: a thread that waits for another one must not keep its processor meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded, here and in every process of a test


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Nothing is read from or left in the user's cache, and no study of a test calibrates the processor for seconds."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    for threads, dtype in itertools.product({1, 2, cpu().threads, 2 * cpu().threads}, ("float32", "bfloat16")):
        for _ in range(ENOUGH):
            peak("cpu", dtype, threads, measure=lambda *_: Calibration(1e12, 0.0))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some modules of the standard library as .txt files: real text, small enough for a test."""
    library = Path(os.__file__).parent
    folder = tmp_path_factory.mktemp("text")
    names = (
        "argparse ast codecs configparser csv dataclasses datetime difflib doctest enum ftplib functools inspect"
        " ipaddress locale mailbox pathlib pdb pickle platform shutil statistics subprocess tarfile typing zipfile"
    )
    for name in names.split():
        source = library / f"{name}.py"
        if source.exists():
            (folder / f"{name}.txt").write_text(source.read_text())
    return folder
