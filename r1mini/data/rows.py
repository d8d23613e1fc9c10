"""Rows of a data file in TRL's columns, checked and decontaminated. Counts every removed row."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from r1mini.data.decontamination import is_contaminated, read_eval_ngrams
from r1mini.data.files import RowErrors, read_rows
from r1mini.data.formats import INVALID_UNICODE, READ_ERRORS, Format, Row, detect

T = TypeVar("T")
DETECTION_ROWS = 100  # the first rows of a file, by which its format is detected


class Example(NamedTuple):
    place: str  # file and line
    columns: Row  # as in the file
    fields: dict  # in TRL's columns
    format: Format


def read_examples(
    path: Path, prompt_key: str, answer_key: str, errors: RowErrors
) -> Iterator[Example]:
    """ValueError for unknown columns. Rows that do not fit the format are reported to `errors`."""
    rows = read_rows(path, errors)
    head = list(islice(rows, DETECTION_ROWS))
    head_columns = [row for _, row in head if isinstance(row, dict)]
    row_format = None
    for place, row in chain(head, rows):
        if not isinstance(row, dict):
            errors.report(f"{place}: a row must be an object with columns, not {row!r:.60}")
            continue
        try:
            row_format = row_format or detect(head_columns, prompt_key, answer_key)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        try:
            fields = row_format.read(row)
        except ValueError as error:
            errors.report(f"{place}: {error}")
        except READ_ERRORS as error:
            errors.report(f"{place}: not a {row_format.name} row ({error!r:.80})")
        else:
            yield Example(place, row, fields, row_format)


def convert_examples(
    path: Path,
    examples: Iterable[Example],
    convert: Callable[[Example], T],
    errors: RowErrors,
    decontaminate: Sequence[str],
) -> dict[str, T]:
    """{file and line: `convert(example)`} of each example. Prints how many were kept.

    Examples that share an n-gram with the files of `decontaminate` are removed; those for which
    `convert` raises ValueError are reported to `errors`.
    """
    eval_ngrams = read_eval_ngrams(decontaminate)
    converted, contaminated, name = {}, 0, ""
    for example in examples:
        name = example.format.name
        if eval_ngrams and is_contaminated(example.fields, eval_ngrams):
            contaminated += 1
            continue
        try:
            converted[example.place] = convert(example)
        except ValueError as error:
            errors.report(f"{example.place}: {error}")
    removed = errors.summary()
    if contaminated:
        removed = f"; {contaminated} removed by --decontaminate (ten consecutive words){removed}"
    if not converted:
        raise ValueError(f"{path}: no rows{removed}")
    print(f"{path}: {name}, {len(converted)} rows{removed}", flush=True)
    return converted


def check_unicode(value: Any) -> None:
    """ValueError for text in a JSON value that UTF-8 cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) :][:60]
        raise ValueError(f"{INVALID_UNICODE} in {text!r}") from None
