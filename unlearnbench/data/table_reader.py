"""The one reader of the user's tables: csv, tsv, jsonl, json, parquet, and text with one entry a line."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.config.paths import read_text
from unlearnbench.data.phrases import normal_text
from unlearnbench.data.remarks import few, remark

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*DELIMITERS, *JSON_SUFFIXES, ".parquet")
OTHER_FORMATS = (".yaml", ".yml", ".toml", ".xml", ".html", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".gz", ".zip", ".zst")
SIMILAR = 0.7  # the likeness from which a column's name counts as a typo


class Row(NamedTuple):
    """One row: its place for error messages, and its cells by column, texts normalised and without white space around them."""

    where: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns that are read from a table; names match in any case.

    Attributes:
        required: columns that must exist; a text file holds the first of them.
        optional: columns that may exist.
        aliases: other names of a column, in order of precedence.
        ignored: columns that are known and not read; None: no other column is mentioned.
        text: columns whose cells must be text.
        others: whether a row holds its other cells too, by the folded names of their columns; of parquet, those of one value.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored: frozenset[str] | None = None
    text: tuple[str, ...] = ()
    others: bool = False


def read_table(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a table in the format of its suffix, in any case; any other suffix is text with one entry a line.

    Empty rows are left out and counted; columns that are not read are named, both in a warning.

    Args:
        path: the file.
        columns: the columns to read.

    Raises:
        UserError: a column is missing, stands twice or has a name like one that is read; a row is malformed; the file is
            not of its format. The message is one line with the place.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise UserError(f"{path}: {suffix} is not read as a list; save it as .csv, .tsv, .jsonl, .json, .parquet or .txt")
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    reader = _csv_rows if suffix in DELIMITERS else _json_rows if suffix in JSON_SUFFIXES else _lines
    empty = 0
    for row in reader(path, columns):
        if row is None:
            empty += 1
        else:
            yield row
    if empty:
        remark(path, f"{empty} empty {'row is' if empty == 1 else 'rows are'} left out")


def read_lines(path: Path, column: str) -> Iterator[Row]:
    """The lines of a text file that are not empty, each as the cell of a column, whatever the file's suffix."""
    yield from (row for row in _lines(path, Columns((column,))) if row is not None)


def _lines(path: Path, columns: Columns) -> Iterator[Row | None]:
    lines = [_clean(line) for line in read_text(path).rstrip().splitlines()]
    if lines and columns.required[0] in (header := [_fold(name) for name in re.split(r"[,;\t]", lines[0])]) and len(header) > 1:
        raise UserError(f"{path}, line 1: the header of a table; rename the file to .csv or .tsv")
    for number, line in enumerate(lines, 1):
        yield Row(f"{path}, line {number}", {columns.required[0]: line}) if line else None


