"""How exact efftrain, codecarbon, zeus and carbontracker are, on simulated GPUs whose energy is known.

    python benchmarks/energy_accuracy.py            # all tools, about 10 minutes, writes reports/accuracy/
    python benchmarks/energy_accuracy.py --quick    # efftrain alone, about a minute, writes nothing

The tools run unmodified, each in a process of its own, on the real nvidia-ml-py, which loads a simulated NVML driver
(tests/nvml_driver). All see the same boards at the same time and measure the same windows. The peers live in an
environment that this script makes with pip. The exit status is 1 where a target is missed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from accuracy.findings import Findings  # noqa: E402
from accuracy.rows import read_rows, sampler_core_share  # noqa: E402
from accuracy.run import PEERS, run_batch  # noqa: E402
from accuracy.scenarios import FULL, QUICK, SCENARIOS  # noqa: E402

REQUIREMENTS = ROOT / "benchmarks" / "accuracy" / "peers.txt"
AT_ONCE = 7
EIGHT = "8 GPUs, gains ±5 %"


def main() -> None:
    """Measure, print the table and the targets, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="efftrain alone, windows of up to 10 s; writes no report")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "accuracy", help="folder of the report")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".venv" / "peers", help="environment of the peers, made where it is not"
    )
    parser.add_argument("--seed", type=int, default=4, help="of the windows' times and the faults'")
    parser.add_argument("--keep", type=Path, help="folder for journals and logs, which else are thrown away")
    parser.add_argument("--again", action="store_true", help="measure nothing: bill the journals in --keep once more")
    arguments = parser.parse_args()
    if arguments.again and not arguments.keep:
        parser.error("--again: needs --keep, the folder of an earlier run")
    peers = None if arguments.quick else _peers(arguments.peers)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="accuracy-"))
    if not arguments.again:
        _measure(folder, peers, quick=arguments.quick, seed=arguments.seed)
    rows = list(read_rows(folder, SCENARIOS))
    share = sampler_core_share(folder, next(s for s in SCENARIOS if s.name == EIGHT))
    if not arguments.keep:
        shutil.rmtree(folder)
    found = Findings(rows, share, _versions(peers), f"python benchmarks/energy_accuracy.py --seed {arguments.seed}")
    print(found.text())
    if not arguments.quick:
        found.write(arguments.out)
    sys.exit(not all(target.met for target in found.targets))


def _measure(folder: Path, peers: Path | None, *, quick: bool, seed: int) -> None:
    counts, at_once = (QUICK, len(SCENARIOS)) if quick else (FULL, AT_ONCE)
    for first in range(0, len(SCENARIOS), at_once):
        batch = SCENARIOS[first : first + at_once]
        print(f"{len(batch)} scenarios: {', '.join(s.name for s in batch)}", file=sys.stderr)
        run_batch(batch, counts, folder=folder, peers=peers, seed=seed + first)


def _peers(environment: Path) -> Path:
    """Python of the peers' environment."""
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    subprocess.run(pip, check=True)
    return python


def _versions(peers: Path | None) -> dict[str, str]:
    found = {"python": sys.version.split()[0], "efftrain": version("efftrain"), "nvidia-ml-py": version("nvidia-ml-py")}
    if peers is not None:
        code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {PEERS}}}))"
        found |= json.loads(subprocess.run([str(peers), "-c", code], check=True, capture_output=True).stdout)
    return found


if __name__ == "__main__":
    main()
