"""Documents out of tables: .parquet files, and dataset folders as Hugging Face's `datasets` saves them.

Read through pyarrow alone, a few rows at a time, and of the wanted columns only. A dataset folder holds `state.json`,
which names its files (Arrow IPC streams) in order; a folder of splits holds `dataset_dict.json` and a folder for each.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from efftrain.workload.text.config import DataError, Document
from efftrain.workload.text.reading.readers import Columns, as_label, as_text, listed, one_line, reading

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 64  # held as Python strings at a time: a row may be a book
_BUFFER_BYTES: Final = 1 << 20
_SPLITS: Final = "dataset_dict.json"
_STATE: Final = "state.json"


def read_parquet(path: Path, wanted: Columns) -> Iterator[Document]:
    """The rows of a .parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without pre_buffer, pages are read when they are due; with it, whole row groups.
    with _table(path), pa.OSFile(str(path)) as opened:
        table = pq.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        names = _check_columns(path, table.schema_arrow, wanted)
        yield from _documents(path, table.iter_batches(batch_size=_ROWS, columns=names), wanted)


def read_arrow(path: Path, wanted: Columns) -> Iterator[Document]:
    """The rows of an Arrow IPC stream."""
    import pyarrow as pa

    with _table(path), pa.memory_map(str(path)) as opened:
        schema = pa.ipc.read_schema(opened)
        fields = [schema.get_field_index(name) for name in _check_columns(path, schema, wanted)]
        opened.seek(0)
        stream = pa.ipc.open_stream(opened, options=pa.ipc.IpcReadOptions(included_fields=fields))
        yield from _documents(path, stream, wanted)


def check_parquet(path: Path, wanted: Columns) -> bool:
    """Look at the columns and the first row of a .parquet; False where there is none."""
    return next(read_parquet(path, wanted), None) is not None


def check_arrow(path: Path, wanted: Columns) -> bool:
    """Look at the columns and the first row of an Arrow stream; False where there is none."""
    return next(read_arrow(path, wanted), None) is not None


def is_dataset(folder: Path) -> bool:
    """Whether `folder` is what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def dataset_files(folder: Path) -> list[Path]:
    """The files of a dataset folder in order; of several splits, those of `train`.

    Raises:
        DataError: no such split, or a description that is damaged or names files that are not there.
    """
    if (folder / _SPLITS).is_file():
        splits = _described(folder / _SPLITS, "splits")
        if "train" not in splits:
            raise DataError(f"{folder}: has no split `train`; it has: {listed(splits)}; name one of its folders")
        folder /= "train"
    shards = _described(folder / _STATE, "_data_files")
    if not all(isinstance(shard, dict) and isinstance(shard.get("filename"), str) for shard in shards):
        raise DataError(f"{folder / _STATE}: expected a `filename` in each of `_data_files`")
    files = [folder / shard["filename"] for shard in shards]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file, but {_STATE} names it; save the dataset again")
    return files


def _described(path: Path, field: str) -> list[Any]:
    with reading(path):
        content = path.read_bytes()
    try:
        described = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {one_line(error)}") from None
    found = described.get(field) if isinstance(described, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path}: expected an object with a list in `{field}`, as `save_to_disk` writes it")
    return found


@contextmanager
def _table(path: Path) -> Iterator[None]:
    """Whatever pyarrow refuses becomes a DataError that names the path."""
    import pyarrow as pa

    try:
        with reading(path):
            yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a {path.suffix} that can be read: {one_line(error)}") from None


def _check_columns(path: Path, schema: "pa.Schema", wanted: Columns) -> list[str]:
    """The names of the wanted columns, each of which is there once and of a type that serves."""
    from pyarrow import types

    for column in filter(None, wanted):
        if schema.names.count(column) != 1:
            found = "more than one column" if column in schema.names else "no column"
            raise DataError(f"{path}: {found} `{column}`; its columns are: {listed(schema.names)}")
        kind = schema.field(column).type
        values = kind.value_type if types.is_dictionary(kind) else kind
        allowed = str(values) in {"string", "large_string", "string_view", "null"}
        if not (allowed or (column == wanted.label and types.is_integer(values))):
            expected = "strings" if column == wanted.text else "strings or integers"
            raise DataError(f"{path}: expected {expected} in column `{column}`, not {one_line(kind)}")
    return list(filter(None, wanted))


def _documents(path: Path, batches: "Iterator[pa.RecordBatch]", wanted: Columns) -> Iterator[Document]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            part = batch.slice(start, _ROWS)
            texts, labels = _values(path, part, wanted.text, row), [None] * part.num_rows
            if wanted.label is not None:
                labels = _values(path, part, wanted.label, row)
            for text, label in zip(texts, labels, strict=True):
                row += 1
                where = f"{path}, row {row}"
                yield Document(
                    as_text(text, where, wanted.text),
                    None if wanted.label is None else as_label(label, where, wanted.label),
                )


def _values(path: Path, batch: "pa.RecordBatch", column: str, row: int) -> list[Any]:
    try:
        return batch.column(column).to_pylist()
    except UnicodeDecodeError as error:
        rows = f"rows {row + 1} to {row + batch.num_rows}"
        raise DataError(f"{path}, {rows}: not UTF-8 in `{column}` ({error.reason}); write it as UTF-8") from None
