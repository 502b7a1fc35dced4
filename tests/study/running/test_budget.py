"""Budgets against sensors of known watts: what a run has used in truth when it stops is a formula."""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efftrain.meters.carbon.footprint import resolve
from efftrain.meters.windows import billed_windows, seconds
from efftrain.monitor.monitor import Monitor, header_fields
from efftrain.record.journal import Journal, JournalWriter, read_journal
from efftrain.record.recorder import JournalRecorder
from efftrain.record.schema import Run, load
from efftrain.sensors.protocol import Absent, Discovery
from efftrain.sensors.simulated import Habits, PowerCurve, SimulatedCounter, constant, piecewise
from efftrain.study.running.budget import Budget
from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.config import HorizonConfig, RunConfig
from efftrain.training.horizon import Horizon
from efftrain.training.loop import train
from efftrain.training.session import build_session
from efftrain.workload.models.presets import ModelConfig

S = 1_000_000_000
READING_S = 0.05
"""Time between two readings, by which a tick may be seen late."""


def header(config: dict[str, Any], intensity: float | None = None, hosts: int = 1) -> dict[str, Any]:
    return {
        "run_id": "r", "study_id": "s", "variant": "baseline", "seed": 0, "config": config, "environment": {},
        "corpus": {}, "peak": {"flops_per_s": None, "source": "none", "device": "d", "dtype": "float32"},
        "carbon": resolve(intensity=intensity), "idle": {}, "parameters": 1, "teacher": None,
        "hosts": hosts,
    }  # fmt: skip


