"""Checkpoints written beside a training.

The loop is held up for the copy into host memory alone; a thread writes it, hashes it and gives the folder its name
(`folder`). What cannot be written is a note: training goes on, and the checkpoint before stays.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import async_save

from efftrain.record.recorder import Recorder
from efftrain.training.checkpoints.folder import (
    KEPT,
    TOKENIZER,
    finish,
    keep_newest,
    remove_unfinished,
    size_bytes,
    step_folder,
    step_folders,
    unfinished_folder,
)
from efftrain.training.checkpoints.state import expect_one_process, full_state, is_pruned, reason
from efftrain.training.config import RunConfig
from efftrain.training.horizon import Horizon
from efftrain.training.session import Session

Spent = Callable[[], Mapping[str, Any]]
"""What the run has used so far, for `checkpoint.json`: `energy` (a Quantity as a dict), `grams`, `seconds`."""


class CheckpointWriter:
    """Keeps the newest checkpoints of a run; see `efftrain.training.loop.Checkpoints`.

    Args:
        folder: the run's `checkpoints` folder; what a save that was cut off has left there is removed.
        config: of the run; says how often. The last step is always kept.
        recorder: told how long the loop was held up, and what could not be written.
        identity: `run_id`, `study_id`, `variant` and `seed`.
        tokenizer: a tokenizer.json to be kept beside the weights.
        spent: asked at each save.
        rank: of this process; rank 0 names and removes folders.
        group: of all ranks, with a CPU backend, used by nobody else; None where there is one process.
    """

    def __init__(
        self, folder: Path, config: RunConfig, recorder: Recorder, *, identity: Mapping[str, Any],
        tokenizer: Path | None = None, spent: Spent = dict, rank: int = 0, group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self.folder, self._config, self._recorder = folder, config, recorder
        self._identity, self._tokenizer, self._spent, self._rank, self._group = identity, tokenizer, spent, rank, group
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self._last_step: int | None = None
        if rank == 0:
            remove_unfinished(folder)

    def due(self, step: int) -> bool:
        """See `Checkpoints.due`."""
        every = self._config.checkpoint_every
        return every is not None and (step % every == 0 or step == self._config.steps)

    def save(self, session: Session, step: int, horizon: Horizon) -> None:
        """See `Checkpoints.save`; waits for the save before, if that is still being written."""
        if step == self._last_step:  # it was due, and then the training was interrupted
            return
        with self._recorder.span("checkpoint"):
            self.wait()
            self._last_step = step
            facts = {
                **self._identity, "step": step, "tokens": step * self._config.tokens_per_step,
                "pruned": is_pruned(session), "config": self._config.as_dict(),
                "horizon": {"best": horizon.best, "waited": horizon.waited},
            }  # fmt: skip
            try:
                written = self._begin(session, step)
            except (Exception, CheckpointException) as error:
                self._failed(step, error)
                return
            self._in_flight = self._thread.submit(self._complete, written, step, facts)

    def close(self) -> None:
        """See `Checkpoints.close`."""
        self.wait()
        self._thread.shutdown()
        folders = step_folders(self.folder)
        if folders and self._rank == 0:
            weight = size_bytes(folders) / 1e6
            self._recorder.note(f"checkpoints: {len(folders)} kept, {weight:.1f} MB, in {self.folder.name}/")

    def _begin(self, session: Session, step: int) -> "Future[Metadata]":
        """Copy the state into host memory; a thread of torch's begins to write it."""
        expect_one_process(self._group)
        failure = self._make_folder()
        state = full_state(session, self._rank)  # ranks gather it together, also where one of them has no folder
        self._agree(failure)
        writer = FileSystemWriter(unfinished_folder(self.folder, step))
        written = async_save(state, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        assert isinstance(written, Future), "the copy was made here and now"
        return written

    def _make_folder(self) -> str:
        """Make the folder of all checkpoints; why it cannot be made, or nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return reason(error)
        return ""

    def _agree(self, failure: str) -> None:
        """Go on if all ranks can: who is alone in a save waits for the others until the group's timeout.

        Args:
            failure: why this rank cannot, or nothing.

        Raises:
            OSError: a rank cannot.
        """
        failures = [failure]
        if self._group is not None:
            failures *= self._group.size()
            dist.all_gather_object(failures, failure, group=self._group)
        for rank, why in enumerate(failures):
            if why:
                raise OSError(why if self._group is None else f"rank {rank}: {why}")

    def _complete(self, written: "Future[Metadata]", step: int, facts: dict[str, Any]) -> None:
        try:
            facts |= self._used(step)
            written.result()
            if self._rank == 0:
                unfinished = unfinished_folder(self.folder, step)
                if self._tokenizer:
                    shutil.copyfile(self._tokenizer, unfinished / TOKENIZER)
                finish(unfinished, step_folder(self.folder, step), facts)
                keep_newest(self.folder, KEPT)
        except (Exception, CheckpointException) as error:
            self._failed(step, error)

    def _used(self, step: int) -> Mapping[str, Any]:
        """What the run has used; a checkpoint is worth keeping without that, too."""
        try:
            return self._spent()
        except Exception as error:
            self._recorder.note(f"the checkpoint after step {step} does not know its energy: {reason(error)}")
            return {}

    def _failed(self, step: int, error: BaseException) -> None:
        if self._rank == 0:
            shutil.rmtree(unfinished_folder(self.folder, step), ignore_errors=True)
        kept = step_folders(self.folder)
        stays = f"{kept[-1].name} stays" if kept else "there is none before it"
        self._recorder.note(f"the checkpoint after step {step} could not be written: {reason(error)}; {stays}")

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._in_flight:
            self._in_flight.result()
            self._in_flight = None
