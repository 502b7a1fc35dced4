"""The fresh process of a run, started by efftrain.study.process: `python -m efftrain.study.running.worker SPEC [MORE]`.

Ranks other than the first are started by efftrain.study.follower, with what is their own in MORE, as JSON.

SIGINT asks the run to stop before its next step. It may come at any moment, so that is settled before torch is
imported, which takes seconds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

LEAVE_S: Final = 1.0


class Stop:
    """Whether the run shall end: SIGINT came, or the process that wanted it is gone."""

    def __init__(self) -> None:
        self.parent, self.follows = os.getppid(), False
        self._asked = False
        signal.signal(signal.SIGINT, self._ask)

    def __call__(self) -> bool:
        """Asked by the run before each step."""
        gone = os.getppid() != self.parent
        if gone and self.follows:  # nothing to agree on: a thread is about to tell that this rank is lost
            time.sleep(LEAVE_S)
            os._exit(1)
        return self._asked or gone

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


def main() -> None:
    """Read the specification named on the command line and make its run."""
    stop = Stop()
    spec = json.loads(Path(sys.argv[1]).read_text())
    if len(sys.argv) > 2:
        spec |= json.loads(sys.argv[2])
        stop.follows = True
    stop.parent = spec["parent"]

    from efftrain.study.running.run import run

    run(spec, stop)


if __name__ == "__main__":
    main()