class Machine:
    """A run on a clock of its own: steps, evaluations and a counter that ticks ten times a second beside them."""

    def __init__(self, path: Path, curve: PowerCurve, config: dict[str, Any], *, sensors: bool = True, **more: Any):
        self.now = S
        self.counter = SimulatedCounter(curve, clock=self.clock, habits=Habits(tick_s=0.1))
        found = Discovery(
            sensors=[self.counter] if sensors else [], absent=more.pop("absent", []),
        )  # fmt: skip
        self.journal = JournalWriter(path, clock=self.clock)
        self.journal.write("header", **header_fields(header(config, **more), found, self.clock))
        self.recorder = JournalRecorder(self.journal)
        self.path, self.config, self.step = path, config, 0
        self.sensors, self.shown = sensors, -1.0

    def clock(self) -> int:
        return self.now

    def work(self, duration: float) -> None:
        """Time passes, and the sampler looks every 50 ms."""
        end = self.now + round(duration * S)
        while self.now < end:
            self.now = min(end, (self.now // (S // 20) + 1) * (S // 20))
            if self.sensors and self.now % (S // 20) == 0 and self.counter.read() != self.shown:
                self.shown = self.counter.read()
                self.journal.write("tick", sensor="simulated", value=self.shown)

    def budget(self, **limits: Any) -> Budget:
        more = {name: limits.pop(name) for name in ("note", "joules_before", "grams_before") if name in limits}
        return Budget(self.path, HorizonConfig(**limits), self.journal.flush, clock=self.clock, **more)

    def train(self, spent: Callable[[], bool], *, step_s: Iterable[float], evaluation_s: float, steps: int) -> None:
        """In the order of the loop: steps, the question, an evaluation where one is due or the last."""
        for duration in itertools.islice(step_s, steps):
            self.step += 1
            start = self.now
            self.work(duration)
            self.recorder.step(
                step=self.step, tokens=8, t=start, t_end=self.now, phases=[("forward", start)], loss=1.0,
                learning_rate=0.1, grad_norm=1.0,
            )  # fmt: skip
            over = spent()
            if over or self.step % self.config["eval_every"] == 0 or self.step == steps:
                with self.recorder.span("evaluate"):
                    self.work(evaluation_s)
                self.recorder.evaluation(step=self.step, tokens=8, loss=1.0, stderr=None)
            if over:
                break
        self.journal.flush()

    def billed(self) -> float:
        """J in truth over the billed stretches of the run."""
        return sum(self.counter.true_energy(*window) for window in billed_windows(read_journal(self.path).lines))


@pytest.fixture
def machine_of(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(*arguments: Any, **more: Any) -> Machine:
        made.append(Machine(tmp_path / "j", *arguments, **more))
        return made[-1]

    yield make
    for machine in made:
        machine.journal.close()


MachineOf = Callable[..., Machine]
CONFIG = {"steps": 1000, "eval_every": 10, "eval_batches": 4, "grad_accumulation": 1, "log_every": 1}


@pytest.mark.parametrize("joules", [190, 400, 1010, 2500, 3333])
@pytest.mark.parametrize("step_s", [0.02, 0.3, 0.9])
def test_a_run_ends_within_a_step_below_its_budget(machine_of: MachineOf, joules: float, step_s: float):
    machine, evaluation_s = machine_of(constant(50.0), CONFIG), step_s * 4 / 3
    spent = machine.budget(max_joules=joules).spent
    machine.train(spent, step_s=itertools.repeat(step_s), evaluation_s=evaluation_s, steps=10_000)
    # One step more, and a second evaluation where one was due before it, would have been too much.
    room = 50 * (step_s + (evaluation_s if machine.step % 10 == 0 else 0.0))
    assert joules - room - 50 * READING_S <= machine.billed() <= joules


@pytest.mark.parametrize("seed", range(5))
def test_uneven_steps_and_power_stay_within_what_a_step_can_vary(machine_of: MachineOf, seed: int):
    draw = random.Random(seed)
    segments = [(draw.uniform(2, 6), draw.uniform(80, 120)) for _ in range(100)]
    machine = machine_of(piecewise(segments), CONFIG)
    steps = (draw.uniform(0.2, 0.4) for _ in itertools.count())
    machine.train(machine.budget(max_joules=3000).spent, step_s=steps, evaluation_s=0.5, steps=1000)
    # The power of the next step and evaluation is not known, nor that of the last tick: 120 W where 80 were.
    assert 3000 - 120 * (0.4 + 0.5) - 40 * 1.0 <= machine.billed() <= 3000 + 40 * (0.4 + 0.5 + 0.1)


def test_steps_that_are_asked_about_rarely_are_set_aside_together(machine_of: MachineOf):
    machine = machine_of(constant(100.0), {**CONFIG, "log_every": 10, "eval_every": 1000})
    spent = machine.budget(max_joules=1000).spent
    machine.train(
        lambda: machine.step % 10 == 0 and spent(), step_s=itertools.repeat(0.1), evaluation_s=0.3, steps=1000
    )
    assert 1000 - 100 * 10 * 0.1 - 2 <= machine.billed() <= 1000


def test_before_the_first_evaluation_its_cost_is_reckoned_from_a_step(machine_of: MachineOf):
    """Four micro-batches forward take what 4/3 of a step does."""
    machine = machine_of(constant(100.0), {**CONFIG, "eval_every": 1000})
    machine.train(machine.budget(max_joules=1000).spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=1000)
    assert 1000 - 100 * 0.3 - 2 <= machine.billed() <= 1000


def test_compilation_and_earlier_attempts_are_in_the_budget(machine_of: MachineOf):
    machine = machine_of(constant(100.0), CONFIG)
    with machine.recorder.span("compile"):
        machine.work(2.0)
    machine.work(3.0)
    budget = machine.budget(max_joules=1000, joules_before=300)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=1000)
    assert 700 - 100 * 0.7 - 2 <= machine.billed() <= 700


def test_grams_are_joules_times_the_intensity(machine_of: MachineOf):
    """360 g/kWh are 1e-4 g/J, and nothing is known of the hardware: 0.1 g are 1000 J."""
    machine = machine_of(constant(100.0), CONFIG, intensity=360.0)
    machine.train(machine.budget(max_gco2e=0.1).spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=1000)
    assert 1000 - 100 * 0.7 - 2 <= machine.billed() <= 1000 + 1e-6


def test_machines_that_cannot_be_read_from_here_are_taken_to_use_what_the_first_one_does(machine_of: MachineOf):
    notes: list[str] = []
    machine = machine_of(constant(100.0), CONFIG, hosts=4)
    budget = machine.budget(max_joules=4000, note=notes.append)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=1000)
    assert 1000 - 100 * 0.7 - 100 * READING_S <= machine.billed() <= 1000
    assert notes == ["--max-joules: each of the 4 machines is taken to use what the first one does"]


def test_the_tighter_of_two_budgets_counts(machine_of: MachineOf):
    machine = machine_of(constant(100.0), CONFIG, intensity=360.0)
    budget = machine.budget(max_gco2e=0.1, max_joules=500)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=1000)
    assert 500 - 100 * 0.7 - 2 <= machine.billed() <= 500


def test_without_a_sensor_the_run_goes_on_and_says_so_once(machine_of: MachineOf):
    notes: list[str] = []
    machine = machine_of(constant(100.0), CONFIG, sensors=False)
    budget = machine.budget(max_joules=10, note=notes.append)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=50)
    assert machine.step == 50
    (note,) = notes
    assert note.startswith("--max-joules cannot be kept: this machine has no energy sensor")
    assert budget.first_step_refusal() is None


