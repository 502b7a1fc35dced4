"""`python -m benchmarks.gpu_truth.stages NAME FOLDER` runs one stage; the runner in `__main__` calls it."""

from collections.abc import Callable

from benchmarks.gpu_truth.counter import run_agreement, run_counter, run_parttime
from benchmarks.gpu_truth.repeat import run_repeat
from benchmarks.gpu_truth.study import run_study
from efftrain_kernels.evidence.stages import Stage, main

STAGES: dict[str, Callable[[Stage], None]] = {
    "counter": run_counter,
    "parttime": run_parttime,
    "agreement": run_agreement,
    "study-1b": run_study,
    "study-small": run_study,
    "repeat": run_repeat,
}

if __name__ == "__main__":
    main(STAGES)
