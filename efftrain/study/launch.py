"""A study that torchrun started: the command of rank 0 makes it, those of the other ranks take part in its runs.

All of them meet at torchrun's own store. Rank 0 posts messages there, one after the other: a run begins, idle power is
read, the study has ended. The others (efftrain.study.follower) answer how their part of a run ended. Each rank's part
is a process of its own, so nothing here computes; torch is imported for the store, and only where there is a launch.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from efftrain.monitor.launch import Rank, this_rank
from efftrain.study.planning.plan import Plan
from efftrain.study.planning.request import PlanError

CONNECT_S: Final = 24 * 3600.0
"""How long a rank waits for the others to meet; torchrun ends those whose launch has failed."""
LOST_PATIENCE_S: Final = 5.0
"""How long the process of a rank may go on when another one is lost: it mostly ends by itself, with an error."""
ANSWER_S: Final = 10.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Loss:
    """That a rank cannot go on.

    Attributes:
        reason: in one line that names the rank.
        status: how the run ends for it, `failed` or `oom`.
    """

    reason: str
    status: str = "failed"


class Crew(Protocol):
    """The other ranks, as whoever makes a study sees them."""

    rank: Rank

    def measure_idle(self, device: str) -> None:
        """Have further machines read their idle power, at the same time as this one."""
        ...

    def begin(self, run_id: str, spec: Path) -> None:
        """Have the others take part in a run."""
        ...

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Called again and again while this rank's process runs; ends it where another one is lost and it does not."""
        ...

    def ended(self, returncode: int | None) -> Loss | None:
        """Wait until the others have ended too, which is soon; which rank was lost, if one was.

        Args:
            returncode: of this rank's process.
        """
        ...


class NoCrew:
    """There are no other ranks."""

    def __init__(self) -> None:
        self.rank = this_rank({})

    def measure_idle(self, device: str) -> None:
        """See `Crew.measure_idle`."""

    def begin(self, run_id: str, spec: Path) -> None:
        """See `Crew.begin`."""

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """See `Crew.watch`."""

    def ended(self, returncode: int | None) -> Loss | None:
        """See `Crew.ended`."""
        return None


class Followers:
    """The other ranks of a launch, at the other end of a store."""

    def __init__(self, rank: Rank, store: Any) -> None:
        self.rank, self._store = rank, store
        self._sent, self._run_id = 0, ""
        self._lost_at: float | None = None
        self._gave_up = False

    def measure_idle(self, device: str) -> None:
        """See `Crew.measure_idle`."""
        self._post(kind="idle", device=device)

    def begin(self, run_id: str, spec: Path) -> None:
        """See `Crew.begin`."""
        self._run_id, self._lost_at, self._gave_up = run_id, None, False
        self._post(kind="run", run_id=run_id, spec=str(spec.resolve()), cwd=str(Path.cwd()))

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """See `Crew.watch`."""
        if self._lost_at is None and holds(self._store, f"{self._run_id}/lost"):
            self._lost_at = time.monotonic()
        if self._lost_at is not None and time.monotonic() - self._lost_at > LOST_PATIENCE_S:
            self._gave_up = True
            process.kill()

    def ended(self, returncode: int | None) -> Loss | None:
        """See `Crew.ended`."""
        if not self._run_id:
            return None
        with contextlib.suppress(Exception):  # a launcher that is gone has taken the store along
            self._store.set(f"{self._run_id}/over", "")
        answers = [self._answer(rank) for rank in range(1, self.rank.size)]
        if returncode == -signal.SIGKILL and not self._gave_up:
            return None  # this one was lost first
        return first_cause([answer for answer in answers if answer])

    def dismiss(self) -> None:
        """The study has ended, and so may the others."""
        with contextlib.suppress(Exception):
            self._post(kind="end")

    def _post(self, **message: Any) -> None:
        self._store.set(f"message/{self._sent}", json.dumps(message))
        self._sent += 1

    def _answer(self, rank: int) -> Loss | None:
        """How a rank's part has ended; a rank of which another one told that it is lost is not waited for."""
        key, end = f"{self._run_id}/ended/{rank}", time.monotonic() + ANSWER_S
        while not holds(self._store, key) and time.monotonic() < end:
            if holds(self._store, f"{self._run_id}/lost"):
                end = min(end, time.monotonic() + 1.0)
            time.sleep(POLL_S)
        with contextlib.suppress(Exception):
            if not holds(self._store, key):
                return Loss(f"rank {rank} does not answer")
            return Loss(**told) if (told := json.loads(self._store.get(key))) else None
        return None


