"""Where training text comes from: files on this machine, read as documents, and every way in which that can fail.

By default the text is the running Python's own standard library: a dozen million characters that every user already
has. Its tests are left out, and the files that record how this Python was built, which would make the text differ
between machines. Importing this loads the standard library alone, so that a command line can check `--data` before
anything heavy is loaded; pyarrow comes with the first table.
"""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from efftrain.workload.text.config import DataError, Document
from efftrain.workload.text.reading import readers, tables
from efftrain.workload.text.reading.readers import Columns, reading

__all__ = ["DataError", "Document", "check_source", "content_hash", "documents", "source_files", "source_name"]

_EXPECTED: Final = (
    "a .txt, a .jsonl, a .parquet, a folder of those, or a dataset folder as Hugging Face's `save_to_disk` writes it"
)
_CHUNK_BYTES: Final = 1 << 20
_NOT_LIBRARY: Final = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class _Format(NamedTuple):
    read: Callable[[Path, Columns], Iterator[Document]]
    check: Callable[[Path, Columns], bool]  # of the beginning; False where the file is empty


_FORMATS: Final[dict[str, _Format]] = {
    ".py": _Format(readers.read_source, readers.check_text),
    ".txt": _Format(readers.read_text, readers.check_text),
    ".jsonl": _Format(readers.read_json_lines, readers.check_json_lines),
    ".parquet": _Format(tables.read_parquet, tables.check_parquet),
    ".arrow": _Format(tables.read_arrow, tables.check_arrow),
}
_GIVEN: Final = (".txt", ".jsonl", ".parquet")  # what a user names; the rest is found


def source_name(source: Path | None) -> str:
    """What reports call this text: the file's or folder's name, or the standard library and its version."""
    return f"python-{platform.python_version()}-standard-library" if source is None else source.resolve().name


def source_files(source: Path | None) -> list[Path]:
    """The files of a source in the order in which they are read; None is the standard library.

    Raises:
        DataError: no such path, a type that is not read here, a folder without any such file, or a dataset folder
            without its files or without a split `train`.
    """
    if source is None:
        return _library_files()
    with reading(source):
        if source.is_dir():
            return tables.dataset_files(source) if tables.is_dataset(source) else _folder_files(source)
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; expected {_EXPECTED}")
    if source.suffix not in _GIVEN:
        raise DataError(f"{source}: expected {_EXPECTED}")
    return [source]


def check_source(source: Path, *, column: str = "text", label_column: str | None = None) -> None:
    """Look at the beginning of every file, so that a mistake is found before any work is done.

    Raises:
        DataError: missing, empty, unreadable, binary, or a first record without the columns.
    """
    files = source_files(source)
    filled = [_FORMATS[file.suffix].check(file, Columns(column, label_column)) for file in files]
    if not any(filled):
        raise DataError(f"{source}: is empty; training needs text")


def documents(files: list[Path], *, column: str = "text", label_column: str | None = None) -> Iterator[Document]:
    """The documents of `files`, in order, without empty ones.

    A .py is one document, left out if it is not UTF-8. A .txt is one document, or several where it has form feeds or
    `<|endoftext|>`, or is longer than `readers.LONGEST_DOCUMENT`. Each line of a .jsonl is one, and each row of a
    table. All are read in a stream.

    Args:
        files: what `source_files` found.
        column: the field or column that holds the text.
        label_column: the one that holds the label, a string or an integer; None: documents have none.

    Raises:
        DataError: a file that cannot be read, is binary, is not UTF-8, or a record without text or label.
    """
    wanted = Columns(column, label_column)
    for file in files:
        for document in _FORMATS[file.suffix].read(file, wanted):
            if document.text.strip():
                yield document


def content_hash(files: list[Path]) -> str:
    """SHA-256 of the files' types, sizes and bytes, in order; their names and places do not enter.

    Raises:
        DataError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with reading(file), file.open("rb") as opened:
            digest.update(f"{file.suffix} {os.fstat(opened.fileno()).st_size}\n".encode())
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _folder_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix in _GIVEN and path.is_file())
    if not found:
        raise DataError(f"{folder}: this folder holds no .txt, no .jsonl and no .parquet")
    return found


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        # site-packages stands inside the library and may be far larger than it: never walk into it.
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY and not name.startswith("config-")]
        sources = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        found += [Path(folder, name) for name in sources]
    if not found:
        raise DataError(f"{root}: this Python has no standard library in source; give --data {_EXPECTED}")
    return sorted(found)
