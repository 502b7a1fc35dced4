"""Kernels run in triton's interpreter where there is no CUDA device, with its product of bfloat16 corrected."""

import json
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any is imported


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tensors are tiny here: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def bfloat16_products():
    """The interpreter keeps bfloat16 as uint16 and multiplies the bit patterns in `tl.dot`; widen them first."""
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot
    if torch.cuda.is_available():
        yield
        return
    import numpy as np
    import triton.language as tl

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, d, *rest):
        return original(self, widen(a), widen(b), d, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    yield
    interpreter.InterpreterBuilder.create_dot = original


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Writes the file of tuned configurations and forgets what was read before."""
    from efftrain_kernels._kernels import configs

    monkeypatch.setenv(configs.ENVIRONMENT, str(tmp_path / "tuned.json"))
    configs._tuned.cache_clear()
    yield lambda document: (tmp_path / "tuned.json").write_text(json.dumps(document))
    configs._tuned.cache_clear()
