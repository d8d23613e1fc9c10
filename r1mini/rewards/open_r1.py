"""More rewards under the names of open-r1: tags, steps, repetition, length, multiple choice.

They have open-r1's parameters and resist some exploits that open-r1's do not; each docstring says
which. Set parameters with `functools.partial(rewards.cosine, max_len=500)`.
"""

import math
import re

from r1mini.records import Problem
from r1mini.rewards.completion import (
    TAG,
    TAGS,
    Completion,
    extract_answer,
    extract_thinking,
    gold_answer,
    repetition_rate,
    words_and_symbols,
)
from r1mini.rewards.rules import is_correct
from r1mini.rewards.trl_adapter import Rows, per_completion, per_group

CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\(?([A-Ja-j])\)?\.?\}?")
MARKER = r"Step \d+:|\d+[.)]|[-*]|First,|Second,|Next,|Finally,|首先|其次|然后|最后"
STEP = re.compile(rf"^[ \t]*(?:{MARKER})[ \t]*(?=.*\w)(\S.*)", re.MULTILINE)


@per_completion
def multiple_choice(problem: Problem, completion: Completion) -> float | None:
    r"""1 if the answer is the label of the right choice and nothing else, else 0.

    `B`, `(b)` and `\text{B}.` are labels. None unless the gold answer is a capital letter, A to J.
    """
    gold = CHOICE.fullmatch(gold_answer(problem) or "")
    if not gold or not gold[1].isupper():
        return None
    answer = CHOICE.fullmatch(extract_answer(problem, completion.text) or "")
    return float(answer is not None and answer[1].upper() == gold[1])


@per_completion
def tag_count(problem: Problem, completion: Completion) -> float:
    """1/4 for each of the four tags that occurs exactly once; 0 if these are out of order."""
    tags = TAG.findall(completion.text)
    if len(tags) >= 100:
        return 0.0
    single = [tag for tag in tags if tags.count(tag) == 1]
    return len(single) / 4 if single == sorted(single, key=TAGS.index) else 0.0


@per_completion
def reasoning_steps(problem: Problem, completion: Completion) -> float:
    """min(1, steps/3): the lines of the thinking that start like a step and say something new.

    open-r1 counts bare markers too. This reward sees only the form: give it a small weight.
    """
    steps = STEP.findall(extract_thinking(completion.text))
    return min(1.0, len(set(map(str.strip, steps))) / 3)


@per_completion
def repetition_penalty(
    problem: Problem, completion: Completion, *, ngram_size: int = 3, max_penalty: float = -1.0
) -> float:
    """max_penalty * (1 - distinct n-grams / n-grams), -1 to 0 (Yeo et al. 2502.03373).

    Counts n-grams of words, and of words and symbols, and takes whichever repeats more: neither a
    row of `!` nor full stops between the words hide repetition.
    """
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty}: a penalty must not be positive")
    units = words_and_symbols(completion.text)
    only_words = [unit for unit in units if unit[0].isalnum()]
    rates = repetition_rate(units, ngram_size), repetition_rate(only_words, ngram_size)
    return max_penalty * max(rates)


@per_completion
def cosine(
    problem: Problem,
    completion: Completion,
    *,
    max_len: int = 1000,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> float | None:
    """Half a cosine wave, `start` at length 0 to `end` at `max_len` (Yeo et al. 2502.03373).

    Right answers fall from max_value_correct to min_value_correct, wrong ones rise from
    min_value_wrong to max_value_wrong. Beyond `max_len` the value stays at `end`, where open-r1's
    rises again: end + (start - end) * (1 + cos(pi * min(1, length / max_len))) / 2.
    """
    correct = is_correct(problem, completion.text)
    if correct is None:
        return None
    start, end = min_value_wrong, max_value_wrong
    if correct:
        start, end = max_value_correct, min_value_correct
    wave = (1 + math.cos(math.pi * min(1.0, completion.length / max_len))) / 2
    return end + (start - end) * wave


@per_group
def length(rows: Rows) -> list[float | None]:
    """0.5 - (length - shortest) / (longest - shortest) among a problem's completions.

    Wrong answers get at most 0; all get 0 if they have the same length (Kimi k1.5 §2.3.3). A wrong
    short answer costs less than a right long one: use it together with accuracy.
    """
    lengths = [completion.length for _, completion in rows]
    shortest, span = min(lengths), max(lengths) - min(lengths)
    values = []
    for problem, completion in rows:
        correct = is_correct(problem, completion.text)
        value = 0.5 - (completion.length - shortest) / span if span else 0.0
        if not correct:
            value = None if correct is None else min(0.0, value)
        values.append(value)
    return values


@per_completion
def soft_overlong_punishment(
    problem: Problem, completion: Completion, *, soft_punish_cache: int | None = None
) -> float:
    """`soft_overlong` of the completion, -1 to 0. TRL must pass completion_ids, max_completion_len.

    `soft_punish_cache`, in tokens, is a fifth of the limit by default, like DAPO's 4096 of 20480.
    """
    limit = completion.max_length
    if limit is None:
        raise TypeError("soft_overlong_punishment needs completion_ids and max_completion_len")
    cache = -(-limit // 5) if soft_punish_cache is None else soft_punish_cache
    return soft_overlong(completion.length, limit, cache)


def soft_overlong(length: int, longest: int, cache: int) -> float:
    """[DAPO Eq. 13] 0 up to `cache` tokens before the limit, from there down to -1 at the limit.

    Without a cache it is 0.

    >>> [soft_overlong(length, 100, 20) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return max(-1.0, min(0.0, (longest - cache - length) / cache)) if cache else 0.0
