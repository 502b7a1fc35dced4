"""HTML stripped from text, and nothing else: what only looks like a tag stays.

Documents of a crawl hold markup; documents about programs hold `a < b`, `List<String>` and `&x`. So a `<` counts as
markup where a whole tag of a known HTML element follows it and the document bears it out, and a `&` where a whole
named or numbered character follows it. Everything else is escaped before the standard library's parser sees it, and
comes out as it was.
"""

import re
from html.entities import html5
from html.parser import HTMLParser
from typing import Final


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


_DROPPED: Final = _words("iframe noframes script style")  # with all that they hold
# These mean something bare and unclosed; `<input>` and `<source>` do not, and are names in programs.
_UNCLOSED: Final = _words("body br colgroup dd dt head hr html li optgroup option p tbody td tfoot th thead tr wbr")
_BLOCK: Final = _words(
    """address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption
    figure footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li link main menu meta nav
    noscript ol optgroup option p pre search section select summary table tbody textarea tfoot thead title tr ul"""
)
_INLINE: Final = _words(
    """a abbr acronym applet area audio b base bdi bdo big button canvas cite code col colgroup data datalist del dfn em
    embed font i img input ins kbd label map mark meter nobr object output param picture progress q rp rt ruby s samp
    slot small source span strike strong sub sup svg td template th time track tt u var video wbr"""
)
_NAMES: Final = _BLOCK | _INLINE | _DROPPED
_BARE_ATTRIBUTES: Final = _words(  # HTML's boolean attributes: the ones written without a value
    """allowfullscreen async autofocus autoplay checked compact controls default defer disabled formnovalidate hidden
    inert ismap itemscope loop multiple muted nomodule noshade novalidate nowrap open playsinline readonly required
    reversed selected"""
)
_VALUE: Final = r"""\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'=<>`]+)"""
_ATTRIBUTE: Final = re.compile(rf"\s+([a-z_:@][\w:.@-]*)({_VALUE})?", re.IGNORECASE)
_ANGLE: Final = re.compile(
    r"<!--|<!doctype\s[^<>]*>|<\?xml\s[^<>]*>|"
    rf"<(?P<end>/?)(?P<name>[a-z][a-z0-9]*)(?P<attributes>(?:\s+[a-z_:@][\w:.@-]*(?:{_VALUE})?)*)\s*/?>|<",
    re.IGNORECASE,
)
_END_TAG: Final = re.compile(r"</([a-z][a-z0-9]*)\s*>", re.IGNORECASE)
_AMPERSAND: Final = re.compile(r"&(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[a-zA-Z][a-zA-Z0-9]{1,31};)?")


def strip_markup(text: str) -> str:
    """`text` without HTML.

    Tags and comments go, and scripts, styles and frames with all that they hold; characters written as `&amp;` or
    `&#38;` are decoded once; block elements and `br` begin a new line, and cells of a table are set apart by a tab.
    Spaces and lines are otherwise kept, except those that stand between two blocks.

    A start tag counts as one if its element is HTML's, its attributes are well formed, and it needs no end tag, has an
    attribute with a value, or is closed further on. What is dropped with its content must be closed.
    """
    if "<" not in text and "&" not in text:
        return text
    stripper = _Stripper()
    stripper.feed(_Escaper(text).escaped())
    stripper.close()
    return "".join(stripper.parts)


class _Escaper:
    """Escapes every `<` and `&` of one document that is no markup."""

    def __init__(self, text: str) -> None:
        self._text = _AMPERSAND.sub(_escape_ampersand, text)
        self._last_comment_end = self._text.rfind("-->")
        self._last_end = {found[1].lower(): found.start() for found in _END_TAG.finditer(self._text)}

    def escaped(self) -> str:
        return _ANGLE.sub(lambda found: found[0] if self._is_markup(found) else f"&lt;{found[0][1:]}", self._text)

    def _is_markup(self, found: re.Match[str]) -> bool:
        if found["name"] is None:
            return self._last_comment_end > found.start() if found[0] == "<!--" else found[0] != "<"
        name = found["name"].lower()
        return name in _NAMES and (bool(found["end"]) or self._is_start(name, found))

    def _is_start(self, name: str, found: re.Match[str]) -> bool:
        attributes = _ATTRIBUTE.findall(found["attributes"])
        if not all(value or attribute.lower() in _BARE_ATTRIBUTES for attribute, value in attributes):
            return False
        closed = self._last_end.get(name, -1) > found.start()
        if name in _DROPPED:
            return closed
        return closed or name in _UNCLOSED or any(value for _, value in attributes)


def _escape_ampersand(found: re.Match[str]) -> str:
    name = found[1] or ""
    return found[0] if name.startswith("#") or name in html5 else f"&amp;{name}"


class _Stripper(HTMLParser):
    """Gathers the text between tags in `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._new_line = False  # due before the next text
        self._dropping = False
        self._preformatted = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._dropping = True
        elif tag == "br":
            self.parts.append("\n")
        elif tag in _BLOCK:
            self._new_line = True
        elif tag in {"td", "th"} and self.parts and not (self._new_line or self.parts[-1][-1].isspace()):
            self.parts.append("\t")
        self._preformatted = self._preformatted or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROPPED:
            self._dropping = False
        elif tag in _BLOCK and tag != "br":
            self._new_line = True
        self._preformatted = self._preformatted and tag != "pre"

    def handle_decl(self, decl: str) -> None:
        self._new_line = True

    def handle_pi(self, data: str) -> None:
        self._new_line = True

    def handle_data(self, data: str) -> None:
        if self._dropping or (self._new_line and not self._preformatted and data.isspace()):
            return
        if self._new_line and self.parts and not (data.startswith("\n") or self.parts[-1].endswith("\n")):
            self.parts.append("\n")
        self._new_line = False
        self.parts.append(data)
