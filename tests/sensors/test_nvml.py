"""NVML through a scripted module: boards, what they lack, and how CUDA names them."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from efftrain.sensors.nvml import find_gpus, gpu_facts
from efftrain.sensors.protocol import SensorError


class FakeError(Exception):
    pass


class NotSupportedError(FakeError):
    pass


class FunctionNotFoundError(FakeError):
    pass


class LibraryNotFoundError(FakeError):
    pass


class GpuIsLostError(FakeError):
    pass


Mismatch = type("NVMLError_LibRmVersionMismatch", (FakeError,), {})  # cures are found by NVML's own names


def board(index: int, name: str = "NVIDIA H100 80GB HBM3", **answers: Any) -> dict[str, Any]:
    return {
        "Index": index, "UUID": f"GPU-{index}a5e-0000", "Name": name, "TotalEnergyConsumption": 5_000,
        "PowerUsage": 123_400, "FieldValues": FunctionNotFoundError("none"),
        "EnforcedPowerLimit": 700_000, "MigMode": NotSupportedError("no MIG"),
        "VirtualizationMode": 0, "MemoryInfo": SimpleNamespace(total=80 * 2**30), "MaxClockInfo": 1980,
        "CudaComputeCapability": (9, 0),
        "ComputeRunningProcesses": [SimpleNamespace(pid=-1), SimpleNamespace(pid=-2)], **answers,
    }  # fmt: skip


class FakeNvml:
    """Answers `nvmlDeviceGetX(handle)` from the board's dict; an exception there is raised."""

    NVMLError = FakeError
    NVMLError_NotSupported = NotSupportedError
    NVMLError_FunctionNotFound = FunctionNotFoundError
    NVMLError_LibraryNotFound = LibraryNotFoundError
    NVML_GPU_VIRTUALIZATION_MODE_VGPU = 2
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_SUCCESS = 0

    def __init__(self, *boards: dict[str, Any], init: Exception | None = None) -> None:
        self.boards = boards
        self.init = init
        self.users = 0

    def enter(self) -> None:
        if self.init:
            raise self.init
        self.users += 1

    def leave(self) -> None:
        self.users -= 1

    def __getattr__(self, call: str) -> Any:
        if call in ("nvmlInit", "nvmlShutdown"):
            return self.enter if call == "nvmlInit" else self.leave

        def answer(*args: Any) -> Any:
            if self.users < 1:
                raise FakeError("Uninitialized")
            match call:
                case "nvmlDeviceGetCount":
                    return len(self.boards)
                case "nvmlSystemGetDriverVersion":
                    return "590.48"
                case "nvmlDeviceGetHandleByIndex":
                    if args[0] >= len(self.boards):
                        raise FakeError("Invalid Argument")
                    return self.boards[args[0]]
                case "nvmlDeviceGetHandleByUUID":
                    return {"parent": self.boards[0]}
                case "nvmlDeviceGetDeviceHandleFromMigDeviceHandle":
                    return args[0]["parent"]
            value = args[0][call.removeprefix("nvmlDeviceGet")]
            if isinstance(value, Exception):
                raise value
            return value

        return answer


def find(fake: FakeNvml, devices: Any = None, **environ: str) -> tuple[list[Any], list[Any]]:
    """The sensors that are billed, and what is absent."""
    sensors, absent = find_gpus(devices, library=fake, environ=environ)
    witnesses = [s for s in sensors if s.info.witness_of]
    assert [w.info.witness_of for w in witnesses] == [s.info.name for s in sensors if s.info.kind == "energy"]
    for witness in witnesses:
        witness.close()
    return [s for s in sensors if not s.info.witness_of], absent


def test_a_counter_has_a_power_beside_it():
    fake = FakeNvml(
        board(0), board(1, FieldValues=[SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=99_000))])
    )
    sensors, _ = find_gpus(None, library=fake, environ={})
    assert [s.info.name for s in sensors] == ["gpu0", "gpu0:power", "gpu1", "gpu1:power"]
    assert [s.read() for s in sensors] == [5.0, 123.4, 5.0, 99.0]
    assert (sensors[1].info.kind, sensors[1].info.witness_of) == ("power", "gpu0")


def test_a_board_that_shows_no_power_has_its_counter_alone():
    sensors, absent = find_gpus(None, library=FakeNvml(board(0, PowerUsage=NotSupportedError("no"))), environ={})
    assert ([s.info.name for s in sensors], absent) == (["gpu0"], [])


