"""E-mail addresses and telephone numbers masked, and left alone what only looks like one.

A mask in the wrong place spoils text, so forms that numbers of other kinds share are left: a telephone number counts
when it is written internationally (`+49 30 1234567`, `0049 30 1234567`), nationally with a trunk 0 and in groups
(`030 1234567`, `(020) 7946 0958`), or as in North America (`212-555-0123`, `(212) 555-0123`). A number of one block
(`0301234567`), without area code (`555-0123`), or in a national form without a 0 (`912 345 678`) stays.
"""

import re
from typing import Final, NamedTuple

EMAIL_MASK: Final = "<EMAIL>"
PHONE_MASK: Final = "<PHONE>"

_FILES: Final = "png|jpe?g|gif|svg|webp|ico|css|js|json|html?|py|txt|zip"  # `icon@2x.png` is a file
_EMAIL: Final = re.compile(
    r"(?<![\w.+%@-])[^\W_][\w.+%-]*@"
    rf"(?:[^\W_](?:[\w-]*[^\W_])?\.)+(?!(?:{_FILES})\b)[^\W\d_]{{2,}}"
    r"(?![\w@-]|\.\w|:[\w~/])"  # git@host.org:path is an address of another kind
)

_GAP: Final = r"[ .\-/\u00a0\u2010\u2011]"
_PHONE: Final = re.compile(
    r"(?<![\w.,+/=#-])(?<!\d:)(?<![€$£¥])(?<![€$£¥]\s)(?:"
    rf"(?P<international>(?:\+|00(?=[1-9]\d{{0,2}}{_GAP}?[1-9(]))[1-9]\d{{0,3}}{_GAP}?(?:\(\d{{1,5}}\){_GAP}?)?\d{{1,14}}(?:{_GAP}\d{{1,8}}){{0,6}})"
    r"|(?P<french>0[1-9](?:[ .-]\d\d){4})"
    rf"|(?P<trunk>(?:\(0[1-9]\d{{0,4}}\)\s?|0[1-9]\d{{0,4}}(?:{_GAP}|\s[/-]\s))[1-9]\d{{1,7}}(?:{_GAP}\d{{2,6}}){{0,4}})"
    r"|(?P<american>(?:1[ .-])?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[.-])\d{3}[.-]\d{4}(?:\s?(?:x|ext\.?)\s?\d{1,5})?)"
    rf")(?!\w|{_GAP}\d|[,:]\d|\s?[€$£¥%])"
)
_OTHER: Final = re.compile(  # a coordinate, a date, a postal code with its extension, a social security number
    r"\+\d+\.\d+|\d\d([./-])\d\d\1\d{4}\b.*|\d{5}-\d{4}|\d{3}-\d\d-\d{4}"
)
_DIGITS: Final = {"international": (8, 17), "french": (10, 10), "trunk": (9, 12), "american": (10, 16)}
"""How many digits make a number: E.164 allows 15, and `00` may stand before them; an extension may follow ten."""


class Masked(NamedTuple):
    """Text with its contacts masked, and how many there were."""

    text: str
    emails: int
    phones: int


def mask_contacts(text: str) -> Masked:
    """`text` with `<EMAIL>` for each e-mail address and `<PHONE>` for each telephone number."""
    emails = phones = 0
    if "@" in text:
        text, emails = _EMAIL.subn(EMAIL_MASK, text)

    def mask(found: re.Match[str]) -> str:
        nonlocal phones
        if not _is_phone(found):
            return found[0]
        phones += 1
        return PHONE_MASK

    return Masked(_PHONE.sub(mask, text), emails, phones)


def _is_phone(found: re.Match[str]) -> bool:
    number = found[0]
    at_least, at_most = _DIGITS[found.lastgroup or ""]
    if not at_least <= sum(map(str.isdigit, number)) <= at_most or _OTHER.fullmatch(number):
        return False
    return not (number.startswith("00") and number.isdigit())
