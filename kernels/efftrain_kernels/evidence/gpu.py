"""Everything that needs a GPU, in one command that can be cut off at any moment and goes on where it stopped.

Each stage runs in a process of its own for at most eight minutes and leaves one archive, FOLDER/stages/NAME.tar.gz,
with its result and its log. A stage whose archive says that it is complete is not run again; of a benchmark that was
cut off only what is missing is measured. FOLDER/kernels.json holds all results together, kernels.md the same to read;
both are written after every stage. A script of another package runs stages of its own in the same way: `Script`.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGE_S = 480.0
MARGIN_S = 25.0  # for a stage to stop by itself before it is stopped
WORTHWHILE_S = 60.0
LOG_BYTES = 1 << 20
RESULT = "result.json"
TUNED = "tuned.json"
STAGES_MODULE = "efftrain_kernels.evidence.stages"
KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Stages that are run one after the other.

    Attributes:
        module: runs one of them: `python -m MODULE NAME FOLDER`, as `stages.main` does.
        names: of the stages, in order.
        summary: file that holds all results together.
        archives: where archives are put, below the folder of the results.
        stage_s: longest time of one stage in s; eight minutes if None.
        options: given to each stage.
        render: turns the summary into Markdown, which is written beside it.
    """

    module: str
    names: Collection[str]
    summary: str = "kernels.json"
    archives: str = "stages"
    stage_s: float | None = None
    options: Sequence[str] = ()
    render: Callable[[dict[str, Any]], str] | None = None


def _own() -> Script:
    from efftrain_kernels.evidence.stages import STAGES
    from efftrain_kernels.evidence.summary import markdown

    return Script(module=STAGES_MODULE, names=STAGES, render=markdown)


def run(
    names: Sequence[str] | None = None, *, out: Path | None = None, budget_s: float = STAGE_S, dry: bool,
    script: Script | None = None,
) -> int:  # fmt: skip
    """Run the stages that are not done, until the time is spent.

    Args:
        names: which stages; all if None.
        out: folder of the results; `reports/DEVICE` if None.
        budget_s: after so many seconds nothing more is begun, and what runs is stopped.
        dry: tiny sizes in triton's interpreter, on the CPU.
        script: the stages; those of this package if None.

    Returns:
        0 if nothing was wrong, 1 if something was; stages left for the next call are not wrong.

    Raises:
        ValueError: no such stage, or no GPU.
    """
    script = script or _own()
    unknown = [name for name in names or () if name not in script.names]
    if unknown:
        raise ValueError(f"--stage {unknown[0]}: no such stage; choose from {', '.join(script.names)}")
    folder = out or Path("reports") / ("dry" if dry else _device_folder())
    deadline = time.monotonic() + budget_s
    chosen = names or list(script.names)
    for name in chosen:
        before = read(folder, name, script.archives)
        if before.get("complete"):
            print(f"{name}: done before")
            continue
        left = min(script.stage_s or STAGE_S, deadline - time.monotonic())
        if left <= min(WORTHWHILE_S, budget_s / 2):
            break
        _run_stage(script, name, folder, left, before, dry=dry)
        summarise(folder, script)
    return _verdict(folder, chosen, script.archives)


def read(folder: Path, name: str, archives: str = "stages") -> dict[str, Any]:
    """The result in a stage's archive; empty where there is none."""
    try:
        with tarfile.open(_archive(folder, name, archives)) as archive:
            member = archive.extractfile(RESULT)
            return json.load(member) if member else {}
    except (OSError, KeyError, tarfile.TarError, ValueError):
        return {}


