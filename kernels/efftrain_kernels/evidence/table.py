"""Plain tables: columns as wide as their widest cell, numbers to the right, nothing but spaces between them."""

from collections.abc import Sequence

GAP = "  "


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their headers, each as long as `headers`; columns in which a number stands are set to the right."""
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [any(cell[:1].isdigit() for cell in column[1:]) for column in columns[1:]]
    lines = [_line(line, widths, [False, *right]) for line in (headers, *rows)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def number(value: float | None, form: str = ".3g") -> str:
    """A number for a cell; `missing` where there is none, never 0."""
    return "missing" if value is None else format(value, form)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return GAP.join(parts).rstrip()
