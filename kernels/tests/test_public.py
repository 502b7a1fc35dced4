import subprocess
import sys

import efftrain_kernels


def test_exported_names():
    assert efftrain_kernels.__all__ == [
        "AdamW", "Explanation", "attention", "explain", "flash_attn_func", "flash_attn_varlen_func",
        "scaled_dot_product_attention",
    ]  # fmt: skip
    assert all(hasattr(efftrain_kernels, name) for name in efftrain_kernels.__all__)


def test_no_module_bears_a_functions_name():
    assert callable(efftrain_kernels.attention)
    assert isinstance(efftrain_kernels.AdamW, type)


def test_importing_needs_neither_triton_nor_efftrain():
    # Each is made impossible to import first; without triton, attention still runs on a CPU.
    code = (
        "import sys; sys.modules['triton'] = sys.modules['efftrain'] = None; import torch, efftrain_kernels as e;"
        "x = torch.ones(1, 1, 2, 8); print(float(e.attention(x, x, x, window=(0, 0)).sum()));"
        "print(e.explain(x, x, x).backend)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "16.0\nsdpa\n"
