"""What a loop and a command have in common when they are measured: sensors, a journal, and the records made of it.

Whatever fails here is said once, in the log, and costs figures; nothing raises. A folder that cannot be written is
replaced by a temporary one.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from efftrain.adapters.place import claim, default_folder
from efftrain.adapters.ranks import wait_for_others
from efftrain.adapters.records import Made, make_records, open_study
from efftrain.monitor.idle import measure_idle
from efftrain.monitor.launch import Rank
from efftrain.monitor.machine import environment, find_sensors
from efftrain.monitor.monitor import Monitor
from efftrain.monitor.tree import of_tree
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import SCHEMA, JournalWriter
from efftrain.record.recorder import JournalRecorder, Status
from efftrain.sensors.protocol import Discovery

LOGGER: Final = logging.getLogger("efftrain")
NO_PEAK: Final = "no FLOPs are counted in a training that is only watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be measured, and how.

    Attributes:
        name: of the measurement, and of its variant in the record.
        command: how to do it again, for the record.
        rank: which of a launcher's processes this is.
        carbon: as `efftrain.meters.carbon.footprint.resolve` makes it.
        folder: where everything goes, if that is settled.
        out: else the folder in which it gets one of its own; None: efftrain-runs.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        node_overhead_w: W of what no sensor reads, where the user knows it.
        idle_s: how long idle power is read before, in s; 0: it is not.
        seed: of the training.
        parameters: of the model; 0: unknown.
        config: of the training, as plain data.
        children_only: whether the CPU seconds of this process itself are no part of it.
    """

    name: str
    command: str
    rank: Rank
    carbon: Mapping[str, Any]
    folder: Path | None = None
    out: Path | None = None
    device: str = "auto"
    node_overhead_w: float | None = None
    idle_s: float = 0.0
    seed: int = 0
    parameters: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    children_only: bool = False


