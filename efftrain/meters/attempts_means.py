"""Sums and means of the same figure over several attempts of a run."""

from collections.abc import Sequence

from efftrain.record.quantities import Quantity, correlated, scaled, total


def common_sum(parts: Sequence[Quantity]) -> Quantity:
    """A sum whose systematic error is common: one model or one sensor gave all parts. The boundary is the last's."""
    return parts[0] if len(parts) == 1 else correlated(parts, boundary=parts[-1].boundary)


def weighted(parts: Sequence[Quantity], weights: Sequence[float]) -> Quantity:
    """Mean of those that are present, with independent errors; the last part where none is, or where all are alike."""
    present = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.present and weight]
    if not present or same([part for part, _ in present]):
        return present[-1][0] if present else parts[-1]
    whole = sum(weight for _, weight in present)
    return total(
        [scaled(part, weight / whole, part.unit) for part, weight in present], boundary=parts[-1].boundary,
        source="mean over attempts: " + "; ".join(dict.fromkeys(part.source for part, _ in present)),
    )  # fmt: skip


def same(parts: Sequence[Quantity]) -> bool:
    """Whether there is but one figure among them."""
    return all(part == parts[0] for part in parts)
