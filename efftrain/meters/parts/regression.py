"""The watts of each part of a run, from the increments of one counter.

Between two updates a counter grows by the energy of what ran in between, so hundreds of increments on the seconds of
each part in them are a linear regression whose coefficients are watts. Three habits of counters stand in the way: they
are late, some average only a window of each tick, and some follow the power with inertia. These shift, narrow and blur
what an increment saw, so all three are fitted beside the watts, and what is not known of them is in the covariance.

The covariance is that of a jackknife over blocks of time (CR3; Bell & McCaffrey 2002): it holds whatever is correlated
over seconds, as the error of a re-timed update and a slow drift of the power are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from efftrain.meters.energy.ticks import Track
from efftrain.meters.parts.timeline import Floats, Timeline

MIN_ROWS: Final = 60
"""Fewer increments than this leave too few blocks to say how sure the watts are."""

BLOCKS: Final = 24
"""Blocks of the jackknife: enough for Student's t, and each still seconds long."""

SMALL_PART: Final = 0.01
"""Time outside of steps under this share of the bill is not fitted: it is taken at the run's mean power."""

SMALL_PHASE: Final = 0.002
"""A phase under this share of a step has no power of its own here: its neighbour's is taken."""

MAX_ROW_NS: Final = 2e9
"""An increment over more than this hides a gap."""

MAX_ROWS: Final = 2400
"""Increments looked at, four minutes of a usual counter, spread over the run: the watts are then known to 0.5 %."""

_STRETCH: Final = 100

_LAGS: Final = np.linspace(-0.1, 0.6, 15)
"""First guesses of the lag; a little below zero, because a re-timed update may lie late.

In periods, or in tenths of a second where the period is shorter: counters are late by up to 50 ms, however often they
are updated.
"""

LAG_UNIT_NS: Final = 1e8

_SHARES: Final = (0.1, 0.17, 0.25, 0.35, 0.5, 0.7, 0.85, 1.0)
"""First guesses of the averaged share of a period."""

_MIN_SHARE: Final = 0.04
_MAX_INERTIA: Final = 0.6
_APART: Final = 0.15
_SHARP: Final = 1e-3

_QUANTILES: Final = -np.log(1 - (np.arange(8) + 0.5) / 8)
_DELAYS: Final = _QUANTILES / _QUANTILES.mean() - 1
"""Of an exponential distribution with the mean 1, about that mean: the lag is the mean delay, inertia included."""

_MEETINGS: Final = 3
_NEGLIGIBLE: Final = 1e-4

CORRELATED_ROWS: Final = 4
"""Increments that count as one when likelihoods are compared: errors of neighbours are alike."""

POSITIONS: Final = 16
"""Updates must have met each of so many equal parts of the step, finer than any phase that is reported."""

