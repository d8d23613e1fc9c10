"""Rows of a data file in TRL's columns, checked and decontaminated. Counts every removed row.

Decontamination removes rows that share ten consecutive words with an evaluation set.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from r1mini.data.files import RowErrors, read_rows
from r1mini.data.formats import (
    CONTEXTS,
    CORRECT,
    GOLDS,
    PAIRS,
    PROMPTS,
    READ_ERRORS,
    Format,
    Row,
    add_context,
    common_columns,
    detect,
    to_messages,
)
from r1mini.sandbox.convert import Dropped, summary

T = TypeVar("T")
DETECTION_ROWS = 100  # the first rows of a file, by which its format is detected
NGRAM_SIZE = 10  # consecutive words


class Example(NamedTuple):
    place: str  # file and line
    columns: Row  # as in the file
    fields: dict  # in TRL's columns
    format: Format


def convert_rows(
    path: Path,
    convert: Callable[[Example], T],
    errors: RowErrors,
    prompt_key: str,
    answer_key: str,
    decontaminate: Sequence[str],
    pairs: bool = False,
) -> dict[str, T]:
    """{file and line: `convert(example)`} of each row. Prints how many were kept.

    Rows that share an n-gram with the files of `decontaminate` are removed; those that do not fit
    the format, or for which `convert` raises ValueError, are reported to `errors`, or counted there
    if it is `Dropped`. ValueError for unknown columns, without rows, and for preference pairs
    unless `pairs`, which asks for them.
    """
    eval_ngrams = read_eval_ngrams(decontaminate)
    rows = read_rows(path, errors)
    head = list(islice(rows, DETECTION_ROWS))
    head_columns = [row for _, row in head if isinstance(row, dict)]
    converted, contaminated, left_out, row_format = {}, 0, {}, None
    for place, row in chain(head, rows):
        if not isinstance(row, dict):
            errors.report(f"{place}: a row must be an object with columns, not {row!r:.60}")
            continue
        try:
            row_format = row_format or detect_kind(head_columns, prompt_key, answer_key, pairs)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        try:
            columns = common_columns(row)
            example = Example(place, columns, read_fields(row_format, columns), row_format)
            if eval_ngrams and is_contaminated(example.fields, eval_ngrams):
                contaminated += 1
                continue
            left_out |= unused_text(example)
            converted[place] = convert(example)
        except Dropped as reason:
            errors.counts[f"row: {reason}"] += 1
        except ValueError as error:
            errors.report(f"{place}: {error}")
    if errors.counts:
        print(f"{path}: {summary(errors.counts)}", flush=True)
    removed = errors.summary()
    if contaminated:
        removed = f"; {contaminated} removed by --decontaminate (ten consecutive words){removed}"
    if not converted:
        raise ValueError(f"{path}: no rows{removed}")
    print(f"{path}: {row_format.name}, {len(converted)} rows{removed}", flush=True)
    if left_out:
        print(f"{path}: text in other columns is left out: {', '.join(left_out)}", flush=True)
    if errors.messages:
        print(f"{path}: {errors.kinds()}", flush=True)
    return converted


def detect_kind(head: Sequence[Row], prompt_key: str, answer_key: str, pairs: bool) -> Format:
    """The format of a file of pairs, or of any other kind. ValueError if it is not of this kind."""
    row_format = detect(head, prompt_key, answer_key)
    is_pairs = row_format.columns == PAIRS.columns
    if is_pairs and not pairs:
        raise ValueError(
            "preference pairs (columns 'chosen' and 'rejected'): train a reward model on them with "
            "`python -m r1mini.reward_model`; to train on other columns, remove these two"
        )
    if pairs and not is_pairs:
        raise ValueError(
            f"no preference pairs: columns 'chosen' and 'rejected' are missing, found "
            f"{', '.join(ChainMap(*map(common_columns, head)))}"
        )
    return row_format


def read_fields(row_format: Format, row: Row) -> dict:
    """The row in TRL's columns, with its context. ValueError if it does not fit the format."""
    try:
        fields = row_format.read(row)
    except ValueError:
        raise
    except READ_ERRORS as error:
        raise ValueError(f"not a {row_format.name} row ({error!r:.80})") from None
    if fields.get("prompt") and "chosen" not in fields:
        fields["prompt"] = add_context(row, fields["prompt"])
    return fields


def unused_text(example: Example) -> dict[str, None]:
    """The names of columns of text that are in neither the prompt nor a reply, nor a gold."""
    shown = "\n".join(message["content"] for message in to_messages(example.fields))
    return {
        name: None
        for name, value in example.columns.items()
        if (isinstance(value, str) or name in (*CONTEXTS, "history", "tools") and value)
        and not example.format.tests
        and "rewards" not in example.columns  # a row of --reject: its other columns are its source
        and name not in (*GOLDS, "solution", "tests", *CORRECT)
        and name == name.lower()
        and str(value).strip() not in shown
        and not (name in example.fields and "chosen" in example.fields)  # a pair's, in other parts
    }


# -- decontamination -------------------------------------------------------------------------------


def ngrams(text: str, size: int = NGRAM_SIZE) -> set[str]:
    """Every `size` consecutive words, lower case without punctuation; all words of a shorter text.

    A Chinese character is a word.

    >>> sorted(ngrams("What is 2+2?", 3))
    ['is 2 2', 'what is 2']
    """
    words = re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+", text.lower())
    starts = range(max(1, len(words) - size + 1))
    return {" ".join(words[i : i + size]) for i in starts} - {""}


def row_ngrams(fields: Row, role: str) -> set[str]:
    """The n-grams of a role's messages; for Countdown its numbers, as the words never differ. Many
    questions have the same choices: an n-gram begins before them."""
    if "numbers" in fields:
        return {f"{sorted(fields['numbers'])} {fields['target']}"}
    texts = [
        f"{message.get('reasoning_content', '')}\n{message['content']}"
        for message in to_messages(fields)
        if message["role"] == role
    ]
    choices = ["A) " + text.partition("\n\nA) ")[2] for text in texts]
    return set().union(*map(ngrams, texts)).difference(*map(ngrams, choices))


def is_contaminated(fields: Row, eval_ngrams: Set[str]) -> bool:
    """Does a row share an n-gram with an evaluation set?

    A text shorter than an n-gram counts only in the question: many answers are just "Yes".
    """
    if row_ngrams(fields, "user") & eval_ngrams:
        return True
    shared = row_ngrams(fields, "assistant") & eval_ngrams
    return any(ngram.count(" ") == NGRAM_SIZE - 1 for ngram in shared)


def read_eval_ngrams(files: Sequence[str]) -> set[str]:
    """The n-grams of the questions of evaluation files, whose format may be unknown."""
    eval_ngrams = set()
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"--decontaminate {file}: no such file")
        for place, row in read_rows(Path(file)):
            eval_ngrams |= row_ngrams(read_question(place, row), "user")
    return eval_ngrams


def read_question(place: str, row: Row) -> Row:
    try:
        return detect([row]).read(common_columns(row))
    except READ_ERRORS:
        for name in PROMPTS:
            if isinstance(row, dict) and isinstance(row.get(name), str):
                return {"prompt": row[name]}
    raise ValueError(f"--decontaminate {place}: no question in columns {', '.join(PROMPTS)}")
