"""The ahead-of-time check: it passes what is shipped, and it is shown to refuse each kind of fault."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from efftrain_kernels._kernels import adamw, configs, launch
from efftrain_kernels.evidence import subjects
from efftrain_kernels.evidence.__main__ import main
from efftrain_kernels.evidence.aot import Compiled, early_arrivals
from efftrain_kernels.evidence.check import ARCHES, Row, check, describe, passed
from efftrain_kernels.evidence.limits import Limits, violations

HERE = Path(__file__).parent
KIB = 1024
QUICK = subjects.QUICK_OPTIMIZER


def run(*command, **environment):
    """A process in which kernels are compiled, not interpreted."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, check=False, timeout=2400
    )


@pytest.fixture(scope="module")
def broken():
    done = run(str(HERE / "broken_kernels.py"), PYTHONPATH=str(HERE))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("narrow", "no 128-bit access"),
        ("spills", "bytes a thread, allowed 0"),
        ("too much shared memory", "KiB of shared memory, sm_90 has 227"),
        ("no wgmma", "no wgmma"),
        ("does not compile", "does not compile"),
    ],
)
@pytest.mark.slow
def test_each_fault_is_found(broken, name, complaint):
    (row,) = [row for row in broken["rows"] if row["name"] == name]
    assert any(complaint in violation for violation in row["violations"]), row


@pytest.mark.parametrize("name", ["good copy", "good product"])
@pytest.mark.slow
def test_what_keeps_its_limits_passes(broken, name):
    (row,) = [row for row in broken["rows"] if row["name"] == name]
    assert row["violations"] == []
    assert row["registers"] > 0
    assert row["ptxas"]


@pytest.mark.slow
def test_figures_of_known_kernels(broken):
    rows = {row["name"]: row for row in broken["rows"]}
    # 2048 elements on 128 threads are four loads and four stores of 128 bits a thread.
    assert rows["good copy"]["wide"] == 8
    # Three stages of 128×64 and 128×64 bfloat16.
    assert rows["good product"]["shared_bytes"] >= 3 * (128 * 64 + 128 * 64) * 2 - 2 * KIB
    assert rows["good product"]["wgmma"] > 0
    assert rows["no wgmma"]["wgmma"] == 0
    assert rows["spills"]["spill_bytes"] > 0


@pytest.mark.slow
def test_arguments_are_specialised_as_at_a_launch(broken):
    assert broken["signature"] == {
        "pointer": "*bf16", "nothing": "constexpr", "flag": "u1", "one": "constexpr", "sixteen": "i32", "odd": "i32",
        "large": "i64", "real": "fp32", "CONSTANT": "constexpr",
    }  # fmt: skip
    assert broken["constants"] == {"1": None, "3": 1, "8": 3}
    divisible = {index for index, promise in broken["promises"].items() if ["tt.divisibility", 16] in promise}
    assert divisible == {"0", "4", "6"}


@pytest.mark.slow
def test_a_process_that_ends_is_its_tasks_fault_alone(broken):
    assert broken["results"] == {"2": 4}
    assert "ended its process" in broken["reasons"]["3"]
    assert broken["reasons"]["4"] == "ValueError: four"