def test_a_silent_sensor_is_waited_for_and_then_named(machine_of: MachineOf):
    notes: list[str] = []
    machine = machine_of(constant(100.0), CONFIG)
    machine.sensors = False
    budget = machine.budget(max_gco2e=1, note=notes.append)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=10)
    assert notes == []
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=20)
    assert len(notes) == 1
    assert "--max-gco2e cannot be kept: the sensors tell nothing" in notes[0]


def test_a_fault_of_the_meter_does_not_end_the_training(machine_of: MachineOf, monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    machine = machine_of(constant(100.0), CONFIG)
    budget = machine.budget(max_joules=10, note=notes.append)
    monkeypatch.setattr("efftrain.meters.live.LiveMeter.feed", lambda self, line: 1 / 0)
    machine.train(budget.spent, step_s=itertools.repeat(0.3), evaluation_s=0.4, steps=50)
    assert machine.step == 50
    assert notes == ["--max-joules cannot be kept: division by zero; training goes on without it"]


def test_a_lower_bound_is_said_once(machine_of: MachineOf):
    notes: list[str] = []
    absent = [Absent(component="dram", name="dram", why="no such counter")]
    machine = machine_of(constant(100.0), CONFIG, absent=absent)
    machine.train(
        machine.budget(max_joules=500, note=notes.append).spent, step_s=itertools.repeat(0.3), evaluation_s=0.4,
        steps=1000,
    )  # fmt: skip
    assert notes == ["--max-joules counts what can be read; not read here: dram: no such counter"]


def test_a_budget_below_one_step_is_refused_before_it(machine_of: MachineOf):
    """A step of 3 s at 100 W, and the four forward passes of an evaluation in 4 s."""
    machine = machine_of(constant(100.0), CONFIG)
    with machine.recorder.span("warmup"):
        machine.work(9.0)
    with machine.recorder.span("warmup"):
        machine.work(3.0)
    said = "one step of this model and an evaluation take about 700 J"
    why = machine.budget(max_joules=50).first_step_refusal()
    assert why == f"--max-joules 50: {said}; 50 J are left of the budget"
    assert machine.budget(max_joules=701).first_step_refusal() is None
    assert machine.budget(max_joules=400).first_step_refusal(steps=2) is None
    assert machine.budget(max_joules=800, joules_before=200).first_step_refusal() == (
        f"--max-joules 800: {said}; 600 J are left of the budget"
    )
    assert (machine.budget(max_joules=800, joules_before=900).first_step_refusal() or "").endswith(
        "0 J are left of the budget"
    )


def test_what_went_before_the_first_step_is_named(machine_of: MachineOf):
    machine = machine_of(constant(100.0), {**CONFIG, "eval_batches": 3}, intensity=360.0)
    with machine.recorder.span("compile"):
        machine.work(3.0)
    with machine.recorder.span("warmup"):
        machine.work(1.0)
    assert machine.budget(max_gco2e=0.03).first_step_refusal() == (
        "--max-gco2e 0.03: one step of this model and an evaluation take about 0.02 g, and 0.03 g went before them;"
        " 0.03 g are left of the budget"
    )
    assert machine.budget(max_joules=501).first_step_refusal() is None
    assert machine.budget(max_joules=499).first_step_refusal() is not None


def test_without_limits_nothing_is_read(tmp_path: Path):
    def flush() -> None:
        raise AssertionError("not to be called")

    budget = Budget(tmp_path / "missing", HorizonConfig(), flush)
    assert (budget.spent(), budget.first_step_refusal(), budget.watching) == (False, None, False)


def test_the_journal_is_read_seldom_while_the_budget_is_far(machine_of: MachineOf, tmp_path: Path):
    machine = machine_of(constant(1.0), CONFIG)
    looks: list[int] = []
    budget = Budget(
        tmp_path / "j", HorizonConfig(max_joules=1e6), lambda: looks.append(machine.journal.flush() or 1),
        clock=machine.clock,
    )  # fmt: skip
    machine.train(budget.spent, step_s=itertools.repeat(0.01), evaluation_s=0.1, steps=200)
    assert len(looks) <= (200 * 0.01 + 20 * 0.1) / 0.25 + 1


TINY = ModelConfig(
    d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip


class RandomBatches:
    def train(self, step: int) -> Batch:
        return next_token_batch(torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(step)))

    def validation(self) -> list[Batch]:
        return [self.train(10_000 + index) for index in range(3)]


def test_a_real_loop_stops_within_a_step_of_its_budget(tmp_path: Path):
    """100 W by a real clock: the bill is 100 J for each billed second of the journal."""
    config = RunConfig(model=TINY, steps=100_000, batch_size=4, eval_every=50, eval_batches=3)
    path, limits = tmp_path / "journal.jsonl", HorizonConfig(max_joules=80)
    counter = SimulatedCounter(constant(100.0), clock=time.monotonic_ns, period_s=0.05)
    session = build_session(config)
    with Monitor(path, Discovery(sensors=[counter]), header(config.as_dict())) as monitor:
        time.sleep(0.3)
        budget = Budget(path, limits, monitor.flush, note=monitor.recorder.note)
        status = train(session, RandomBatches(), monitor.recorder, horizon=Horizon(limits, budget.spent))
        monitor.recorder.end(status)
    journal = read_journal(path)
    assert journal.status == "budget-spent"
    used = 100 * seconds(billed_windows(journal.lines))
    assert 80 - 100 * (_longest(journal) + 2 * READING_S) <= used <= 80 + 100 * _longest(journal)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--max-joules", "--max-gco2e"])
def test_a_budget_is_kept_from_the_command_line_on(efftrain, text_folder: Path, tmp_path: Path, option: str):
    """Energy is modelled on most machines that run tests: the run must agree with its own report all the same."""
    budget, out = {"--max-joules": 100.0, "--max-gco2e": 0.015}[option], tmp_path / "study"
    wish = ("train", "--device", "cpu", "--model", "nano", "--data", text_folder, "--out", out)
    done = efftrain(*wish, "--steps", 100_000, option, budget)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load(next(out.glob("runs/*/run.json")), Run)
    assert run.status == "budget-spent"
    used = run.energy.total.value if option == "--max-joules" else run.carbon.total.value
    steps = sorted(
        line["t_end"] - line["t"] for line in read_journal(next(out.glob("runs/*/journal.jsonl"))).of("step")
    )
    slowest = steps[-1] / 1e9 / run.time.total.value
    assert budget * (1 - 0.1 - 2 * slowest) <= used <= budget * (1 + 2 * slowest)
    assert run.loss.validation[-1].step == run.steps


@pytest.mark.slow
def test_a_budget_below_a_step_is_one_line_and_exit_2(efftrain, text_folder: Path, tmp_path: Path):
    wish = ("train", "--device", "cpu", "--model", "nano", "--data", text_folder, "--out", tmp_path / "study")
    done = efftrain(*wish, "--steps", 10, "--max-joules", 0.001)
    assert done.returncode == 2, done.stdout + done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("efftrain: --max-joules 0.001: one step of this model and an evaluation take about")
    assert not (tmp_path / "study").exists()


def _longest(journal: Journal) -> float:
    """s of the longest step with what lay around it, where another process may have come between, and evaluations."""
    ends = [line["t_end"] for line in journal.of("step")]
    spans = [line["t_end"] - line["t"] for line in journal.of("span")]
    return (max(later - end for end, later in itertools.pairwise(ends)) + 2 * max(spans)) / 1e9
