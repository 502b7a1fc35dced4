"""The fresh process of a run, started by efftrain.study.process: `python -m efftrain.study.running.worker SPEC [MORE]`.

Ranks other than the first are started by efftrain.study.follower, with what is their own in MORE, as JSON.

SIGINT asks the run to stop before its next step. It may come at any moment, so that is settled before torch is
imported, which takes seconds.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType


class Stop:
    """Whether the run shall end: SIGINT came, or the process that wanted it is gone."""

    def __init__(self) -> None:
        self.parent: int | None = os.getppid()
        self._asked = False
        signal.signal(signal.SIGINT, self._ask)

    def __call__(self) -> bool:
        """Asked by the run before each step."""
        return self._asked or (self.parent is not None and os.getppid() != self.parent)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


def main() -> None:
    """Read the specification named on the command line and make its run."""
    stop = Stop()
    spec = json.loads(Path(sys.argv[1]).read_text())
    stop.parent = spec["parent"]
    if len(sys.argv) > 2:
        spec |= json.loads(sys.argv[2])
        stop.parent = None  # not a reason to agree on: the others are told that this rank is lost

    from efftrain.study.running.run import run

    run(spec, stop)


if __name__ == "__main__":
    main()