_STEP: Final = 0.01
"""Of the numerical derivatives by lag and share; by inertia three times as much, which acts by its square."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer, as the end of a sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fit:
    """Watts by part, with how sure they are.

    Attributes:
        watts: [parts] W.
        covariance: [parts, parts] W².
        assumed: [parts] whether the part was too short for a fit and is taken at the run's mean power.
        rows: increments used.
        blocks: blocks of the jackknife; the degrees of freedom of Student's t are one fewer.
        lag_s: how late the counter is, relative to its re-timed updates; None where it is exact whenever it is read.
        u_lag_s: its standard uncertainty.
        share: the averaged share of each period, at most 1; None as above.
        inertia_s: time constant with which the counter follows the power, 0 where it does at once; None as above.
    """

    watts: Floats
    covariance: Floats
    assumed: NDArray[np.bool_]
    rows: int
    blocks: int
    lag_s: float | None = None
    u_lag_s: float = 0.0
    share: float | None = None
    inertia_s: float | None = None


def fit(line: Timeline, track: Track, *, exact: bool) -> Fit | Refused:
    """Watts by part of a run from one counter.

    Args:
        line: the run.
        track: the counter's updates.
        exact: whether the counter is up to date whenever it is read: no lag, no window, no period.
    """
    problem = _problem(line, track, exact=exact)
    if problem.rows < MIN_ROWS:
        return Refused(
            f"{problem.rows} updates of the counter lie in the run, of at least {MIN_ROWS} that a longer one would have"
        )
    if not exact and track.period is None:
        return Refused("the counter shows no steady period of its own, so that its updates cannot be timed")
    stuck = ("" if exact else _too_short(line, problem.period)) or _unspread(line, track, problem.period)
    if stuck:
        return Refused(stuck)
    if exact:
        return _solution(problem, np.array([0.0, 1.0, 0.0]), [], [])
    best, others = _habits(problem)
    return _solution(problem, best, [0, 1, 2], others)


def _too_short(line: Timeline, period: float) -> str:
    """Why steps are too short for a counter that is late by a time to be found out, or nothing.

    Each increment of such a counter holds more than a whole step, and a wrong lag explains it as well as the right one.
    """
    if line.mean_step_s * 1e9 >= period:
        return ""
    return f"a step takes {1e3 * line.mean_step_s:.3g} ms, less than the {period / 1e6:.3g} ms between two updates"


def _unspread(line: Timeline, track: Track, period: float) -> str:
    """Why the updates do not tell the phases of a step apart, or nothing.

    Where a step takes a simple multiple of the update period, updates meet the same few moments of it again and again.
    So each sixteenth of the step must have been met, in at least three blocks of time, because what was met but once
    cannot be told from a slow drift.
    """
    t = np.asarray(track.t, dtype=float)
    step, where = line.positions(t)
    cell = np.minimum((where * POSITIONS).astype(int), POSITIONS - 1)
    met = np.zeros((BLOCKS, POSITIONS), bool)
    met[np.arange(len(t))[step] * BLOCKS // max(len(t), 1), cell] = True
    reached = int((met.sum(axis=0) >= _MEETINGS).sum())
    if reached == POSITIONS:
        return ""
    return (
        f"the counter moves every {period / 1e6:.3g} ms and a step takes {1e3 * line.mean_step_s:.3g} ms, so that it "
        f"met only {reached} of {POSITIONS} parts of the step often enough"
    )


@dataclass(frozen=True, slots=True)
class _Problem:
    """The increments that lie on the bill, with the sub-intervals of those that span several periods.

    `end` and `length` [m] in ns are those of single periods, of which row i has those from `first[i]` on. With `basis`
    [p, q] and `offset` [p], the watts of all parts are basis · coefficients + offset.
    """

    line: Timeline
    end: Floats
    length: Floats
    first: np.ndarray
    joules: Floats
    period: float
    basis: Floats
    offset: Floats
    u_offset: Floats

    @property
    def lag_unit(self) -> float:
        """What lags are counted in, ns."""
        return max(self.period, LAG_UNIT_NS)

    @property
    def rows(self) -> int:
        return len(self.first)

    def seconds(self, habits: Floats) -> Floats:
        """[rows, parts] s by part that the increments stand for, under a lag, a share and an inertia."""
        lag, share, inertia = habits
        delays = lag + inertia * _DELAYS if inertia > _SHARP else [lag]
        parts = np.zeros((len(self.end), len(self.line.names)))
        for delay in delays:
            end = self.end - delay * self.lag_unit
            parts += self.line.occupancy(end - share * self.length, end)[:, :-1]
        return np.add.reduceat(parts / (share * len(delays)), self.first, axis=0)

    def design(self, habits: Floats) -> tuple[Floats, Floats]:
        """Regressors [rows, q] and what they are to explain [rows]."""
        parts = self.seconds(habits)
        return parts @ self.basis, self.joules - parts @ self.offset


def _problem(line: Timeline, track: Track, *, exact: bool) -> _Problem:
    t, joules = np.asarray(track.t, dtype=float), np.asarray(track.joules, dtype=float)
    length, grown = np.diff(t), np.diff(joules)
    period = track.period or (float(np.median(length)) if len(length) else 1.0)
    reach = 0.0 if exact else max(period, LAG_UNIT_NS)
    seen = line.occupancy(t[:-1] - reach, t[1:] + reach / 2) if len(t) > 1 else np.zeros((0, 1))
    kept = (seen[:, -1] == 0) & (length < MAX_ROW_NS) & (length > 0)
    for flaw in track.flaws:
        kept &= (t[1:] <= flaw.start) | (t[:-1] >= flaw.end)
    kept = _thinned(kept)
    t, length, grown = t[1:][kept], length[kept], grown[kept]
    single = track.period is None or exact
    count = np.ones(len(t), int) if single else np.maximum(1, np.round(length / period)).astype(int)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(int) if len(t) else np.zeros(0, int)
    part = length / count
    back = np.arange(count.sum()) - np.repeat(first, count)
    mean = float(grown.sum() / length.sum() * 1e9) if len(t) else 0.0
    met = line.occupancy(t - length, t)[:, :-1].sum(axis=0) if len(t) else line.seconds
    basis, offset, u_offset = _basis(line, mean, met)
    return _Problem(
        line, np.repeat(t, count) - back * np.repeat(part, count), np.repeat(part, count), first, grown, period,
        basis, offset, u_offset,
    )  # fmt: skip


def _thinned(kept: np.ndarray) -> np.ndarray:
    """The mask with at most `MAX_ROWS` rows, whole stretches of them, spread over the run."""
    every = -(-int(kept.sum()) // MAX_ROWS)
    return kept if every <= 1 else kept & (np.cumsum(kept) // _STRETCH % every == 0)


def _basis(line: Timeline, mean: float, met: Floats) -> tuple[Floats, Floats, Floats]:
    """How few coefficients make up the watts of all parts; see `_Problem`, `SMALL_PART` and `SMALL_PHASE`.

    `met` [parts] are the seconds of each part in the increments.
    """
    share = line.seconds / max(line.seconds.sum(), 1e-9)
    cycle = list(range(line.phases))
    owner = {i: i for i in cycle}
    large = [i for i in cycle if share[i] >= SMALL_PHASE * share[: line.phases].sum()]
    for i in cycle:
        if i not in large and large:
            owner[i] = next((j for j in large if j > i), large[0])
    small = [i for i in range(line.phases, len(share)) if share[i] < SMALL_PART or met[i] <= 0]
    owner |= {i: i for i in range(line.phases, len(share)) if i not in small}
    columns = sorted(set(owner.values()))
    basis, offset = np.zeros((len(share), len(columns))), np.zeros(len(share))
    for i, j in owner.items():
        basis[i, columns.index(j)] = 1.0
    offset[small] = mean
    return basis, offset, offset / np.sqrt(3)  # anything from nothing to twice the mean: rectangular (GUM, 4.3.7)


def _habits(problem: _Problem) -> tuple[Floats, list[tuple[float, Floats]]]:
    """The lag, the share and the inertia that leave the smallest residuals, and what others would have found.

    Returns:
        The best of them, from a search that starts at the best of a grid; and for each point of the grid that explains
        the increments about as well, its likelihood relative to the best one's and its watts by part.
    """
    grid = [np.array([lag, share, 0.0]) for share in _SHARES for lag in _LAGS]
    tried = [(_left(problem, habits), habits) for habits in grid]
    tried.sort(key=lambda one: one[0])
    first = tried[0][1]
    apart = next((habits for _, habits in tried if np.abs(habits - first).max() > _APART), tried[1][1])
    found = [_search(problem, habits) for habits in (first, apart)]
    least, best = min(found, key=lambda one: one[0])
    rows = problem.rows / CORRELATED_ROWS
    likelihoods = [((least / max(left, least)) ** (rows / 2), habits) for left, habits in tried]
    others = [(weight, _watts(problem, habits)) for weight, habits in likelihoods if weight > _NEGLIGIBLE]
    return best, others


def _search(problem: _Problem, start: Floats) -> tuple[float, Floats]:
    """The residual sum of squares at the best lag, share and inertia near `start`, and these."""
    simplex = start + np.array([[0.0, 0.0, 0.0], [0.03, 0.0, 0.0], [0.0, -0.05, 0.0], [0.03, 0.0, 0.08]])
    options = {"initial_simplex": simplex, "xatol": 1e-4, "fatol": 0.0, "maxiter": 120}
    found = minimize(lambda habits: _left(problem, habits), start, method="Nelder-Mead", options=options)
    return float(found.fun), _inside(found.x)


def _inside(habits: Floats) -> Floats:
    return np.clip(habits, [_LAGS[0], _MIN_SHARE, 0.0], [_LAGS[-1] + _MAX_INERTIA, 1.0, _MAX_INERTIA])


def _left(problem: _Problem, habits: Floats) -> float:
    """Sum of squares in J² that such habits leave unexplained; it rises beyond what a counter can have."""
    inside = _inside(habits)
    x, y = problem.design(inside)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(residual @ residual) * (1 + 10 * float(np.abs(habits - inside).sum()))


def _watts(problem: _Problem, habits: Floats) -> Floats:
    x, y = problem.design(habits)
    return problem.basis @ np.linalg.lstsq(x, y, rcond=None)[0] + problem.offset


def _solution(
    problem: _Problem, habits: Floats, free: Sequence[int], others: Sequence[tuple[float, Floats]]
) -> Fit | Refused:
    x, y = problem.design(habits)
    scale = np.sqrt((x * x).sum(axis=0))
    if (scale == 0).any():
        return Refused("a part of the step never met an update of the counter")
    coefficients = np.linalg.lstsq(x / scale, y, rcond=None)[0] / scale
    watts = problem.basis @ coefficients + problem.offset
    slopes = [_slope(problem, habits, i, watts) for i in free]
    covariance, blocks = jackknife(np.column_stack([x, *slopes]), y - x @ coefficients)
    size = x.shape[1]
    spread = np.sqrt(np.diag(covariance)[size:]) * problem.lag_unit / 1e9
    # What is not fitted errs by its own uncertainty, and its neighbours by the share of it that they take over.
    error = np.eye(len(problem.offset)) - problem.basis @ np.linalg.pinv(x) @ problem.seconds(habits)
    error *= problem.u_offset
    return Fit(
        watts=watts,
        covariance=problem.basis @ covariance[:size, :size] @ problem.basis.T
        + error @ error.T
        + _between(watts, others),
        assumed=np.abs(problem.basis).sum(axis=1) == 0,
        rows=problem.rows,
        blocks=blocks,
        lag_s=float(habits[0]) * problem.lag_unit / 1e9 if free else None,
        u_lag_s=float(spread[0]) if free else 0.0,
        share=float(habits[1]) if free else None,
        inertia_s=float(habits[2]) * problem.lag_unit / 1e9 if free else None,
    )


def _between(watts: Floats, others: Sequence[tuple[float, Floats]]) -> Floats:
    """[parts, parts] W² of the scatter between lags and shares that explain the increments about as well.

    A mixture's covariance is the mean of the covariances within and the scatter between; the best fit has weight 1.
    """
    whole = 1.0 + sum(weight for weight, _ in others)
    apart = [(weight / whole, other - watts) for weight, other in others]
    return sum((weight * np.outer(d, d) for weight, d in apart), np.zeros((len(watts), len(watts))))


def _slope(problem: _Problem, habits: Floats, index: int, watts: Floats) -> Floats:
    """[rows] derivative of the explained joules by one habit; one-sided at the end of its range."""
    ends = np.array([habits, habits])
    step = _STEP if index < 2 else 3 * _STEP
    ends[0, index] -= step
    ends[1, index] += step
    ends = np.clip(ends, [-1.0, _MIN_SHARE / 2, 0.0], [2.0, 1.0, 1.0])
    below, above = (problem.seconds(end) @ watts for end in ends)
    return (above - below) / (ends[1, index] - ends[0, index])


def jackknife(x: Floats, residual: Floats) -> tuple[Floats, int]:
    """Covariance [q, q] of least-squares coefficients from leaving out blocks of rows [n, q], and the blocks' number.

    Leaving out block g changes the coefficients by −(XᵀX − X_gᵀX_g)⁻¹ X_gᵀ r_g.
    """
    scale = np.sqrt((x * x).sum(axis=0))
    scale[scale == 0] = 1.0
    unit = x / scale
    whole = unit.T @ unit
    count = min(BLOCKS, len(x) // max(2, x.shape[1]))
    changes = np.array([
        np.linalg.pinv(whole - part.T @ part, hermitian=True) @ part.T @ left
        for part, left in zip(np.array_split(unit, count), np.array_split(residual, count), strict=True)
    ])  # fmt: skip
    return (count - 1) / count * (changes.T @ changes) / np.outer(scale, scale), count
