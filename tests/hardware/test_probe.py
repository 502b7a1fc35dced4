import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from efftrain.hardware import probe
from efftrain.hardware.probe import DeviceError, available_device, cpu, environment, memory_bytes


def write(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def cpuinfo(packages: int, cores: int, siblings: int, flags: str = "fpu avx2") -> str:
    blocks = [
        f"processor\t: {(p * cores + c) * siblings + s}\nmodel name\t: AMD EPYC 7763 64-Core Processor\n"
        f"physical id\t: {p}\ncore id\t\t: {c}\nflags\t\t: {flags}\n"
        for p in range(packages)
        for c in range(cores)
        for s in range(siblings)
    ]
    return "\n".join(blocks)


def test_cores_packages_and_threads(tmp_path: Path):
    write(tmp_path, "proc/cpuinfo", cpuinfo(packages=2, cores=4, siblings=2))
    found = cpu(tmp_path)
    assert (found.model, found.cores, found.packages, found.guest) == (
        "AMD EPYC 7763 64-Core Processor", 8, 2, False,
    )  # fmt: skip
    assert found.threads == len(os.sched_getaffinity(0))


def test_a_guest_is_told_by_its_hypervisor_flag(tmp_path: Path):
    write(tmp_path, "proc/cpuinfo", cpuinfo(1, 1, 1, flags="fpu hypervisor avx2"))
    assert cpu(tmp_path).guest


def test_a_machine_without_cpuinfo_is_still_a_machine(tmp_path: Path):
    found = cpu(tmp_path)
    assert (found.cores, found.packages, found.guest) == (1, 1, False)
    assert found.model


@pytest.mark.parametrize(("quota", "threads"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_a_cgroup_quota_limits_the_threads(tmp_path: Path, quota: str, threads: int | None):
    write(tmp_path, "proc/self/cgroup", "0::/slice/job\n")
    write(tmp_path, "sys/fs/cgroup/slice/cpu.max", quota)  # the limit may stand above the group itself
    assert cpu(tmp_path).threads == (threads or len(os.sched_getaffinity(0)))


def test_a_quota_of_cgroup_v1(tmp_path: Path):
    write(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/job\n5:memory:/job\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(2**29))
    assert cpu(tmp_path).threads == 1
    assert memory_bytes(tmp_path) == 2**29


def test_memory_is_the_machines_or_the_cgroups(tmp_path: Path):
    physical = memory_bytes(tmp_path)
    meminfo = Path("/proc/meminfo").read_text().split()
    assert physical == int(meminfo[meminfo.index("MemTotal:") + 1]) * 1024
    write(tmp_path, "proc/self/cgroup", "0::/job\n")
    write(tmp_path, "sys/fs/cgroup/job/memory.max", "max")
    write(tmp_path, "sys/fs/cgroup/memory.max", str(2**28))
    assert memory_bytes(tmp_path) == 2**28


def test_environment_holds_what_a_reader_needs_and_names_nobody():
    found = environment("cpu", [{"name": "NVIDIA L4"}])
    assert found["devices"] == [{"name": "NVIDIA L4"}]
    assert {"python", "efftrain", "torch", "numpy"} <= set(found["versions"])
    assert found["cpu"]["threads"] <= len(os.sched_getaffinity(0))
    assert set(found) == {"device", "devices", "versions", "platform", "kernel", "cpu", "memory_bytes"}
    assert set(found["cpu"]) == {"model", "cores", "packages", "threads", "guest"}
    assert os.uname().nodename not in found["platform"].split()
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with so many boards by NVML and so many CUDA devices by torch; counts the times torch was asked."""

    def make(nvml: int, cuda: int) -> list[int]:
        asked: list[int] = []
        monkeypatch.setattr(probe, "_nvml_count", lambda: nvml)
        monkeypatch.setattr(probe, "_cuda_count", lambda: asked.append(1) or cuda)
        return asked

    return make


@pytest.mark.parametrize(
    ("nvml", "cuda", "requested", "device"),
    [
        (0, 0, "auto", "cpu"),
        (2, 2, "auto", "cuda"),
        (2, 0, "auto", "cpu"),  # a CPU build of torch, or CUDA_VISIBLE_DEVICES=""
        (2, 2, "cpu", "cpu"),
        (2, 2, "cuda", "cuda"),
        (2, 2, "cuda:1", "cuda:1"),
        (0, 1, "cuda", "cuda"),  # ROCm: torch calls it cuda, NVML knows nothing of it
    ],
)
def test_device_that_is_there(machine: Any, nvml: int, cuda: int, requested: str, device: str):
    machine(nvml, cuda)
    assert available_device(requested) == device


@pytest.mark.parametrize(
    ("cuda", "requested", "says"),
    [
        (0, "cuda", "finds no CUDA device"),
        (2, "cuda:2", "cuda:0 to cuda:1"),
        (2, "gpu", "expected auto, cpu, cuda or cuda:N"),
        (2, "cuda:", "expected"),
        (2, "cuda:-1", "expected"),
        (2, "", "expected"),
        (2, "CPU", "expected"),
    ],
)
def test_device_that_is_not_there(machine: Any, cuda: int, requested: str, says: str):
    machine(cuda, cuda)
    with pytest.raises(DeviceError, match=says) as caught:
        available_device(requested)
    assert "\n" not in str(caught.value)


def test_torch_is_not_asked_where_nothing_speaks_for_a_gpu(machine: Any):
    asked = machine(0, 0)
    available_device("auto")
    available_device("cpu")
    assert asked == []


@pytest.mark.parametrize(
    ("stdout", "count"), [("1 4\n", 4), ("0 4\n", 0), ("a warning\n1 2\n", 2), ("", 0), ("nonsense here", 0)]
)
def test_what_the_other_process_says(stdout: str, count: int):
    done = subprocess.CompletedProcess([], 0, stdout, "")
    assert probe._cuda_count(lambda *_, **__: done) == count


def test_another_process_that_fails_means_no_cuda():
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(1, "python")

    assert probe._cuda_count(run) == 0
