"""What an energy counter is worth, and the first study on CUDA, in stages that go on where they stopped.

    python -m benchmarks.gpu_truth prepare --out plans              # where efftrain is installed
    python -m benchmarks.gpu_truth run --plans plans --out found    # on the GPU; again until all stages are done
    python -m benchmarks.gpu_truth collect found reports/h200       # where efftrain is installed
    efftrain report reports/h200/study-small                        # and study-1b

`run` needs torch, triton, numpy, scipy, tokenizers and nvidia-ml-py, and neither pydantic nor codecarbon. Each stage
leaves one archive, NAME.tar.gz, directly in the folder: its result, its log, and compressed journals of everything that
was read. found/truth.json holds all results. `--dry` makes every stage on the CPU with a simulated board, which shows
that the script works and nothing else.
"""

import argparse
import sys
from pathlib import Path

ARCHIVE_BYTES = 16 << 20
STAGE_S = 240.0
CALL_S = 540.0
USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all is well, 1 if something was found wrong, 2 if the command line is at fault."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.command(chosen)
    except ValueError as error:
        print(f"gpu_truth: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="the stages that are not done, on this machine's first GPU")
    run.add_argument("--out", type=Path, required=True, help="folder of the archives")
    run.add_argument("--plans", type=Path, help="what `prepare` wrote; without it no study is made")
    run.add_argument("--stage", action="append", help="only this stage; may be given several times")
    run.add_argument("--stage-s", type=float, default=STAGE_S, help="longest time of a stage (%(default)s)")
    run.add_argument("--budget-s", type=float, default=CALL_S, help="time of this call (%(default)s)")
    run.add_argument("--dry", action="store_true", help="tiny, on the CPU, with a simulated board")
    run.set_defaults(command=_run)
    prepare = commands.add_parser("prepare", help="plan the studies")
    prepare.add_argument("--out", type=Path, required=True, help="folder of the plans")
    prepare.add_argument("--steps", type=int, help="of each run; 60 of small and 50 of 1b if not given")
    prepare.add_argument("--seeds", type=int, default=1, help="of small (%(default)s)")
    prepare.add_argument("--dry", action="store_true", help="plans for a dry run")
    prepare.set_defaults(command=_prepare)
    collect = commands.add_parser("collect", help="make study folders of what came back")
    collect.add_argument("archives", type=Path)
    collect.add_argument("out", type=Path)
    collect.set_defaults(command=_collect)
    return parser


def _run(chosen: argparse.Namespace) -> int:
    from benchmarks.gpu_truth.sensors import open_board
    from benchmarks.gpu_truth.stages import STAGES
    from efftrain_kernels.evidence import gpu

    if not chosen.dry:
        for sensor in open_board():
            sensor.close()
    plans = [f"--option=plans={chosen.plans.resolve()}"] if chosen.plans else []
    script = gpu.Script(
        module="benchmarks.gpu_truth.stages", names=STAGES, summary="truth.json", archives=".",
        stage_s=chosen.stage_s, options=plans,
    )  # fmt: skip
    status = gpu.run(chosen.stage, out=chosen.out, budget_s=chosen.budget_s, dry=chosen.dry, script=script)
    for path in sorted(chosen.out.glob("*.tar.gz")):
        if path.stat().st_size > ARCHIVE_BYTES:
            print(f"{path}: {path.stat().st_size / (1 << 20):.1f} MiB, more than {ARCHIVE_BYTES >> 20}")
            status = 1
    return status


def _prepare(chosen: argparse.Namespace) -> int:
    from benchmarks.gpu_truth.study import prepare

    prepare(chosen.out, steps=chosen.steps, seeds=chosen.seeds, dry=chosen.dry)
    return 0


def _collect(chosen: argparse.Namespace) -> int:
    from benchmarks.gpu_truth.study import collect_studies

    for folder in collect_studies(chosen.archives, chosen.out):
        print(f"efftrain report {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
