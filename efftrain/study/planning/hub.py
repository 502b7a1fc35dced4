"""A Hugging Face configuration on disk as a model that can be planned, asked of a process of its own.

transformers and torch stay out of this process. What the other one builds, on fake tensors and without a network, it
counts: parameters, and model FLOPs by operation.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from efftrain.record.plain import from_plain
from efftrain.training.config import ConfigError
from efftrain.workload.models.presets import HF_PREFIX, Attention, HuggingFaceModel

DEFAULT_SEQ_LEN: Final = 512
"""Tokens of context where nobody says otherwise and the model's positions reach as far."""

_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
_TIMEOUT_S: Final = 600


def describe(
    path: Path, *, task: str | None = None, seq_len: int | None = None, attention: Attention = "sdpa"
) -> HuggingFaceModel:
    """The model that `path` describes.

    Args:
        path: a config.json, or a folder that holds one.
        task: `causal` or `masked`; None: what the configuration says.
        seq_len: tokens of context; None: what the model's positions allow, at most 512.
        attention: which implementation computes attention.

    Raises:
        ConfigError: a file that cannot be read, a model that transformers cannot build or that is no causal or masked
            language model, or wishes that it cannot fulfil; one line that names the file.
    """
    path = path / "config.json" if path.is_dir() else path
    name = f"--model {HF_PREFIX}{path}"
    architecture = _read(path, name)
    if find_spec("transformers") is None:
        raise ConfigError(f"{name}: transformers is missing; install efftrain[hf]")
    if task not in (None, "causal", "masked"):
        raise ConfigError(f"{name}: a Hugging Face model learns 'causal' or 'masked', not {task!r}")
    wish = {"architecture": architecture, "task": task, "seq_len": seq_len, "attention": attention}
    answer = _ask(wish, name)
    if "error" in answer:
        raise ConfigError(f"{name}: {answer['error']}")
    return from_plain(HuggingFaceModel, {**answer, "path": str(path), "architecture": architecture})


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}; expected a config.json") from None
    except ValueError as error:
        raise ConfigError(f"{name}: is not JSON ({error})") from None
    if not isinstance(architecture, dict) or not isinstance(architecture.get("model_type"), str):
        raise ConfigError(f"{name}: has no model_type; expected the config.json of a transformers model")
    return architecture


def _ask(wish: dict[str, Any], name: str) -> dict[str, Any]:
    """What the process answers, on the last line of what it prints."""
    command = [sys.executable, "-m", "efftrain.study.planning.hub_worker"]
    try:
        done = subprocess.run(
            command, input=json.dumps(wish), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            env={**os.environ, **_OFFLINE},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{name}: could not be counted within {_TIMEOUT_S} s") from None
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        raise ConfigError(f"{name}: could not be built: {last}") from None
