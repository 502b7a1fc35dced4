"""A kernel that does nothing: how it was decorated tells how all of them were."""

import triton


@triton.jit
def nothing() -> None:
    """Do nothing."""
