"""The fresh process of a run: `python -m efftrain.study.worker SPEC.json`, started by efftrain.study.process.

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
        self.parent = os.getppid()
        self._asked = False
        signal.signal(signal.SIGINT, self._ask)

    def __call__(self) -> bool:
        """Asked by the run before each step."""
        return self._asked or os.getppid() != self.parent

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


def main() -> None:
    """Read the specification named on the command line and make its run."""
    stop = Stop()
    spec = json.loads(Path(sys.argv[1]).read_text())
    stop.parent = spec["parent"]

    from efftrain.study.run import run

    run(spec, stop)


if __name__ == "__main__":
    main()
