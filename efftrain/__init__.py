"""efftrain tells what a training step costs, how sure it is, and which change makes it cheaper."""

from typing import TYPE_CHECKING, Any

from efftrain.version import __version__

__all__ = ["__version__", "measure"]

if TYPE_CHECKING:
    from efftrain.adapters.measure import measure


def __getattr__(name: str) -> Any:
    """`measure`, imported where it is first used: `import efftrain` stays light."""
    if name == "measure":
        from efftrain.adapters.measure import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