@contextmanager
def leading() -> Iterator[Crew]:
    """The other ranks of this launch for as long as a study is made; none where there is no launch.

    torchrun ends a launch with SIGTERM, which from here on is Ctrl-C: what was measured is reported. Once the study is
    made it waits for nobody, so that a second signal does not cut the report short.
    """
    rank = this_rank()
    if rank.size == 1:
        yield NoCrew()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    followers = Followers(rank, open_store(serve=True))
    try:
        yield followers
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        followers.dismiss()


def open_store(environ: Mapping[str, str] = os.environ, *, serve: bool = False) -> Any:
    """The launch's store (torch.distributed.Store).

    Args:
        environ: where torchrun's variables stand.
        serve: be the one that holds it, where torchrun does not.
    """
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    held = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=serve and not held,
        timeout=timedelta(seconds=CONNECT_S), wait_for_workers=False, multi_tenant=True,
    )  # fmt: skip
    return PrefixStore(f"efftrain/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def holds(store: Any, key: str) -> bool:
    """Whether a store holds `key`; one that is gone holds nothing."""
    try:
        return bool(store.check([key]))
    except Exception:  # whatever torch comes up with
        return False


def tell_end(store: Any, run_id: str, rank: int, loss: Loss | None) -> None:
    """Tell rank 0 how another rank's part in a run ended; a store that is gone is told nothing."""
    with contextlib.suppress(Exception):
        if loss:
            store.set(f"{run_id}/lost", "")
        store.set(f"{run_id}/ended/{rank}", json.dumps(asdict(loss) if loss else None))


def first_cause(losses: list[Loss]) -> Loss | None:
    """Of all that went wrong, what did so first: who had no memory or was killed; not who lost the connection."""
    causes = [loss for loss in losses if "onnection" not in loss.reason]
    likely = sorted(causes, key=lambda loss: (loss.status != "oom", "killed" not in loss.reason))
    return next(iter(likely), None)


def check_ranks(plan: Plan, settings: Mapping[str, Any], rank: Rank) -> None:
    """Whether a study can be made by this launch.

    Raises:
        PlanError: one line that says why not.
    """
    planned = {run.config.ranks for run in plan.runs} - {rank.size}
    if planned:
        raise PlanError(
            f"--resume: the study was made by {min(planned)} rank{'' if min(planned) == 1 else 's'}, this launch has"
            f" {rank.size}: the same number is needed"
        )
    if rank.size > 1 and settings.get("phase_energy") == "blocks":
        raise PlanError("--phase-energy blocks: repeats parts of one rank's step; use regression under torchrun")
    horizons = [run.config.horizon for run in plan.runs]
    if rank.nodes > 1 and any(h.max_joules is not None or h.max_gco2e is not None for h in horizons):
        raise PlanError("--max-joules, --max-gco2e: are watched on one machine, and this launch has several")


def peak_of_all(peak: Mapping[str, Any], device: str, rank: Rank) -> dict[str, Any]:
    """The peak rate of all ranks' devices from that of one GPU, or of one machine's processor."""
    count = rank.nodes if device == "cpu" else rank.size
    if count == 1 or peak["flops_per_s"] is None:
        return dict(peak)
    return {**peak, "flops_per_s": count * peak["flops_per_s"], "source": f"{count} × {peak['source']}"}
