"""Energy counters of NVIDIA GPUs, and facts about the boards, through NVML.

A board of the Volta generation or later counts its joules; an older one shows only its power. Calls that the driver
does not have raise FunctionNotFound, calls that the board does not have raise NotSupported, and any call may raise
either: what cannot be asked is None among the facts and never an error.

CUDA and NVML number boards differently, and CUDA_VISIBLE_DEVICES hides some, so a board is looked up by UUID where one
is given and by number only where there is nothing better.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pynvml

from efftrain.sensors.protocol import Absent, SensorError, SensorInfo

Devices = Sequence[int | str]
"""GPUs of a run: numbers as CUDA counts them under CUDA_VISIBLE_DEVICES, or UUIDs (or their beginnings)."""

PERIOD_S = 0.0209
"""Updates come every 100 or 20 ms, so that this beats with neither: each poll finds the counter at another age."""
U_LAG_S = 0.01
"""How far a counter's updates may lie behind what they count; assumed, no maker states it."""
U_RELATIVE = 0.0255
"""±5 % per board as a 95 % bound: Yang, Adamek, Armour, SC '24 (arXiv:2312.02741), read as a gain error."""

BOUNDARY = "the GPU board with its memory, whoever uses it; not the host"
_SOURCE: dict[str, str] = {
    "energy": "NVML energy counter (nvmlDeviceGetTotalEnergyConsumption, ±5 %)",
    "power": "NVML power (±5 %, a mean over some time); no energy counter here",
    "witness": "NVML power beside the energy counter",
}
_CURES: dict[str, str] = {
    "NVMLError_LibRmVersionMismatch": "reboot or reload the nvidia kernel module: it is not of the library's version",
    "NVMLError_DriverNotLoaded": "sudo modprobe nvidia",
    "NVMLError_LibraryNotFound": "install the NVIDIA driver; in a container, start it with the GPU's driver libraries",
    "NVMLError_NoPermission": "give this user access to /dev/nvidia*",
}


Kind = Literal["energy", "power", "witness"]


class NvmlSensor:
    """One board: its energy counter in J, or its power in W, alone or as a witness beside the counter.

    Raises:
        SensorError: the board cannot be read this way; `__cause__` is NVML's error.
    """

    def __init__(self, board: "_Board", kind: Kind) -> None:
        library = board.nvml
        doubt, counter = board.doubt, f"gpu{board.index}"
        energy, witness = kind == "energy", kind == "witness"
        self.info = SensorInfo(
            name=f"{counter}:power" if witness else counter, component="gpu", device=board.uuid,
            kind="energy" if energy else "power", unit="J" if energy else "W", u_relative=U_RELATIVE,
            u_lag_s=U_LAG_S if energy else 0.0, period_s=PERIOD_S, witness_of=counter if witness else None,
            method="assumed" if doubt else "measured", source=_SOURCE[kind] + (f"; {doubt}" if doubt else ""),
            boundary=BOUNDARY,
        )  # fmt: skip
        self._library = library
        self._ask = self._how(board, energy=energy)
        self.read()
        _call(library, library.nvmlInit)  # NVML counts its users: it stays until the last one has closed
        self._open = True

    def read(self) -> float:
        """Joules since the driver was loaded, or watts; NVML counts in mJ and mW."""
        return _call(self._library, self._ask) / 1000

    def close(self) -> None:
        """Leave NVML."""
        if self._open:
            self._open = False
            with contextlib.suppress(self._library.NVMLError):
                self._library.nvmlShutdown()

    @staticmethod
    def _how(board: "_Board", *, energy: bool) -> Callable[[], int]:
        """What to call: the counter; or the momentary power, and where a board has none of that, its mean power."""
        library, handle = board.nvml, board.handle
        if energy:
            return lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle)
        instant = functools.partial(_instant_power, library, handle)
        try:
            instant()
        except (library.NVMLError, AttributeError):
            return lambda: library.nvmlDeviceGetPowerUsage(handle)
        return instant


def _instant_power(library: Any, handle: Any) -> int:
    """Power in mW without the mean over 1 s that `nvmlDeviceGetPowerUsage` takes on most boards."""
    (field,) = library.nvmlDeviceGetFieldValues(handle, [library.NVML_FI_DEV_POWER_INSTANT])
    if field.nvmlReturn != library.NVML_SUCCESS:
        raise library.NVMLError(field.nvmlReturn)
    return field.value.uiVal


