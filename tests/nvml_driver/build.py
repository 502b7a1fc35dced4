"""Builds the simulated driver with gcc, once a process for each set of functions that it shall not have."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

SONAME = "libnvidia-ml.so.1"
_FOLDER = Path(__file__).parent


@functools.cache
def build(without: frozenset[str] = frozenset()) -> Path:
    """The library's file, in a folder of its own that goes when the process ends.

    Args:
        without: functions that the library does not export, by pynvml's names; all their versions go.

    Raises:
        RuntimeError: there is no gcc, or it fails.
    """
    if shutil.which("gcc") is None:
        raise RuntimeError("the simulated NVML driver is built with gcc, which is not on PATH")
    folder = Path(tempfile.mkdtemp(prefix="nvml-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    hidden = "".join(f" {name}; {name}_v?; {name}WithFlags;" for name in sorted(without))
    (folder / "exports").write_text(f"{{ global: *; {'local:' if hidden else ''}{hidden} }};\n")
    command = [
        "gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}",
        f"-Wl,--version-script={folder / 'exports'}", "-o", str(folder / SONAME),
        str(_FOLDER / "driver.c"), str(_FOLDER / "meter.c"), "-lm", "-lpthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gcc could not build the simulated NVML driver: {done.stderr}")
    return folder / SONAME
