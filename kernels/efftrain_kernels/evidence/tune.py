"""The fastest of the compiled configurations, found by running them, and kept in a file that attention reads.

Only candidates that the ahead-of-time check compiles are tried, and only those that are right on integers are timed.
This is asked for by somebody, never done while they train.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efftrain_kernels._kernels import configs
from efftrain_kernels._kernels.attention import Call, Target, backward_launches, forward_launches
from efftrain_kernels._kernels.configs import Config, Kernel, Key
from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels.evidence import exact, measure
from efftrain_kernels.evidence.isolated import Failure, outcomes
from efftrain_kernels.evidence.table import number, table

TOKENS, HIDDEN, LENGTH = 16384, 2048, 8192
LIMIT_S = 90.0
ENOUGH_HANGS = 2
METHOD = "median of single kernels at 8,192 tokens, L2 cache overwritten before each; wrong ones are left out"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found for one key.

    Attributes:
        key: which kernel, for what.
        seconds: medians of those that were right.
        rejected: why others were not timed.
    """

    key: Key
    seconds: dict[Config, float] = field(default_factory=dict)
    rejected: dict[Config, str] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The fastest that does every call, or the table's where none was right."""
        plain = {config: x for config, x in self.seconds.items() if not config.specialised}
        return min(plain, key=lambda config: plain[config], default=configs.candidates(self.key)[0])

    @property
    def specialised(self) -> Config | None:
        """The fastest of those that do plain calls alone, if it is faster than the others."""
        best = min(self.seconds, key=lambda config: self.seconds[config], default=None)
        return best if best is not None and best.specialised else None

    @property
    def whole(self) -> bool:
        """Whether every candidate was tried."""
        return {*self.seconds, *self.rejected} >= {*configs.candidates(self.key)}


Task = tuple[Key, Config, torch.device, int, tuple[torch.dtype, ...] | None]


def tune(
    *,
    path: Path | None = None,
    device: torch.device | None = None,
    keys: Sequence[Key] | None = None,
    length: int = LENGTH,
    deadline: float = float("inf"),
    dtypes: tuple[torch.dtype, ...] | None = None,
    before: Sequence[Choice] = (),
    keep: Callable[[list[Choice]], None] = lambda _: None,
) -> list[Choice]:
    """Measure every key that has a choice, and write the file, anew after each measurement.

    On a GPU all is tried in another process, because warps might wait for each other for ever.

    Args:
        path: the file; this device's own if None.
        device: a CUDA device, or the CPU where kernels are interpreted.
        keys: which; all of this device's architecture if None.
        length: tokens to measure at.
        deadline: `time.monotonic()` after which nothing more is begun; keys that are left keep the table's.
        dtypes: 16-bit types to try on integers, the first of which is timed; bfloat16 if None.
        before: what an earlier try has found; it is not measured again.
        keep: called with all that was found, after each measurement.

    Raises:
        ValueError: there is no GPU, or none that a table serves.
    """
    device = device or measure.default_device()
    name = measure.device_name(device)
    found = {choice.key: choice for choice in before}
    hanging: Counter[Kernel] = Counter()

    def tasks() -> Iterator[Task]:
        for key in choices(device) if keys is None else keys:
            choice = found.setdefault(key, Choice(key))
            for config in configs.candidates(key):
                if time.monotonic() > deadline:
                    return
                if config in choice.seconds or config in choice.rejected:
                    continue
                if config.specialised and hanging[key.kernel] >= ENOUGH_HANGS:
                    choice.rejected[config] = "others of its kind hang"
                elif device.type == "cuda" or not config.specialised:
                    yield key, config, device, length, dtypes

    for outcome in outcomes(_try, tasks(), processes=1 if device.type == "cuda" else 0, limit_s=LIMIT_S):
        key, config, *_ = outcome.task
        result = outcome.result.reason if isinstance(outcome.result, Failure) else outcome.result
        if isinstance(result, str):  # a configuration that does not run is not chosen
            found[key].rejected[config] = result[:200]
            hanging[key.kernel] += config.specialised and ("hangs" in result or "no result" in result)
        else:
            found[key].seconds[config] = result
        write(path or configs.tuned_path(name), name, [*found.values()])
        keep([*found.values()])
    return [*found.values()]


