"""What this machine is, in the words of a run's environment, and whether it has the device that was asked for.

Read from the kernel's own files and from package metadata, so that it takes milliseconds and imports no torch. Nothing
here names a person or a place: no host name, no user, no path.
"""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pynvml

from efftrain.version import __version__

PACKAGES = ("torch", "triton", "numpy")
CUDA_PROBE = "import torch; print(int(torch.cuda.is_available()), torch.cuda.device_count())"
CUDA_PROBE_TIMEOUT_S = 120.0


class DeviceError(ValueError):
    """A device that does not exist here; one line that says what does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor as this process sees it.

    Attributes:
        model: name in /proc/cpuinfo.
        cores: physical cores of the machine.
        packages: sockets.
        threads: hardware threads that this process may use, by affinity and by its cgroup's quota.
        guest: whether a hypervisor lies below.
    """

    model: str
    cores: int
    packages: int
    threads: int
    guest: bool


def environment(device: str, devices: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The environment of a run for its journal's header.

    Args:
        device: the device that the run trains on, as torch names it.
        devices: facts about the accelerators in use, from whoever can ask them.

    Returns:
        Keys: device, devices, versions, platform, kernel, cpu, memory_bytes.
    """
    return {
        "device": device,
        "devices": [dict(facts) for facts in devices],
        "versions": {"python": platform.python_version(), "efftrain": __version__, **_versions()},
        "platform": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "cpu": asdict(cpu()),
        "memory_bytes": memory_bytes(),
    }


def cpu(root: Path = Path("/")) -> Cpu:
    """The processor; `root` holds `proc` and `sys`."""
    processors = _cpuinfo(root)
    first = processors[0] if processors else {}
    cores = {(p.get("physical id", "0"), p["core id"]) for p in processors if "core id" in p}
    return Cpu(
        model=first.get("model name", "") or platform.processor() or platform.machine(),
        cores=len(cores) or len(processors) or 1,
        packages=len({p.get("physical id", "0") for p in processors}) or 1,
        threads=_threads(root),
        guest="hypervisor" in first.get("flags", "").split(),
    )


def memory_bytes(root: Path = Path("/")) -> int:
    """Main memory that this process may use: the machine's, or less where a cgroup sets a limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [*_cgroup(root, "memory", "memory.max"), *_cgroup(root, "memory", "memory.limit_in_bytes")]
    return min([physical, *(int(text) for text in limits if text.isdecimal())])


def available_device(requested: str, *, ranks: int | None = None) -> str:
    """The device to train on: `cpu`, `cuda` or `cuda:N`.

    `auto` is `cuda` where torch can use a GPU, else `cpu`. CUDA is tried in a process of its own and only where it was
    asked for or NVML finds a board, so that this process stays free of torch and of a CUDA context.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.
        ranks: processes on this machine that train together, each of which takes a GPU of its own; None: there is one.

    Raises:
        DeviceError: not a device, or not here.
    """
    if requested == "cpu" or (requested == "auto" and not _nvml_count()):
        return "cpu"
    if requested != "auto" and not re.fullmatch(r"cuda(:\d+)?", requested):
        raise DeviceError(f"device {requested!r}: expected auto, cpu, cuda or cuda:N")
    count = _cuda_count()
    if requested == "auto" and not count:
        return "cpu"
    if ranks is not None and (ranks > count > 0 or ":" in requested):
        raise DeviceError(
            f"device {requested!r}: {ranks} ranks on this machine take a device each, and torch finds {count}"
            f" CUDA device{'' if count == 1 else 's'}: use cuda and --nproc-per-node of at most {count}, or cpu"
        )
    if requested == "auto":
        return "cuda"
    if not count:
        raise DeviceError(f"device {requested!r}: torch finds no CUDA device here (NVML: {_nvml_count()}); use cpu")
    if int(requested.partition(":")[2] or 0) >= count:
        raise DeviceError(f"device {requested!r}: torch finds {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return requested


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """One dict for each hardware thread."""
    blocks = _read(root / "proc/cpuinfo").strip().split("\n\n")
    parsed = [dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", block, re.MULTILINE)) for block in blocks]
    return [fields for fields in parsed if "processor" in fields]


def _threads(root: Path) -> int:
    """Threads by affinity, or the cgroup's CPU quota, rounded up, where that is less."""
    quotas = [text.split() for text in _cgroup(root, "cpu", "cpu.max")]
    quotas += [
        [quota, period]
        for quota, period in zip(
            _cgroup(root, "cpu", "cpu.cfs_quota_us"), _cgroup(root, "cpu", "cpu.cfs_period_us"), strict=False
        )
    ]
    limits = [math.ceil(int(q) / int(p)) for q, p in (pair for pair in quotas if len(pair) == 2) if q.isdecimal()]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def _cgroup(root: Path, controller: str, file: str) -> list[str]:
    """The content of a cgroup file at each level from this process's group up to the root, v2 and v1."""
    found: list[str] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        here = mount / group.strip("/")
        # A container sees its own group as the root of the tree, whatever /proc calls it.
        levels = [here, *here.parents]
        found += [_read(level / file).strip() for level in levels if level.is_relative_to(mount)]
    return [text for text in found if text]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _nvml_count() -> int:
    """Boards that NVML finds; 0 where it cannot be asked."""
    try:
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlDeviceGetCount()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0


def _cuda_count(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> int:
    """CUDA devices that torch can use, asked in a process of its own."""
    command = [sys.executable, "-c", CUDA_PROBE]
    try:
        done = run(command, capture_output=True, text=True, check=True, timeout=CUDA_PROBE_TIMEOUT_S)
        available, count = done.stdout.split()[-2:]
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
    return int(count) if available == "1" else 0