def _csv_rows(path: Path, columns: Columns) -> Iterator[Row | None]:
    delimiter = DELIMITERS[path.suffix.lower()]
    lines = io.StringIO(read_text(path).rstrip() + "\n", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    records = _csv_records(path, reader)
    start, header = next(((number, cells) for number, cells in records if any(cells)), (1, []))
    names = [_fold(name) for name in header]
    places = _places(path, f"{path}, line {start}", names, columns)
    for number, cells in records:
        where = f"{path}, line {number}"
        if not any(map(str.strip, cells)):
            yield None
        elif any(cells[len(names) :]):
            raise UserError(f"{where}: more cells than columns; quote a text with {'tabs' if delimiter != ',' else 'commas'}")
        else:
            yield Row(where, {c: _clean(cells[i]) if i < len(cells) else "" for c, i in places.items()})


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The records of a csv, each with the number of its last line."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
            if "end of data" in reason or "field limit" in reason:
                reason = "a quote is opened and never closed; close it, or double a quote that belongs to the text"
            elif "expected after" in reason:
                reason = "text after a closing quote; close each quoted text, and double a quote that belongs to it"
            raise UserError(f"{path}, line {start}: {reason}") from error
        yield reader.line_num, cells


def _json_rows(path: Path, columns: Columns) -> Iterator[Row | None]:
    rows = _json_objects(path, columns)
    names = list(dict.fromkeys(_fold(name) for _, row in rows for name in row))
    for where, row in rows:
        if len({_fold(name) for name in row}) < len(row):
            raise UserError(f"{where}: a column stands twice: {', '.join(map(_printable, row))}")
    optional = replace(columns, required=(), optional=(*columns.required, *columns.optional))
    places = _places(path, str(path), names, optional)
    for where, row in rows:
        folded = {_fold(name): value for name, value in row.items()}
        if all(_clean(value) == "" for value in folded.values()):
            yield None
            continue
        cells = {column: _clean(folded.get(names[i], "")) for column, i in places.items()}
        missing = [c for c in columns.required if c not in cells or names[places[c]] not in folded]
        missing += [c for c in columns.text if c in cells and not isinstance(cells[c], str)]
        if missing:
            raise UserError(f"{where}: no text {missing[0]!r}")
        _refuse_surrogates(where, cells)
        yield Row(where, cells)


def _json_objects(path: Path, columns: Columns) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a json or jsonl file, each with its place."""
    text = read_text(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() == ".json" and not (len(lines) > 1 and _is_object(lines[0][1])):
        return [(f"{path}, row {i}", row) for i, row in enumerate(_objects(path, _parsed(str(path), text), columns), 1)]
    rows = []
    for number, line in lines:
        row = _parsed(f"{path}, line {number}", line)
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not an object")
        rows.append((f"{path}, line {number}", row))
    return rows


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if ", line" in where else f"{where}, line {error.lineno}"
        raise UserError(f"{place}: no JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise UserError(f"{where}: no JSON that can be read ({error})") from error


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(path: Path, data: Any, columns: Columns) -> list[dict[str, Any]]:
    """The rows of a json file: a list of objects or of texts, or an object of columns, each a list."""
    if isinstance(data, dict) and data and all(isinstance(values, list) for values in data.values()):
        [first, *others] = data.values()
        if not others and all(isinstance(row, dict) for row in first):
            data = first
        elif any(len(values) != len(first) for values in others):
            raise UserError(f"{path}: columns of different lengths")
        else:
            data = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if isinstance(data, list):
        data = [{columns.required[0]: row} if isinstance(row, str) else row for row in data]
        if all(isinstance(row, dict) for row in data):
            return data
    raise UserError(f'{path}: a list of objects is read, such as [{{"{columns.required[0]}": "..."}}]')


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path.name}: reading parquet needs pyarrow; pip install 'unlearnbench[datasets]'")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
    from pyarrow.types import is_binary, is_nested

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            folded = [_fold(name) for name in names]
            places = _places(path, str(path), folded, columns)
            nested = {i for i, kind in enumerate(file.schema_arrow.types) if is_nested(kind) or is_binary(kind)}
            places = {name: i for name, i in places.items() if i not in nested or name in (*columns.required, *columns.optional)}
            number = 0
            for batch in file.iter_batches(256, columns=list(dict.fromkeys(names[i] for i in places.values()))):
                for row in batch.to_pylist():
                    number += 1
                    cells = {column: _clean(row[names[i]]) for column, i in places.items()}
                    where = f"{path}, row {number}"
                    if missing := [c for c in columns.text if c in cells and not isinstance(cells[c], str)]:
                        raise UserError(f"{where}: no text {missing[0]!r}")
                    yield Row(where, cells)
    except (ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({first_line(error)})") from error


def _clean(value: Any) -> Any:
    """A text normalised and without white space around it; "" for null and for a number that is none; all else as it is."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return normal_text(value).strip() if isinstance(value, str) else value


def _fold(name: str) -> str:
    """The name of a column as it is compared: normalised, without white space and marks around it, in lower case."""
    return normal_text(name).strip(" \t\r\n\ufeff\u200b").casefold()


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _refuse_surrogates(where: str, cells: Mapping[str, Any]) -> None:
    for column, value in cells.items():
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise UserError(f"{where}: {column} holds half a surrogate pair, which is no character")


def _places(path: Path, where: str, names: Sequence[str], columns: Columns) -> dict[str, int]:
    """The position of each column that is read, among the folded names of a table's columns."""
    for name in names:
        if name and names.count(name) > 1 and (columns.ignored is not None or name in map(_fold, columns.required)):
            raise UserError(f"{where}: column {name!r} stands twice; remove one")
    places: dict[str, int] = {}
    for column in (*columns.required, *columns.optional):
        candidates = [_fold(column), *columns.aliases.get(column, ())]
        position = next((names.index(name) for name in candidates if name in names), None)
        if position is not None:
            places[column] = position
        elif column in columns.required:
            raise UserError(_missing_column(where, column, names))
    unread = {i: name for i, name in enumerate(names) if i not in places.values()}
    _name_unread(path, where, [*unread.values()], places, columns)
    if columns.others:
        places |= {name: i for i, name in unread.items() if name and name not in places}
    return places


def _missing_column(where: str, column: str, names: Sequence[str]) -> str:
    sign = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if sign is not None:
        return f"{where}: no column {column!r}; the columns are separated by {sign!r}, separate them by commas"
    similar = _similar(column, names)
    repair = f"did you mean {similar!r}? " if similar else ""
    return f"{where}: no column {column!r}; {repair}the columns are {', '.join(map(_printable, names)) or 'none'}"


def _name_unread(path: Path, where: str, unread: Sequence[str], places: Mapping[str, int], columns: Columns) -> None:
    """Refuse unread columns that are meant to be read, and warn of the others."""
    if columns.ignored is None:
        return
    readable = (*columns.required, *columns.optional)
    aliases = [alias for names in columns.aliases.values() for alias in names]
    others = [name for name in unread if name and name not in columns.ignored]
    for name in others:
        if name in aliases:
            continue
        if similar := _similar(name, [*readable, *aliases]):
            known = f"known: {', '.join(readable)}"
            raise UserError(f"{where}: column {name!r}; did you mean {similar!r}? {known}; rename or remove it")
        if "seed" in name and "seed" in readable and "seed" not in places:
            raise UserError(f"{where}: column {name!r} looks like a seed and is not read; rename it to seed, or remove it")
    if others:
        quoted = few([repr(name) for name in others])
        remark(path, f"{quoted} {'is' if len(others) == 1 else 'are'} not read; columns that are: {', '.join(readable)}")


def _similar(name: str, names: Iterable[str]) -> str | None:
    """The most similar of the names, if it may be meant; a name with another as one of its words, as prompt_id, is not."""
    words = re.split(r"[\W_]+", name)
    others = [other for other in names if other not in words and name not in re.split(r"[\W_]+", other)]
    return next(iter(difflib.get_close_matches(name, others, n=1, cutoff=SIMILAR)), None)
