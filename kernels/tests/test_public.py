import subprocess
import sys

import efftrain_kernels


def test_exported_names():
    assert efftrain_kernels.__all__ == ["AdamW", "Explanation", "attention", "explain"]
    assert all(hasattr(efftrain_kernels, name) for name in efftrain_kernels.__all__)


def test_no_module_bears_a_functions_name():
    assert callable(efftrain_kernels.attention)
    assert isinstance(efftrain_kernels.AdamW, type)


def test_importing_needs_neither_triton_nor_efftrain():
    # Each is made impossible to import first.
    code = "import sys; sys.modules['triton'] = sys.modules['efftrain'] = None; import efftrain_kernels.costs"
    subprocess.run([sys.executable, "-c", code], check=True)