def choices(device: torch.device) -> list[Key]:
    """The keys of a device's architecture that have more than one configuration.

    Raises:
        ValueError: there is no GPU, or none that a table serves.
    """
    if device.type != "cuda":
        raise ValueError("there is no CUDA device to tune for; the table's configurations stay in use")
    arch = configs.architecture(torch.cuda.get_device_capability(device))
    every_key = configs.keys()
    return [key for key in every_key if key.arch == arch and len(configs.candidates(key)) > 1]


def describe(found: Sequence[Choice]) -> str:
    """A table of what was chosen, and how much faster than the table's it is."""
    rows = []
    for choice in found:
        first = configs.candidates(choice.key)[0]
        best = choice.specialised or choice.config
        ours, theirs = choice.seconds.get(best), choice.seconds.get(first)
        gain = theirs / ours if ours and theirs else None
        ms = None if ours is None else ours * 1e3
        rejected = "; ".join(f"{config}: {why}" for config, why in choice.rejected.items())
        rows.append((str(choice.key), str(best), number(ms, ".4g"), number(gain, ".3f"), rejected))
    return table(("kernel", "fastest", "p50 ms", "times the table's speed", "left out"), rows)


def write(path: Path, device: str, found: Sequence[Choice]) -> None:
    """Write a tuned file so that a reader sees the old one or the new one whole."""
    chosen = [
        (choice.key, config)
        for choice in found
        for config in (choice.config, choice.specialised)
        if config is not None and config in choice.seconds
    ]
    document = configs.tuned_document(device, chosen, versions=measure.versions(), method=METHOD)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=1) + "\n")
    draft.replace(path)


def _try(task: Task) -> float | str:
    """The median in s, or what is wrong on integers."""
    key, config, device, length, dtypes = task
    tried = exact.problems(key, length=min(256, length), dtypes=dtypes or (torch.bfloat16,))
    wrong = [finding for finding in exact.try_config(key, config, device, tried) if not finding.right]
    if wrong:
        return f"wrong: {wrong[0].tensor} of {wrong[0].problem}"
    return measure.latency(_timed(key, config, device, length, dtypes), device).p50_s


def _timed(
    key: Key, config: Config, device: torch.device, length: int, dtypes: tuple[torch.dtype, ...] | None
) -> Callable[[], None]:
    """The one kernel of `key`, ready to run again and again on random numbers."""
    target = Target(key.arch, configs={key.kernel: config})
    kind = torch.float32 if key.dtype == "float" else (dtypes or (torch.bfloat16,))[0]
    heads = max(1, HIDDEN // key.block_d) if length == LENGTH else 1
    batch = max(1, TOKENS // length) if length == LENGTH else 1
    q, k, v, grad = (torch.randn(batch, heads, length, key.block_d, device=device).to(kind) for _ in range(4))
    out, gradient = torch.empty_like(q), torch.empty_like(q)
    lse, delta = (torch.empty(q.shape[:3], device=device) for _ in range(2))
    call = Call(
        key.block_d**-0.5, None, None if key.kind == "full" else 0, 30.0 * (key.kind == "capped"), length, length
    )
    launches: list[Launch] = forward_launches(q, k, v, out, lse, call, target)
    if key.kernel == "forward":
        return launches[0].run
    launches += backward_launches(grad, None, q, k, v, out, lse, delta, gradient, k.clone(), v.clone(), call, target)
    for launch in launches:  # fills what the timed kernel reads
        launch.run()
    return launches[2 if key.kernel == "keys" else 3].run
