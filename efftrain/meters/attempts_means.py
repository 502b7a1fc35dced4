"""Sums and means of the same figure over several attempts of a run, and where they come from in few words."""

from collections.abc import Sequence

from efftrain.record.quantities import Quantity, correlated, scaled, total


def common_sum(parts: Sequence[Quantity]) -> Quantity:
    """A sum whose systematic error is common: one model or one sensor gave all parts. The boundary is the last's."""
    return parts[0] if len(parts) == 1 else correlated(parts, boundary=parts[-1].boundary, source=added_up(parts))


def weighted(parts: Sequence[Quantity], weights: Sequence[float]) -> Quantity:
    """Mean of those that are present, with independent errors; the last part where none is, or where all are alike."""
    present = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.present and weight]
    if not present or same([part for part, _ in present]):
        return present[-1][0] if present else parts[-1]
    whole = sum(weight for _, weight in present)
    said = [part.source for part, _ in present]
    return total(
        [scaled(part, weight / whole, part.unit) for part, weight in present], boundary=parts[-1].boundary,
        source="mean over attempts: " + (in_one(said) or "; ".join(dict.fromkeys(said))),
    )  # fmt: skip


def same(parts: Sequence[Quantity]) -> bool:
    """Whether there is but one figure among them."""
    return all(part == parts[0] for part in parts)


def added_up(parts: Sequence[Quantity]) -> str:
    """Where a sum over attempts comes from: `a counter, 2 attempts added up`; each source where they differ."""
    present = [part for part in parts if part.present]
    said = [part.source for part in present or parts]
    once = in_one(said)
    if once is None:
        return "sum of: " + "; ".join(dict.fromkeys(said))
    return f"{once}, {len(present)} attempts added up" if len(present) > 1 else once


def in_one(sources: Sequence[str]) -> str | None:
    """Sources that differ in one word at most, a number of steps, say, as one: `mean of 60 and 260`; else None."""
    columns = list(zip(*(source.split(" ") for source in sources), strict=False))
    if any(source.count(" ") + 1 != len(columns) for source in sources):
        return None
    words = [_listed(list(dict.fromkeys(column))) for column in columns]
    differing = sum(len(set(column)) > 1 for column in columns)
    return " ".join(words) if differing <= 1 else None


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