class Keeping:
    """One measurement's folder, sensors and journal, from `open` to `close`."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._monitor: Monitor | None = None
        self._journal: JournalWriter | None = None
        self._said: set[str] = set()
        self.folder: StudyFolder | None = None
        """Where everything is; None where nothing can be written at all."""
        self.problems: list[str] = []
        """What went wrong, each in one line."""

    def open(self) -> JournalRecorder | None:
        """Find the sensors, open the journal and begin; None where there is no journal."""
        for place in (self._claim, self._temporary):
            self.folder = None
            with self.guarded("the measurement could not begin"):
                self.folder = StudyFolder(place())
                return self._first() if self._wish.rank.first else self._other()
            if place == self._temporary and self.folder is not None:
                shutil.rmtree(self.folder.root, ignore_errors=True)
        self.folder = None
        return None

    def close(self, status: Status) -> Made | None:
        """End the journal, write the records and reports; the record, or None where there is none."""
        with self.guarded("the sensors could not be closed"):
            if self._monitor is not None:
                self._monitor.__exit__(None, None, None)
        with self.guarded("the journal could not be closed"):
            if self._journal is not None:
                self._journal.close()
        if self._monitor is None or self.folder is None:
            return None
        with self.guarded("no record could be made"):
            others = [self._rank_path(local) for local in range(1, self._wish.rank.ranks)]
            wait_for_others(others)
            return make_records(self.folder, self._wish.name, status, self.guarded)
        return None

    def discard(self) -> None:
        """Close everything and remove the folder: there was nothing to measure."""
        with self.guarded("what was opened could not be closed"):
            if self._monitor is not None:
                self._monitor.__exit__(None, None, None)
            if self.folder is not None:
                shutil.rmtree(self.folder.root)
        self.folder = None

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Whatever fails in here is said and noted, and goes no further."""
        try:
            yield
        except Exception as error:
            self.say(f"{what}: {_one_line(error)}")

    def say(self, text: str) -> None:
        """Tell the user once."""
        if text in self._said:
            return
        self._said.add(text)
        self.problems.append(text)
        with contextlib.suppress(Exception):  # a handler of the user's
            LOGGER.warning("efftrain: %s", text)

    def _claim(self) -> Path:
        wish, key = self._wish, f"{self._wish.rank.launch}-{_ordinal(self._wish.name)}"
        return claim(wish.folder or default_folder(wish.name, wish.rank, wish.out), key)

    def _temporary(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="efftrain-"))
        self.say(f"everything goes to {path} instead")
        return path

    def _first(self) -> JournalRecorder:
        wish, folder = self._wish, self.folder
        assert folder is not None, "a folder is claimed first"
        header = {**self._header(folder), "environment": self._found.facts, "idle": self._found.idle}
        folder.run(wish.name).mkdir(parents=True, exist_ok=True)
        open_study(folder, wish.name, wish.command)
        monitor = Monitor(folder.journal(wish.name), self._found.discovery, header)
        self._monitor = monitor.__enter__()
        if wish.rank.nodes > 1:
            monitor.recorder.note(
                f"this is machine {wish.rank.node} of {wish.rank.nodes}: the others have their own records"
            )
        return monitor.recorder

    def _other(self) -> JournalRecorder:
        """A rank without sensors: its steps, in a journal beside the first rank's."""
        path = self._rank_path(self._wish.rank.local)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = JournalWriter(path)
        self._journal.write("header", schema=SCHEMA, rank=self._wish.rank.local, pid=os.getpid())
        self._journal.flush()
        return _RankRecorder(self._journal)

    def _rank_path(self, local: int) -> Path:
        assert self.folder is not None, "a folder is claimed first"
        return self.folder.run(self._wish.name) / f"rank-{local}.jsonl"

    @cached_property
    def _found(self) -> "_Found":
        """The machine, looked at once, whatever becomes of the first folder."""
        wish = self._wish
        gpus = _torch_gpus() if wish.device == "auto" else ()
        device = None if wish.device == "auto" else wish.device
        found = find_sensors(device, gpus=gpus, node_overhead_w=wish.node_overhead_w)
        found = of_tree(_of_ranks(found, wish.rank), wish.rank.root, with_root=not wish.children_only)
        boards = [sensor.info.device for sensor in found.sensors if sensor.info.component == "gpu"]
        facts, idle = {}, {}
        with self.guarded("the environment cannot be described"):
            facts = environment("cuda" if boards else "cpu", gpus=list(dict.fromkeys(boards)))
        with self.guarded("idle power could not be read"):
            idle = measure_idle(found.sensors, wish.idle_s) if wish.idle_s > 0 else {}
        return _Found(found, facts, idle)

    def _header(self, folder: StudyFolder) -> dict[str, Any]:
        wish, config = self._wish, {}
        with self.guarded("the configuration cannot be kept"):
            config = json.loads(json.dumps(dict(wish.config), default=str))
        return {
            "run_id": wish.name, "study_id": folder.root.name, "variant": wish.name, "seed": wish.seed,
            "config": config, "corpus": {}, "carbon": wish.carbon,
            "parameters": wish.parameters, "teacher": None, "ranks": wish.rank.ranks, "nodes": wish.rank.nodes,
            "peak": {"flops_per_s": None, "source": NO_PEAK, "device": "any", "dtype": "any"},
        }  # fmt: skip


class _RankRecorder(JournalRecorder):
    """Hands each step to the operating system, because no sampler does it from time to time."""

    def step(self, **fields: Any) -> None:
        super().step(**fields)
        self._journal.flush()


@dataclass(frozen=True, slots=True)
class _Found:
    """The machine's sensors, what it is, and what it draws at idle."""

    discovery: Discovery
    facts: dict[str, Any]
    idle: dict[str, dict[str, float]]


_ordinals: dict[str, int] = {}


def _ordinal(name: str) -> int:
    """How many measurements of this name the process has begun: ranks that do the same count the same."""
    _ordinals[name] = _ordinals.get(name, 0) + 1
    return _ordinals[name]


def _torch_gpus() -> list[str]:
    """UUIDs of the GPUs that torch sees, where it is imported and has begun to use CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def _of_ranks(discovery: Discovery, rank: Rank) -> Discovery:
    """Of several ranks, each uses one of the visible boards, from the first on; further boards are not theirs."""
    if rank.ranks < 2:
        return discovery
    boards = list(dict.fromkeys(s.info.device for s in discovery.sensors if s.info.component == "gpu"))
    others = set(boards[rank.ranks :])
    for sensor in discovery.sensors:
        if sensor.info.device in others:
            sensor.close()
    return replace(discovery, sensors=[s for s in discovery.sensors if s.info.device not in others])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
