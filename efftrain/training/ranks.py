"""What a training loop needs of the processes that train with it: to agree, and to add up."""

from typing import Any, Protocol

from torch import Tensor


class Ranks(Protocol):
    """The processes of one training, each of which calls the same methods in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def checkpoints(self) -> Any:
        """A process group for whoever writes checkpoints, which may happen at any moment; None where there is one."""
        ...

    def any(self, asked: bool) -> bool:
        """Whether any rank asked; on the host, without waiting for a device."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks of `values`, element by element, on their device."""
        ...

    def whole(self, value: Tensor) -> Tensor:
        """`value` itself, put together where ranks hold parts of it."""
        ...


class Alone:
    """One process that trains by itself."""

    rank = 0
    size = 1
    checkpoints = None

    def any(self, asked: bool) -> bool:
        """See `Ranks.any`."""
        return asked

    def total(self, values: Tensor) -> Tensor:
        """See `Ranks.total`."""
        return values

    def whole(self, value: Tensor) -> Tensor:
        """See `Ranks.whole`."""
        return value