def test_energy_counter_in_joules():
    sensors, absent = find(FakeNvml(board(0)))
    assert absent == []
    info = sensors[0].info
    assert sensors[0].read() == 5.0
    assert (info.name, info.kind, info.unit, info.device, info.method) == (
        "gpu0", "energy", "J", "GPU-0a5e-0000", "measured",
    )  # fmt: skip
    assert info.u_relative == pytest.approx(0.05 / 1.96, abs=1e-4)


@pytest.mark.parametrize("lack", [NotSupportedError("Not Supported"), FunctionNotFoundError("Function Not Found")])
def test_power_where_there_is_no_counter(lack: Exception):
    sensors, _ = find(FakeNvml(board(0, TotalEnergyConsumption=lack)))
    assert (sensors[0].info.kind, sensors[0].info.unit, sensors[0].read()) == ("power", "W", 123.4)


@pytest.mark.parametrize("lack", [NotSupportedError("Not Supported"), FunctionNotFoundError("Function Not Found")])
def test_neither_counter_nor_power_is_absent(lack: Exception):
    fake = FakeNvml(board(0, TotalEnergyConsumption=lack, PowerUsage=lack), board(1))
    sensors, absent = find(fake)
    assert [s.info.name for s in sensors] == ["gpu1"]
    assert [(a.component, a.name) for a in absent] == [("gpu", "gpu0")]


def test_another_error_does_not_fall_back_to_power():
    sensors, absent = find(FakeNvml(board(0, TotalEnergyConsumption=GpuIsLostError("GPU is lost"))))
    assert sensors == []
    assert absent[0].why == "NVML: GPU is lost"


def test_a_lost_board_is_a_sensor_error_and_may_come_back():
    gpu = board(0)
    sensors, _ = find(FakeNvml(gpu))
    gpu["TotalEnergyConsumption"] = GpuIsLostError("GPU is lost")
    with pytest.raises(SensorError, match="GPU is lost"):
        sensors[0].read()
    gpu["TotalEnergyConsumption"] = 6_000
    assert sensors[0].read() == 6.0


def test_nvml_is_left_when_the_last_sensor_closes():
    fake = FakeNvml(board(0), board(1))
    sensors, _ = find(fake)
    assert fake.users == 2
    for sensor in sensors:
        sensor.close()
        sensor.close()
    assert fake.users == 0


def test_a_run_on_the_cpu_leaves_gpus_alone():
    fake = FakeNvml(board(0))
    assert find(fake, ()) == ([], [])
    assert fake.users == 0


@pytest.mark.parametrize(
    ("devices", "environ", "names"),
    [
        ((0,), {}, ["gpu0"]),
        ((1,), {}, ["gpu1"]),
        (None, {}, ["gpu0", "gpu1", "gpu2"]),
        (None, {"CUDA_VISIBLE_DEVICES": "2,0"}, ["gpu2", "gpu0"]),
        (None, {"CUDA_VISIBLE_DEVICES": "2,-1,0"}, ["gpu2"]),
        (None, {"CUDA_VISIBLE_DEVICES": ""}, []),
        ((0,), {"CUDA_VISIBLE_DEVICES": "2,0"}, ["gpu2"]),
        ((1,), {"CUDA_VISIBLE_DEVICES": "2,0"}, ["gpu0"]),
        ((0,), {"CUDA_VISIBLE_DEVICES": "GPU-1a5e-0000"}, ["gpu1"]),
        ((0,), {"CUDA_VISIBLE_DEVICES": "GPU-1a"}, ["gpu1"]),
        (("GPU-2a5e-0000",), {}, ["gpu2"]),
        (("2a5e-0000",), {}, ["gpu2"]),
        ((0, "GPU-0a5e-0000"), {}, ["gpu0"]),
    ],
)
def test_which_boards_a_run_uses(devices: Any, environ: dict[str, str], names: list[str]):
    sensors, absent = find(FakeNvml(board(0), board(1), board(2)), devices, **environ)
    assert [s.info.name for s in sensors] == names
    assert absent == []


def test_a_number_that_is_not_visible_is_absent():
    sensors, absent = find(FakeNvml(board(0), board(1)), (1,), CUDA_VISIBLE_DEVICES="0")
    assert sensors == []
    assert "cuda:1" in absent[0].why


def test_an_unknown_uuid_is_absent():
    _, absent = find(FakeNvml(board(0)), ("GPU-ffff",))
    assert absent[0].why == "NVML: NVML knows no board GPU-ffff"