def test_shipped_kernels_of_most_training_runs(tmp_path):
    path = tmp_path / "rows.json"
    done = run("-m", "efftrain_kernels.evidence", "check", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())
    names = [row["name"] for row in rows]
    for part in ("forward D64", "forward D128", "keys D64", "keys D128", "queries D64", "queries D128", "adamw"):
        assert any(name.startswith(part) for name in names), part
    assert all(row["wgmma"] and not row["serialized"] for row in rows if "bf16" in row["name"] and " D" in row["name"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["90", "80", "100"])
def test_everything_that_is_shipped(arch):
    done = run("-m", "efftrain_kernels.evidence", "check", "--arch", arch)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(registers=64, spill_bytes=0, shared_bytes=0, opcodes=(), *, serialized=False, warps=4, early_arrivals=0):
    return Compiled(registers, spill_bytes, shared_bytes, Counter(opcodes), serialized, "12.8", warps, early_arrivals)


@pytest.mark.parametrize(
    ("found", "arch", "limits", "complaints"),
    [
        (compiled(shared_bytes=163 * KIB), 80, Limits(), 0),
        (compiled(shared_bytes=163 * KIB + 1), 80, Limits(), 1),
        (compiled(shared_bytes=163 * KIB), 86, Limits(), 1),
        (compiled(shared_bytes=227 * KIB), 90, Limits(), 0),
        (compiled(registers=255, warps=8), 90, Limits(), 0),
        (compiled(registers=129, warps=16), 90, Limits(), 1),
        (compiled(spill_bytes=8), 90, Limits(spill_bytes=8), 0),
        (compiled(spill_bytes=9), 90, Limits(spill_bytes=8), 1),
        (compiled(opcodes=["HGMMA.64x64x16.F32.BF16"]), 90, Limits(wgmma=True), 0),
        (compiled(opcodes=["HGMMA.64x64x16.F32.BF16"], serialized=True), 90, Limits(wgmma=True), 1),
        (compiled(opcodes=["HMMA.16816.F32.BF16"]), 90, Limits(wgmma=True), 1),
        (compiled(opcodes=["HMMA.16816.F32.BF16"]), 80, Limits(wgmma=True), 0),
        (compiled(opcodes=["LDG.E.128", "STG.E.128"]), 90, Limits(wide=True), 0),
        (compiled(opcodes=["LDG.E.128.CONSTANT", *["LDG.E"] * 24]), 90, Limits(wide=True), 0),
        (compiled(opcodes=["LDG.E.128", *["LDG.E"] * 25]), 90, Limits(wide=True), 1),
        (compiled(opcodes=["LDG.E.128", "LDG.E.U16"]), 90, Limits(wide=True), 1),
        (compiled(opcodes=["LDG.E.ENL2.256"]), 100, Limits(wide=True), 0),
        (compiled(opcodes=["LDG.E", "STG.E"]), 90, Limits(wide=True), 1),
        (compiled(spill_bytes=9, shared_bytes=300 * KIB), 90, Limits(), 2),
    ],
)
def test_limits(found, arch, limits, complaints):
    assert len(violations(found, arch, limits)) == complaints


@pytest.mark.parametrize(
    ("between", "early"),
    [("bar.sync \t0, 128;", 0), ("barrier.sync 1, 128;", 1), ("// bar.sync 0, 128;", 1), ("mov.b32 %r1, %r2;", 1)],
)
def test_an_arrival_for_a_group_comes_after_the_group(between, early):
    ptx = f"""
    wgmma.wait_group.sync.aligned 1;
    {between}
    .loc 1 89 20
    // begin inline asm
    setp.eq.b32 \t%p450, %r27, 0;
    @%p450 mbarrier.arrive.shared::cta.b64 _, [%r1];
    @%p3 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r55], 16384;
    """
    assert early_arrivals(ptx) == early
    found = compiled(early_arrivals=early)
    assert len(violations(found, 90, Limits())) == early


def test_a_table_names_what_is_wrong_and_what_is_missing():
    rows = [Row("fine", 90, registers=10), Row("bad", 80, violations=("spills 8 bytes",))]
    text = describe(rows)
    assert "sm_80 bad: spills 8 bytes" in text
    assert "missing" in text
    assert text.endswith("2 kernels compiled, 1 outside their limits")
    assert not passed(rows)
    assert passed(rows[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arches": (75,)}, "arch 75: no limits are known"),
        ({"ptxas": Path("/nowhere/ptxas")}, "ptxas /nowhere/ptxas: no such file"),
    ],
)
def test_what_cannot_be_checked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(**options)


def test_an_interpreted_process_cannot_check(monkeypatch, capsys):
    monkeypatch.setattr(launch, "interpreting", lambda: True)
    assert main(["check"]) == 2
    said = capsys.readouterr().err
    assert "TRITON_INTERPRET is set" in said
    assert "unset it" in said


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["check", "--only", "softmax"], "argument --only: invalid choice: 'softmax'"),
        (["bench", "softmax"], "argument what: invalid choice: 'softmax'"),
        (["check", "--arch", "ninety"], "--arch 'ninety': expected numbers separated by commas, such as 80,90"),
        ([], "the following arguments are required: command"),
    ],
)
def test_a_wrong_command_line_is_said_in_one_line(capsys, command, complaint):
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"efftrain_kernels.evidence: {complaint}")
    assert len(said.splitlines()) == 1


def test_only_what_is_stated_may_spill():
    """Plain attention of the usual widths in 16 bits spills nothing on any architecture."""
    for arch in ARCHES:
        for subject in subjects.attention(arch):
            if subject.limits.spill_bytes:
                assert subject.limits.reason
        strict = {subject.name for subject in subjects.attention(arch) if not subject.limits.spill_bytes}
        assert any(name.startswith("forward D128 masked bf16") for name in strict)
        assert any(name.startswith("keys D64 full bf16") for name in strict)
        assert not any("D256" in name or "fp32" in name for name in strict)


def test_every_configuration_is_compiled():
    """Whatever the table or a tuned file can make run is among what is checked."""
    names = {arch: [subject.name for subject in subjects.attention(arch)] for arch in ARCHES}
    assert set(ARCHES) == set(configs.ARCHITECTURES)
    for key in configs.keys():  # noqa: SIM118 (a function)
        width = {"half": "bf16", "float": "fp32"}[key.dtype]
        for c in configs.candidates(key):
            assert f"{key.kernel} D{key.block_d} {key.kind} {width} {c}" in names[key.arch]
    assert [name for name, _ in adamw.shipped()] == [subject.name for subject in subjects.optimizer(90)]
    assert QUICK.issubset(name for name, _ in adamw.shipped())