def find_gpus(
    devices: Devices | None, *, library: Any = pynvml, environ: Mapping[str, str] = os.environ
) -> tuple[list[NvmlSensor], list[Absent]]:
    """A sensor for each board, and why others have none.

    Args:
        devices: the boards of the run; empty: none is opened; None: all that CUDA may see.
        library: the `pynvml` module, or what acts like it.
        environ: where CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER stand.
    """
    found: list[NvmlSensor] = []
    absent: list[Absent] = []
    for board in _boards(devices, library, environ):
        opened = _open(board) if isinstance(board, _Board) else board
        if isinstance(opened, Absent):
            absent.append(opened)
        else:
            found.extend(opened)
    return found, absent


def gpu_facts(
    devices: Devices | None, *, library: Any = pynvml, environ: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """What NVML tells about each board, for a run's environment; None where a board or a driver does not tell.

    Keys: name, uuid, index, driver, compute_capability ("9.0"), power_limit_w, max_sm_clock_hz, max_memory_clock_hz,
    memory_bytes, mig, vgpu and other_processes (compute processes on the board that are not this one), and
    other_process_ids, their numbers.
    """
    boards = _boards(devices, library, environ)
    return [_facts(board) for board in boards if isinstance(board, _Board)]


@dataclass(frozen=True, slots=True)
class _Board:
    """A GPU board and, in `doubt`, why its readings may not be those of the run."""

    nvml: Any
    handle: Any
    index: int
    uuid: str
    doubt: str = ""


def _boards(devices: Devices | None, library: Any, environ: Mapping[str, str]) -> Iterator[_Board | Absent]:
    """Each board once, or why it cannot be had. NVML is open while this runs."""
    if devices is not None and not devices:
        return
    try:
        _call(library, library.nvmlInit)
    except SensorError as error:
        missing = isinstance(error.__cause__, library.NVMLError_LibraryNotFound)
        if not missing or devices is not None:  # without a library and without a wish for one, there is no GPU
            yield _absent("gpu", error)
        return
    try:
        seen: set[str] = set()
        for wanted in _wanted(devices, library, environ):
            board = _look_up(wanted, library, environ)
            if not (isinstance(board, _Board) and board.uuid in seen):
                yield board
            if isinstance(board, _Board):
                seen.add(board.uuid)
    except SensorError as error:
        yield _absent("gpu", error)
    finally:
        with contextlib.suppress(library.NVMLError):
            library.nvmlShutdown()


def _wanted(devices: Devices | None, library: Any, environ: Mapping[str, str]) -> Devices:
    """The boards meant, as NVML numbers or UUIDs."""
    visible = _visible(environ)
    if visible is None:
        return range(_call(library, library.nvmlDeviceGetCount)) if devices is None else devices
    if devices is None:
        return visible
    hidden = [f"cuda:{d}" for d in devices if isinstance(d, int) and d >= len(visible)]
    if hidden:
        raise SensorError(f"{', '.join(hidden)}: CUDA_VISIBLE_DEVICES leaves {len(visible)} of the boards")
    return [visible[d] if isinstance(d, int) else d for d in devices]


def _visible(environ: Mapping[str, str]) -> list[int | str] | None:
    """What CUDA_VISIBLE_DEVICES leaves; None: everything. As in CUDA, the first invalid entry ends the list."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    left: list[int | str] = []
    for entry in map(str.strip, text.split(",")):
        if entry.isdecimal():
            left.append(int(entry))
        elif entry.startswith(("GPU-", "MIG-")):
            left.append(entry)
        else:
            break
    return left


def _look_up(wanted: int | str, library: Any, environ: Mapping[str, str]) -> _Board | Absent:
    try:
        handle = _handle(wanted, library)
        index, uuid = (_call(library, ask, handle) for ask in (library.nvmlDeviceGetIndex, library.nvmlDeviceGetUUID))
    except SensorError as error:
        return _absent(f"gpu{wanted}" if isinstance(wanted, int) else wanted, error)
    reasons = (_shared(library, handle), _misnumbered(wanted, library, environ))
    return _Board(library, handle, index, uuid, doubt="; ".join(filter(None, reasons)))


def _handle(wanted: int | str, library: Any) -> Any:
    if isinstance(wanted, int):
        return _call(library, library.nvmlDeviceGetHandleByIndex, wanted)
    if wanted.startswith("MIG-"):
        part = _call(library, library.nvmlDeviceGetHandleByUUID, wanted)
        return _call(library, library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part)
    start = "GPU-" + wanted.removeprefix("GPU-")  # torch leaves the prefix out
    for handle in _handles(library):
        if _call(library, library.nvmlDeviceGetUUID, handle).startswith(start):
            return handle
    raise SensorError(f"NVML knows no board {wanted}")


def _handles(library: Any) -> Iterator[Any]:
    for index in range(_call(library, library.nvmlDeviceGetCount)):
        with contextlib.suppress(library.NVMLError):
            yield library.nvmlDeviceGetHandleByIndex(index)


def _shared(library: Any, handle: Any) -> str:
    """Why the counter of a board would count others' work too, or nothing."""
    if _mig(library, handle):
        return "the board is split by MIG and counts as a whole, of which this run has a part"
    if _vgpu(library, handle):
        return "a virtual GPU: the board is shared with other machines"
    return ""


def _misnumbered(wanted: int | str, library: Any, environ: Mapping[str, str]) -> str:
    """CUDA numbers the fastest board first, NVML by PCI bus; among different boards a number may mean another one."""
    if isinstance(wanted, str) or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return ""
    names = {_ask(library, library.nvmlDeviceGetName, handle) for handle in _handles(library)}
    return "" if len(names) <= 1 else "boards differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID: it may be another board"


def _open(board: _Board) -> list[NvmlSensor] | Absent:
    """The counter with a power beside it, or the power alone."""
    lacking = (board.nvml.NVMLError_NotSupported, board.nvml.NVMLError_FunctionNotFound)
    try:
        counter = NvmlSensor(board, "energy")
    except SensorError as error:
        if not isinstance(error.__cause__, lacking):
            return _absent(f"gpu{board.index}", error)
        try:
            return [NvmlSensor(board, "power")]
        except SensorError as second:
            return _absent(f"gpu{board.index}", second)
    try:
        return [counter, NvmlSensor(board, "witness")]
    except SensorError:
        return [counter]


def _absent(name: str, error: SensorError) -> Absent:
    cure = _CURES.get(type(error.__cause__).__name__, "")
    return Absent(component="gpu", name=name, why=f"NVML: {error}", cure=cure)


def _facts(board: _Board) -> dict[str, Any]:
    library, handle = board.nvml, board.handle

    def ask(call: Callable[..., Any], *args: Any) -> Any:
        return _ask(library, call, handle, *args)

    limit_mw = ask(library.nvmlDeviceGetEnforcedPowerLimit)
    sm_mhz = ask(library.nvmlDeviceGetMaxClockInfo, library.NVML_CLOCK_SM)
    memory_mhz = ask(library.nvmlDeviceGetMaxClockInfo, library.NVML_CLOCK_MEM)
    memory = ask(library.nvmlDeviceGetMemoryInfo)
    capability = ask(library.nvmlDeviceGetCudaComputeCapability)
    processes = ask(library.nvmlDeviceGetComputeRunningProcesses)
    others = None if processes is None else [p.pid for p in processes if p.pid != os.getpid()]
    return {
        "name": ask(library.nvmlDeviceGetName),
        "uuid": board.uuid,
        "index": board.index,
        "driver": _ask(library, library.nvmlSystemGetDriverVersion),
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "max_sm_clock_hz": None if sm_mhz is None else sm_mhz * 1_000_000,
        "max_memory_clock_hz": None if memory_mhz is None else memory_mhz * 1_000_000,
        "memory_bytes": None if memory is None else memory.total,
        "mig": _mig(library, handle),
        "vgpu": _vgpu(library, handle),
        "other_processes": None if others is None else len(others),
        "other_process_ids": others,
    }


def _mig(library: Any, handle: Any) -> bool | None:
    mode = _ask(library, library.nvmlDeviceGetMigMode, handle)  # current and pending; a board without MIG: NotSupported
    return None if mode is None else mode[0] == 1


def _vgpu(library: Any, handle: Any) -> bool | None:
    mode = _ask(library, library.nvmlDeviceGetVirtualizationMode, handle)
    return None if mode is None else mode == library.NVML_GPU_VIRTUALIZATION_MODE_VGPU


def _ask(library: Any, call: Callable[..., Any], *args: Any) -> Any:
    """The answer of one NVML call, or None; pynvml has errors of its own too for calls that a driver lacks."""
    try:
        return call(*args)
    except Exception:
        return None


def _call(library: Any, call: Callable[..., Any], *args: Any) -> Any:
    """The answer of one NVML call; its error as a `SensorError`."""
    try:
        return call(*args)
    except library.NVMLError as error:
        raise SensorError(str(error)) from error
