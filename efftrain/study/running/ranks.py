"""One rank's part in a run: its device, its journal, the sensors that it reads, and its place among the others."""

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from efftrain.monitor.launch import Rank
from efftrain.monitor.machine import find_sensors
from efftrain.monitor.tree import of_tree
from efftrain.sensors.protocol import Discovery
from efftrain.study.launch import Loss, open_store, tell_end
from efftrain.training.config import ConfigError, RunConfig
from efftrain.training.ranks import Alone, Ranks

TIMEOUT: Final = "EFFTRAIN_RANK_TIMEOUT_S"
"""Names the longest that one rank may keep the others waiting, in s; for steps that take minutes."""
TIMEOUT_S: Final = 600.0
MEET_POLL_S: Final = 0.05
ORPHAN_POLL_S: Final = 0.2
ORPHAN_PATIENCE_S: Final = 30.0


def config_of_rank(config: RunConfig, rank: Rank) -> RunConfig:
    """A run's configuration as one rank carries it out: on its own device, and with the budget watched by the first.

    Raises:
        ConfigError: the run was planned for another number of ranks.
    """
    if config.ranks != rank.size:
        raise ConfigError(f"planned for {config.ranks} ranks, started as {rank.size}: use torchrun as before")
    device = f"cuda:{rank.local}" if config.device == "cuda" and rank.size > 1 else config.device
    if rank.rank == 0:
        return dataclasses.replace(config, device=device)
    horizon = dataclasses.replace(config.horizon, max_joules=None, max_gco2e=None)
    return dataclasses.replace(config, device=device, horizon=horizon)


def journal_of_rank(journal: Path, rank: Rank) -> Path:
    """Where a rank writes: `rank-N.jsonl` beside the journal of the first one."""
    return journal if rank.rank == 0 else journal.with_name(f"rank-{rank.rank}.jsonl")


def sensors_of_rank(device: str, rank: Rank, node_overhead_w: float | None) -> Discovery:
    """The sensors of a machine for its first rank, whose CPU seconds are those of all ranks; none for the others."""
    if not rank.first:
        return Discovery()
    found = find_sensors(device, gpus=rank.gpus(device), node_overhead_w=node_overhead_w)
    return found if rank.size == 1 else of_tree(found, rank.root)


def facts_of_rank(rank: Rank) -> dict[str, Any]:
    """What a journal's header says of ranks; see `efftrain.meters.ranks.with_ranks`."""
    return {"ranks": rank.size, "hosts": rank.nodes, "rank": rank.rank, "node": rank.node, "pid": os.getpid()}


@contextmanager
def together(run_id: str, device: torch.device, rank: Rank) -> Iterator[Ranks]:
    """The ranks of a run, from the moment at which all of them are there."""
    if rank.size == 1:
        yield Alone()
        return
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    from efftrain.training.distributed import joined

    store = open_store()
    threading.Thread(target=_leave_with_parent, args=(os.getppid(), store, run_id, rank), daemon=True).start()
    _meet(store, run_id, rank)
    group, timeout_s = PrefixStore(f"{run_id}/group", store), float(os.environ.get(TIMEOUT, TIMEOUT_S))
    with joined(group, rank=rank.rank, size=rank.size, device=device, timeout_s=timeout_s) as ranks:
        yield ranks


def _meet(store: Any, run_id: str, rank: Rank) -> None:
    """Wait until every rank is ready, however long text is prepared somewhere; a rank that is lost ends the wait."""
    store.set(f"{run_id}/here/{rank.rank}", "")
    while not store.check([f"{run_id}/here/{other}" for other in range(rank.size)]):
        time.sleep(MEET_POLL_S)


def _leave_with_parent(parent: int, store: Any, run_id: str, rank: Rank) -> None:
    """End this process when its command is gone: it may hang in the driver, waiting for a rank that is gone too.

    The first rank is given time to end its journal.
    """
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    if rank.rank == 0:
        time.sleep(ORPHAN_PATIENCE_S)
    tell_end(store, run_id, rank.rank, Loss(f"the command of rank {rank.rank} was killed"))
    os._exit(1)