def restore(archive: Path, folder: Path) -> list[Path]:
    """Write the files that a stage has kept beside its result into a folder; none where there is no archive."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(archive) as packed:
        for member in packed.getmembers():
            content = packed.extractfile(member) if member.name.startswith(f"{KEPT}/") else None
            if content is not None:
                written.append(folder / Path(member.name).name)
                written[-1].write_bytes(content.read())
    return written


def _archive(folder: Path, name: str, archives: str) -> Path:
    return folder / archives / f"{name}.tar.gz"


def summarise(folder: Path, script: Script) -> Path:
    """Write the summary from the archives that are there."""
    found = {name: result for name in script.names if (result := read(folder, name, script.archives))}
    path = folder / script.summary
    devices = sorted({result["device"] for result in found.values() if "device" in result})
    document = {"devices": devices, "stages": found}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document, indent=1) + "\n")
    draft.replace(path)
    if script.render:
        path.with_suffix(".md").write_text(script.render(document))
    return path


def _device_folder() -> str:
    import torch

    from efftrain_kernels.evidence import measure

    if not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; --dry runs the script without one")
    return measure.slug(measure.device_name(measure.default_device()))


def _run_stage(script: Script, name: str, folder: Path, left: float, before: dict[str, Any], *, dry: bool) -> None:
    """Run a stage in its process and pack what it leaves."""
    from efftrain_kernels._kernels.configs import ENVIRONMENT

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        path = _archive(folder, name, script.archives)
        restore(path, work / KEPT)
        (work / "before.json").write_text(json.dumps(before))
        command = [
            sys.executable, "-m", script.module, name, place, "--before", str(work / "before.json"),
            "--seconds", str(max(1.0, left - MARGIN_S)), *(["--dry"] * dry),
            *script.options,
        ]  # fmt: skip
        tuned = folder / TUNED
        environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if dry else {})}
        if tuned.exists():
            environment[ENVIRONMENT] = str(tuned.resolve())
        with (work / "log.txt").open("wb") as log:
            status = _wait(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True), left
            )
        result = _result(work, name, before, status)
        kept = {f"{KEPT}/{file.name}": file.read_bytes() for file in sorted((work / KEPT).iterdir())}
        _pack(path, {RESULT: json.dumps(result, indent=1).encode(), "log.txt": _tail(work / "log.txt"), **kept})
        if (work / TUNED).exists():
            tuned.write_bytes((work / TUNED).read_bytes())
    print(f"{name}: {_said(result)}, {time.monotonic() - began:.0f} s", flush=True)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How a stage ended: nothing where all is well. It is stopped with everything that it started."""
    try:
        status = process.wait(timeout=seconds)
        return "" if status == 0 else f"its process ended with status {status}"
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _result(work: Path, name: str, before: dict[str, Any], status: str) -> dict[str, Any]:
    try:
        result = json.loads((work / RESULT).read_text())
    except (OSError, ValueError):
        result = {**before, "stage": name, "complete": False, "right": before.get("right", True)}
    if not status:
        return {key: value for key, value in result.items() if key != "error"}
    log = _tail(work / "log.txt").decode(errors="replace").strip().splitlines()
    stopped = status.startswith("stopped")
    error = status if stopped else f"{status}: {' '.join(log[-1:])[:400]}"
    return {**result, "complete": False, "right": result["right"] and stopped, "error": error}


def _pack(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with tarfile.open(draft, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), int(time.time())
            archive.addfile(member, io.BytesIO(content))
    draft.replace(path)


def _tail(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[-LOG_BYTES:]


def _said(result: dict[str, Any]) -> str:
    parts = ["right" if result["right"] else "WRONG", "complete" if result["complete"] else "to be continued"]
    parts += [str(result[key]) for key in ("skipped", "error") if key in result]
    parts += [str(line) for line in result.get("wrong", [])[:3]]
    return "; ".join(parts)


def _verdict(folder: Path, chosen: Sequence[str], archives: str) -> int:
    results = {name: read(folder, name, archives) for name in chosen}
    left = [name for name, result in results.items() if not result.get("complete")]
    wrong = [name for name, result in results.items() if not result.get("right", True)]
    print(f"results in {folder}; " + (f"left for the next call: {', '.join(left)}" if left else "all stages are done"))
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0
