"""What can be done to documents before they become tokens, and an account of what it did.

Steps run in the order given, each document through all of them before the next is read, so that memory does not grow
with the text (but for `near-duplicates`, which remembers what it saw).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, get_args

from efftrain.workload.text.cleaning.contacts import mask_contacts
from efftrain.workload.text.cleaning.markup import strip_markup
from efftrain.workload.text.cleaning.near_duplicates import NearDuplicates
from efftrain.workload.text.config import CleaningStep, DataError, Document

Account = dict[str, int]
"""Counts of one step: `documents` seen, of which `changed` (and kept) and `removed`; `characters` seen and
`characters_removed`, net of what masks and line breaks add; for contacts, `emails_masked` and `phones_masked`."""

_Clean = Callable[[str, Account], str]

_LINE_ENDS: Final = re.compile("\r\n?|[\v\f\x85]")
_CONTROLS: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


class Cleaner:
    """Cleans documents in a stream.

    Args:
        steps: what to do, in order; none leaves documents as they are.

    Raises:
        DataError: a step that is not known or stands twice, or one whose library is not installed.
    """

    def __init__(self, steps: Sequence[CleaningStep]) -> None:
        for step in steps:
            if step not in _STEPS:
                raise DataError(f"cleaning: no step {step!r}; there are {', '.join(get_args(CleaningStep))}")
            if steps.count(step) > 1:
                raise DataError(f"cleaning: the step {step} stands twice")
        self._steps = tuple(steps)
        self._accounts: dict[str, Account] = {}
        self._begin()  # now, so that a missing library is known before any text is read

    def clean(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that are left, in order, each with its label; those that became empty are left out.

        Every call begins anew: it remembers no document of an earlier one, and the report is of the latest call.
        """
        steps = self._begin()
        for document in documents:
            text = _cleaned(document.text, steps)
            if text.strip():
                yield document._replace(text=text)

    def report(self) -> dict[str, Account]:
        """What each step of the latest `clean` did so far, in order; plain integers."""
        return {step: dict(account) for step, account in self._accounts.items()}

    def _begin(self) -> list[tuple[_Clean, Account]]:
        empty = {"documents": 0, "changed": 0, "removed": 0, "characters": 0, "characters_removed": 0}
        masks = {"emails_masked": 0, "phones_masked": 0}
        self._accounts = {step: empty | (masks if step == "contacts" else {}) for step in self._steps}
        return [(_STEPS[step](), self._accounts[step]) for step in self._steps]


def normalise_control(text: str) -> str:
    r"""`text` without control characters (Unicode category Cc) but `\n` and `\t`.

    Those that end a line or a page (`\r\n`, `\r`, `\v`, `\f`, NEL) become `\n`, so that no words are joined.
    """
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))


def _cleaned(text: str, steps: list[tuple[_Clean, Account]]) -> str:
    for clean, account in steps:
        if not text.strip():
            break
        after = clean(text, account)
        removed = not after.strip()
        account["documents"] += 1
        account["removed"] += removed
        account["changed"] += after != text and not removed
        account["characters"] += len(text)
        account["characters_removed"] += len(text) - (0 if removed else len(after))
        text = after
    return text


def _alone(clean: Callable[[str], str]) -> Callable[[], _Clean]:
    """A step that counts nothing of its own."""
    return lambda: lambda text, _: clean(text)


def _contacts() -> _Clean:
    def clean(text: str, account: Account) -> str:
        masked = mask_contacts(text)
        account["emails_masked"] += masked.emails
        account["phones_masked"] += masked.phones
        return masked.text

    return clean


def _near_duplicates() -> _Clean:
    earlier = NearDuplicates()
    return lambda text, _: "" if earlier.repeats(text) else text


_STEPS: Final[dict[CleaningStep, Callable[[], _Clean]]] = {
    "html": _alone(strip_markup),
    "control": _alone(normalise_control),
    "contacts": _contacts,
    "near-duplicates": _near_duplicates,
}
