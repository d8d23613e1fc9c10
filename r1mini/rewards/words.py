"""Splits text into words, for the language-consistency and repetition rewards."""

import re
from collections.abc import Sequence

# Notation that traces share between languages.
NOTATION = ("return", "for", "in", "if", "range", "max", "min", "sum", "ln")
WORD = re.compile(
    r"""
    [\u4e00-\u9fff]{1,2}                                       # Han characters, two at a time
    | (?<![A-Za-z0-9_]) (?:[a-z]{2}|[A-Z]{4,}) (?![A-Za-z0-9_])
    | (?<![A-Za-z0-9_]) (?=[A-Za-z_]*[a-z]{3}|[A-Z][a-z]{2}) [A-Za-z_]+ (?![A-Za-z0-9_])
    | [^\W\d_\u0000-\u024f\u0370-\u03ff\u1e00-\u1eff\u4e00-\u9fff]{2,}  # not Latin, Greek or Han
    """,
    re.VERBOSE,
)
WORD_OR_SYMBOL = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w){1,16}|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text, without its notation.

    A word is one or two Han characters, a Latin word, or two or more letters of any other script
    except Greek. Formulas, variables and function names are notation: single letters; two letters
    with a capital; anything next to a digit; anything with a capital inside, unless it has three
    small letters in a row or is four or more capitals of at least three kinds (ABAB is a value).

    >>> words("try 2 H2O + NaCl, f(a) 对 then Fe 算了")
    ['try', '对', 'then', '算了']
    """
    return [word for word in WORD.findall(text) if word not in NOTATION and not is_value(word)]


def is_value(word: str) -> bool:
    return word.isascii() and word.isupper() and len(set(word)) < 3


def words_and_symbols(text: str) -> list[str]:
    """Words of at most 16 letters or digits (longer ones are cut), Han characters, symbols."""
    return WORD_OR_SYMBOL.findall(text.lower())


def repetition_rate(units: Sequence[str], n: int) -> float:
    """1 - distinct n-grams / n-grams; 0 if the text is shorter than n."""
    ngrams = list(zip(*(units[start:] for start in range(n))))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
