"""What is known of the kernels, on the command line: `python -m efftrain_kernels.evidence check|bench|tune|gpu`."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

USAGE = 2


class _Parser(argparse.ArgumentParser):
    """A parser that raises, so that every fault of a command line is said in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(arguments: list[str] | None = None, *, program: str = "efftrain_kernels.evidence") -> int:
    """Run one command; 0 if all is well, 1 if something was found, 2 if the command line is at fault."""
    try:
        chosen = _parser().parse_args(arguments)
        return chosen.run(chosen)
    except ValueError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m efftrain_kernels.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compile every shipped kernel with no device and hold it to its limits")
    check.add_argument("--arch", default="80,86,90,100", help="compute capabilities times 10, separated by commas")
    check.add_argument("--only", choices=("attention", "adamw"), help="one family of kernels")
    check.add_argument("--quick", action="store_true", help="only the kernels that most training runs use")
    check.add_argument("--ptxas", type=Path, help="an assembler in place of triton's own")
    check.add_argument("--json", type=Path, help="write the rows there too")
    check.set_defaults(run=_check)
    bench = commands.add_parser("bench", help="measure attention or AdamW beside others; on a CPU only that they run")
    bench.add_argument("what", nargs="?", choices=("attention", "adamw"), help="both if not given")
    bench.add_argument("--json", type=Path, help="write the report there too")
    bench.set_defaults(run=_bench)
    tune = commands.add_parser("tune", help="measure this GPU's configurations and keep the fastest of each")
    tune.add_argument("--json", type=Path, help="where to keep them; this device's file if not given")
    tune.set_defaults(run=_tune)
    gpu = commands.add_parser("gpu", help="everything that needs a GPU, in stages that go on where they stopped")
    gpu.add_argument("--stage", action="append", help="only this stage; may be given several times")
    gpu.add_argument("--out", type=Path, help="folder of the results; reports/DEVICE if not given")
    gpu.add_argument("--budget-s", type=float, default=480.0, help="seconds after which no stage is begun")
    gpu.add_argument("--dry", action="store_true", help="tiny sizes in triton's interpreter on the CPU")
    gpu.set_defaults(run=_gpu)
    return parser


def _check(chosen: argparse.Namespace) -> int:
    from efftrain_kernels.evidence import check

    try:
        arches = tuple(int(part) for part in chosen.arch.split(","))
    except ValueError:
        raise ValueError(f"--arch {chosen.arch!r}: expected numbers separated by commas, such as 80,90") from None
    rows = check.check(arches, only=chosen.only, quick=chosen.quick, ptxas=chosen.ptxas)
    print(check.describe(rows))
    if chosen.json:
        check.write_json(rows, chosen.json)
    return 0 if check.passed(rows) else 1


def _bench(chosen: argparse.Namespace) -> int:
    from efftrain_kernels.evidence import bench

    found = []
    for family in (chosen.what,) if chosen.what else ("attention", "adamw"):
        found.append(bench.run(family))
        print(bench.describe(found[-1]))
    if chosen.json:
        bench.write_json(found, chosen.json)
    return 0


def _tune(chosen: argparse.Namespace) -> int:
    from efftrain_kernels.evidence import tune

    print(tune.describe(tune.tune(path=chosen.json)))
    return 0


def _gpu(chosen: argparse.Namespace) -> int:
    from efftrain_kernels.evidence import gpu

    return gpu.run(chosen.stage, out=chosen.out, budget_s=chosen.budget_s, dry=chosen.dry)


if __name__ == "__main__":
    sys.exit(main())
