"""Memory of one optimizer step: predicted on fake tensors, and measured on the real ones.

The prediction is that of torch's own MemTracker, which follows every storage from birth to death and knows what it was
for. The measurement asks an allocator: CUDA's keeps its own peaks; a CPU's keeps none, so torch's profiler watches
every allocation of two warm-up steps, on top of what was live before. Both say in which phase the peak stands, since a
change that lowers the activations gains nothing where the optimizer holds the peak.
"""

import contextlib
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler import profile, record_function
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from efftrain.counting.flops import RunStep, ignore_marks
from efftrain.record.recorder import Phase, Recorder

Held = nn.Module | Optimizer | Tensor
"""Something that is in memory before a step begins: a model (with its gradients), an optimizer, a batch."""

_CATEGORIES: Final = {
    "Parameter": "parameters",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Temp": "temporaries",
    "Buffer": "buffers",
    "Other": "other",
}
"""MemTracker's names and ours; `other` is the batch and whatever else was held as a plain tensor."""

_LABELS: Final[dict[Phase, str]] = {phase: f"efftrain.{phase}" for phase in get_args(Phase)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrediction:
    """The peak of one step as MemTracker predicts it.

    Attributes:
        peak_bytes: most bytes live at once.
        peak_phase: the phase in which they were, None where the step marks no phase.
        categories: bytes by purpose at the peak; they add up to `peak_bytes`.
        source: where the figures come from.
    """

    peak_bytes: int
    peak_phase: Phase | None
    categories: Mapping[str, int]
    source: str

    def record(self, recorder: Recorder, from_step: int) -> None:
        """Write the cost line; it holds from step `from_step` on."""
        predicted = {
            "peak_bytes": self.peak_bytes, "peak_phase": self.peak_phase, "categories": dict(self.categories),
            "source": self.source,
        }  # fmt: skip
        recorder.cost(from_step=from_step, predicted_memory=predicted)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """The peak of a step as an allocator had it.

    Attributes:
        peak_bytes: most bytes live at once.
        peak_phase: the phase in which they were, None where the step marks no phase.
        phases: highest number of live bytes in each phase.
        live_before_bytes: live when the first step began.
        process_peak_bytes: high-water mark of the process's resident memory; it holds all libraries too.
        source: where the figures come from.
        reserved_bytes: most bytes that CUDA's caching allocator held from the device; None on CPU.
        allocation_retries: allocations that succeeded only after the cache was emptied; None on CPU.
    """

    peak_bytes: int
    peak_phase: Phase | None
    phases: Mapping[Phase, int]
    live_before_bytes: int
    process_peak_bytes: int
    source: str
    reserved_bytes: int | None = None
    allocation_retries: int | None = None

    def record(self, recorder: Recorder, from_step: int) -> None:
        """Write the memory line; it holds from step `from_step` on."""
        cuda = {"reserved_bytes": self.reserved_bytes, "allocation_retries": self.allocation_retries}
        recorder.memory(
            from_step=from_step, peak_bytes=self.peak_bytes, peak_phase=self.peak_phase, phases=dict(self.phases),
            live_before_bytes=self.live_before_bytes, process_peak_bytes=self.process_peak_bytes, source=self.source,
            **{name: value for name, value in cuda.items() if value is not None},
        )  # fmt: skip


def predict_memory(run_step: RunStep, held: Sequence[Held]) -> MemoryPrediction:
    """Predict the peak of a step; to be called under `fake_mode()`, with everything built under it.

    The step runs twice and the second is watched: by then the optimizer's state exists. What an optimizer allocates
    and frees within its step counts as `temporaries`. Under recomputation MemTracker may take temporaries for
    activations; their sum is not affected.

    Args:
        run_step: one whole step; it marks `forward` before each micro-batch.
        held: whatever lives longer than a step: model, teacher, optimizer, batch; the model first.
    """
    from torch.distributed._tools.mem_tracker import MemTracker  # 1.5 s: it imports torch.distributed's tensor types

    run_step(ignore_marks)
    device = next(_tensors(held)).device
    tracker = MemTracker()
    for frozen in (p for p in _tensors(held) if isinstance(p, nn.Parameter) and not p.requires_grad):
        # It would put a hook on the gradient, which torch refuses; where it finds handles it puts none.
        tracker._param_to_grad_hook_handles[frozen] = (RemovableHandle(OrderedDict()),) * 2
    tracker.track_external(*held)
    state_bytes = tracker.get_tracker_snapshot()[device]["Optstate"]
    peaks = _Peaks()

    def see() -> Mapping[str, int]:
        peak = tracker.get_tracker_snapshot("peak")[device]
        peaks.see(peak["Total"])
        return peak

    def mark(phase: Phase) -> None:
        see()
        peaks.phase = phase
        if phase == "forward":
            tracker.reset_mod_stats()  # it refuses a second forward of the same model otherwise

    with tracker:
        run_step(mark)
    return MemoryPrediction(
        categories=_categories(see(), state_bytes), peak_bytes=peaks.bytes, peak_phase=peaks.where,
        source=f"torch.distributed._tools.MemTracker on fake {device.type} tensors, torch {torch.__version__}",
    )  # fmt: skip


def measure_cpu_memory(run_step: RunStep, held: Sequence[Held], *, steps: int = 2) -> MeasuredMemory:
    """Run `steps` real steps and follow every allocation of torch's CPU allocator.

    Args:
        run_step: one whole step; it changes weights and optimizer as any step does.
        held: whatever lives longer than a step and exists already: its storages are the bytes live before.
        steps: 2, since the first makes the optimizer's state and only later ones hold all of it throughout.
    """
    before = _cpu_bytes(held)
    profiler = profile(use_kineto=True, profile_memory=True)
    with _silent_kineto(), profiler, ExitStack() as label:

        def mark(phase: Phase) -> None:
            label.close()
            label.enter_context(record_function(_LABELS[phase]))

        for _ in range(steps):
            run_step(mark)
    peaks = _follow(profiler, before)
    return MeasuredMemory(
        peak_bytes=peaks.bytes, peak_phase=peaks.where, phases=peaks.by_phase, live_before_bytes=before,
        process_peak_bytes=_process_peak(),
        source=f"torch profiler: CPU allocations of {steps} warm-up steps, on top of what was live before",
    )  # fmt: skip


def measure_cuda_memory(run_step: RunStep, device: torch.device | None = None, *, steps: int = 2) -> MeasuredMemory:
    """Run `steps` real steps and read the peaks of CUDA's caching allocator at each phase boundary.

    The allocator counts on the host, when a tensor is made, so nothing needs to be synchronised. The process's
    high-water mark is that of host memory.

    Args:
        run_step: one whole step; it changes weights and optimizer as any step does.
        device: the current one if it is not given.
        steps: 2, since the first makes the optimizer's state and only later ones hold all of it throughout.
    """
    before = torch.cuda.memory_allocated(device)
    retries = torch.cuda.memory_stats(device)["num_alloc_retries"]
    peaks, reserved = _Peaks(before), _Peaks()
    torch.cuda.reset_peak_memory_stats(device)

    def see() -> None:
        peaks.see(torch.cuda.max_memory_allocated(device))
        reserved.see(torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)

    def mark(phase: Phase) -> None:
        see()
        peaks.phase = phase

    for _ in range(steps):
        run_step(mark)
    see()
    return MeasuredMemory(
        peak_bytes=peaks.bytes, peak_phase=peaks.where, phases=peaks.by_phase, live_before_bytes=before,
        process_peak_bytes=_process_peak(), reserved_bytes=reserved.bytes,
        allocation_retries=torch.cuda.memory_stats(device)["num_alloc_retries"] - retries,
        source=f"CUDA caching allocator (max_memory_allocated), {steps} warm-up steps",
    )  # fmt: skip


class _Peaks:
    """The most bytes seen, over everything and in each phase."""

    def __init__(self, start: int = 0) -> None:
        self.bytes = start
        self.where: Phase | None = None
        self.phase: Phase | None = None
        self.by_phase: dict[Phase, int] = {}

    def see(self, live: int) -> None:
        if self.phase is not None:
            self.by_phase[self.phase] = max(live, self.by_phase.get(self.phase, 0))
        if live > self.bytes:
            self.bytes, self.where = live, self.phase


def _categories(peak: Mapping[str, int], state_bytes: int) -> dict[str, int]:
    """Bytes by purpose; what MemTracker books as optimizer state beyond the state itself lives within a step."""
    categories = {ours: peak[theirs] for theirs, ours in _CATEGORIES.items()}
    passing = categories["optimizer"] - state_bytes
    categories["optimizer"] -= passing
    categories["temporaries"] += passing
    return categories


def _follow(profiler: profile, live: int) -> _Peaks:
    """Add up allocations and frees in the order of time, from `live` bytes on."""
    peaks = _Peaks(live)
    phases: dict[str, Phase] = {label: phase for phase, label in _LABELS.items()}
    assert profiler.kineto_results is not None
    events: list[Any] = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    for event in events:
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            live += event.nbytes()
        elif event.name() in phases:
            peaks.phase = phases[event.name()]
        else:
            continue
        peaks.see(live)
    return peaks


@contextmanager
def _silent_kineto() -> Iterator[None]:
    """Keep the profiler's `USDT:` lines off the terminal.

    Kineto reads its log level once, when a process first profiles, and logs those lines at level 5; so this comes too
    late only where somebody else has profiled before.
    """
    previous = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "6"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["KINETO_LOG_LEVEL"]
        else:
            os.environ["KINETO_LOG_LEVEL"] = previous


def _tensors(held: Iterable[Held]) -> Iterator[Tensor]:
    for item in held:
        match item:
            case nn.Module():
                yield from item.parameters()
                yield from (p.grad for p in item.parameters() if p.grad is not None)
                yield from item.buffers()
            case Optimizer():
                yield from (x for state in item.state.values() for x in state.values() if isinstance(x, Tensor))
            case Tensor():
                yield item


def _cpu_bytes(held: Iterable[Held]) -> int:
    """Bytes of the distinct CPU storages; views and shared weights count once."""
    storages = [x.untyped_storage() for x in _tensors(held) if x.device.type == "cpu"]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _process_peak() -> int:
    """Linux's own mark for this program; getrusage's would be that of the process it was started from, if higher."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