@pytest.mark.parametrize(("answers", "word"), [({"MigMode": [1, 1]}, "MIG"), ({"VirtualizationMode": 2}, "virtual")])
def test_a_shared_board_is_assumed(answers: dict[str, Any], word: str):
    sensors, _ = find(FakeNvml(board(0, **answers)))
    assert sensors[0].info.method == "assumed"
    assert word in sensors[0].info.source


def test_a_mig_part_is_read_on_its_board():
    sensors, _ = find(FakeNvml(board(0, MigMode=[1, 1])), (0,), CUDA_VISIBLE_DEVICES="MIG-77")
    assert (sensors[0].info.name, sensors[0].info.method) == ("gpu0", "assumed")


def test_numbers_are_doubtful_among_different_boards():
    boards = board(0), board(1, name="NVIDIA L4")
    doubtful, _ = find(FakeNvml(*boards), (0,))
    ordered, _ = find(FakeNvml(*boards), (0,), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    by_uuid, _ = find(FakeNvml(*boards), ("GPU-0a5e-0000",))
    assert [s[0].info.method for s in (doubtful, ordered, by_uuid)] == ["assumed", "measured", "measured"]


def test_no_library_is_no_gpu_unless_a_run_needs_one():
    fake = FakeNvml(init=LibraryNotFoundError("NVML Shared Library Not Found"))
    assert find(fake) == ([], [])
    _, absent = find(fake, (0,))
    assert [a.component for a in absent] == ["gpu"]


def test_a_driver_mismatch_is_said_with_its_cure():
    _, absent = find(FakeNvml(init=Mismatch("Driver/library version mismatch")))
    assert absent[0].why == "NVML: Driver/library version mismatch"
    assert "reboot" in absent[0].cure


def test_facts_of_a_board():
    facts = gpu_facts(None, library=FakeNvml(board(0)), environ={})
    assert facts == [{
        "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-0a5e-0000", "index": 0, "driver": "590.48",
        "compute_capability": "9.0",
        "power_limit_w": 700.0, "max_sm_clock_hz": 1_980_000_000, "max_memory_clock_hz": 1_980_000_000,
        "memory_bytes": 80 * 2**30, "mig": None, "vgpu": False, "other_processes": 2,
        "other_process_ids": [-1, -2],
    }]  # fmt: skip


def test_facts_that_cannot_be_asked_are_none():
    lacking = dict.fromkeys(
        ("EnforcedPowerLimit", "MaxClockInfo", "MemoryInfo", "ComputeRunningProcesses", "VirtualizationMode"),
        FunctionNotFoundError("Function Not Found"),
    )
    facts = gpu_facts(None, library=FakeNvml(board(0, **lacking)), environ={})[0]
    assert {key for key, value in facts.items() if value is None} == {
        "power_limit_w", "max_sm_clock_hz", "max_memory_clock_hz", "memory_bytes", "mig", "vgpu", "other_processes",
        "other_process_ids",
    }  # fmt: skip


def test_the_real_module_has_every_name_that_is_used():
    names = (
        "nvmlInit nvmlShutdown nvmlDeviceGetCount nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByUUID "
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle nvmlDeviceGetIndex nvmlDeviceGetUUID nvmlDeviceGetName "
        "nvmlDeviceGetTotalEnergyConsumption nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit "
        "nvmlDeviceGetMaxClockInfo nvmlDeviceGetMemoryInfo nvmlDeviceGetComputeRunningProcesses "
        "nvmlDeviceGetMigMode nvmlDeviceGetVirtualizationMode nvmlSystemGetDriverVersion NVMLError "
        "NVMLError_NotSupported NVMLError_FunctionNotFound NVMLError_LibraryNotFound NVMLError_DriverNotLoaded "
        "NVMLError_LibRmVersionMismatch NVMLError_NoPermission NVML_CLOCK_SM NVML_CLOCK_MEM "
        "NVML_GPU_VIRTUALIZATION_MODE_VGPU"
    )
    assert [name for name in names.split() if not hasattr(pynvml, name)] == []


@pytest.mark.gpu
def test_a_real_board_counts_up():
    sensors, _ = find_gpus(None)
    if not sensors:
        pytest.skip("NVML finds no GPU here")
    before = [s.read() for s in sensors]
    assert all(s.read() >= b for s, b in zip(sensors, before, strict=True) if s.info.kind == "energy")
