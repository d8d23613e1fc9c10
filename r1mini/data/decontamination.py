"""Decontamination: finds training rows that share ten consecutive words with an evaluation set."""

import re
from collections.abc import Sequence, Set
from pathlib import Path

from r1mini.data.files import read_rows
from r1mini.data.formats import PROMPTS, READ_ERRORS, Row, detect, to_messages

SIZE = 10  # consecutive words


def ngrams(text: str, size: int = SIZE) -> set[str]:
    """Every `size` consecutive words, lower case without punctuation; all words of a shorter text.

    A Chinese character is a word.

    >>> sorted(ngrams("What is 2+2?", 3))
    ['is 2 2', 'what is 2']
    """
    words = re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+", text.lower())
    starts = range(max(1, len(words) - size + 1))
    return {" ".join(words[i : i + size]) for i in starts} - {""}


def row_ngrams(fields: Row, role: str) -> set[str]:
    """The n-grams of a role's messages; for Countdown its numbers, as the words never differ."""
    if "numbers" in fields:
        return {f"{sorted(fields['numbers'])} {fields['target']}"}
    messages = to_messages(fields)
    return set().union(*(ngrams(m["content"]) for m in messages if m["role"] == role))


def is_contaminated(fields: Row, eval_ngrams: Set[str]) -> bool:
    """Does a row share an n-gram with an evaluation set?

    A text shorter than an n-gram counts only in the question: many answers are just "Yes".
    """
    if row_ngrams(fields, "user") & eval_ngrams:
        return True
    shared = row_ngrams(fields, "assistant") & eval_ngrams
    return any(ngram.count(" ") == SIZE - 1 for ngram in shared)


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
        return detect([row]).read(row)
    except READ_ERRORS:
        for name in PROMPTS:
            if isinstance(row, dict) and isinstance(row.get(name), str):
                return {"prompt": row[name]}
    raise ValueError(f"--decontaminate {place}: no question in columns {', '.join(PROMPTS)}")
