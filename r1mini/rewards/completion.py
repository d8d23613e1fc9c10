r"""Parses a completion, and finds what its problem offers to judge it by.

Extracts the thinking, the answer, the program and the words of a completion; finds the gold answer
or the tests of a problem. Left out: programs in languages other than Python, special checkers for
problems with several right answers.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from r1mini import answers, sandbox, tasks
from r1mini.records import Problem
from r1mini.sandbox.convert import Dropped, open_r1_tests

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TAG = re.compile(r"</?(?:think|answer)>")
WITHOUT_TAG = r"([^<]*(?:(?!</?(?:think|answer)>)<[^<]*)*)"
FORMAT = re.compile(rf"\s*(?:<think>{WITHOUT_TAG}</think>\s*)?<answer>{WITHOUT_TAG}</answer>\s*")
LITERAL = re.compile(r"[-+]?(?:\d+/\d+|\\[dt]?frac\d+|[\d.,]+|[A-Za-z ]*)%?")
OPERATION = re.compile(r"[\w)!][-+*/^!×÷·⋅]|\\[a-z]{3}|\)\(|[√|]|sqrt|log|ln|sin|cos|tan")
# Strings in triple quotes and comments are consumed whole: a fence in them closes nothing.
BLOCK = re.compile(
    r"""
    ^ (?: [ \t>] | [-*+][ \t] | \d{1,9}[.)][ \t] )*      # indentation, or an item of a list
    (`{3,}(?=[^`\n]*$) | ~{3,})                          # fence
    (?! [ \t]* (?:md|markdown) \s*? $) (.*) \n?           # info string
    ((?: [ \t>]* \n)* ([ \t>]*)                          # code, its indentation
    (?: "{3}[\s\S]*?"{3} | '{3}[\s\S]*?'{3} | \#.* | [^`~"'\#\n]+ | [\s\S])*?)
    (?: (?=^[ \t>]* \1 [^\s`~]\S* [ \t\r]* $)            # before a fence that opens another block
    | ^[ \t>]* \1 .* | \1 [`~]* [ \t\r]* $ | \Z)         # at a fence, or code and fence, or never
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
PYTHON = re.compile(r"\W*(?:\w+[./:=])*(?:i?python|py)[\d.]*(?![\w-])", re.IGNORECASE)
ASKS_WHICH = re.compile("which|whether|choose|select|哪", re.IGNORECASE)
# A label and its text, such as `**B) Paris**` or `\textbf{(B)}\ 5`.
LABELLED = re.compile(
    r"[\s*$({\[]*(?:\\text\w*\{\(?)?([A-J])[)\].:}]+[\s\\*$]*(.{1,300}?)[\s*.$}]*", re.DOTALL
)
# A formula of a prompt: in TeX's delimiters, or from its first digit or command to its last.
FORMULA = re.compile(
    r"\$([^$]+)\$|\\[(\[](.+?)\\[)\]]"
    r"|((?:[-+(|√\d]|\\[a-z]+)(?:[^A-Za-z\u3000-\u9fff，？；?=,;]{0,200}[\d)!|}%])?)"
)
SPACING = re.compile(r"[\s{}$]|\\(?:left|right|[,;!])")
# Notation that traces share between languages.
NOTATION = "return for in if range max min sum ln".split()
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


class Completion(NamedTuple):
    """A completion, as a reward sees it."""

    text: str  # starts with the `<think>` that its prompt may end with
    length: int  # in tokens; in characters if TRL's caller passes no `completion_ids`
    max_length: int | None = None  # the sampler's limit in tokens; None: unknown


def parse(text: str) -> tuple[str | None, str] | None:
    """Thinking and answer of a completion that follows the format strictly; None if it does not.

    The format is at most one think block, then exactly one answer block. Only white space may stand
    between and after them, nothing before them, and no tag inside.

    >>> parse("<think>5+8=13</think><answer>5+8</answer>")
    ('5+8=13', '5+8')
    >>> parse("<answer>5+8</answer>")
    (None, '5+8')
    >>> parse("<think>5+8=13</think><answer>5+8</answer> and more") is None
    True
    """
    match = FORMAT.fullmatch(text)
    return match and match.groups()


def visible_answer(text: str) -> str:
    """What a completion shows to its reader: the text between the answer tags or, if it does not
    follow the format, all that comes after the thinking.

    >>> visible_answer("<think>5+8=13</think><answer>13</answer>")
    '13'
    >>> visible_answer("<think>5+8=13</think>It is 13.")
    'It is 13.'
    """
    parsed = parse(text)
    answer = parsed[1] if parsed else text.rpartition("</think>")[2].partition("<think>")[0]
    return answer.strip()


def is_blank(text: str) -> bool:
    """Does the text have no visible character? Zero-width characters are invisible too."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def extract_thinking(text: str) -> str:
    """The text of the think block, closed or not; "" without one."""
    return text.partition("<think>")[2].partition("</think>")[0]


def extract_answer(problem: Problem, text: str) -> str | None:
    """The answer of a completion: a program if the problem asks for one; None without an answer."""
    if problem.task not in tasks.TASKS and wants_program(problem):
        return extract_program(text, problem_tests(problem))
    return answers.extract(text)


def extract_program(text: str, tests: Sequence[dict] = ()) -> str | None:
    """The program of a completion; None without one.

    It is the last fenced block after the thinking (inside the answer block, if there is one), or
    else the whole answer block. Blocks that define the functions which `tests` call go before
    others, then those with a Python label. Other labels count only with these functions.

    >>> extract_program("<think>```x```</think>So:\\n```python\\nprint(1)\\n```\\nIt prints 1.")
    'print(1)\\n'
    """
    after, whole = text.rpartition("</think>")[2], []
    if "<think>" in after:
        return None
    if "<answer>" in after or "</answer>" in after:
        after = answers.extract(text, within_block=False) or ""
        whole = [("", after)]
    names = {test["call"] for test in tests if isinstance(test, dict) and "call" in test}
    program, best = None, (0, False)
    for info, code in whole + fenced_blocks(after):
        rank = sum(defines(code, name) for name in names), PYTHON.match(info) is not None
        if code.strip() and rank >= best and (any(rank) or not info):
            program, best = code, rank
    return program


def defines(code: str, name: str) -> bool:
    """Does Python code define `name` at its top level?"""
    name = re.escape(name)
    return bool(re.search(rf"^(?:(?:def|class) +{name}\b|{name} *(?::.*)?=(?!=))", code, re.M))


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(info string, code) of each fenced block, as CommonMark (§4.5) has them.

    Unlike there, fences may have any indentation, and text behind a closing one or code before it.

    >>> fenced_blocks("1. Do\\n   ~~~py\\n   if x:\\n     f()\\n   ~~~")
    [('py', 'if x:\\n  f()\\n')]
    """
    blocks = []
    for _, info, code, indentation in BLOCK.findall(text):
        container = rf"^[ \t>]{{0,{len(indentation)}}}"
        blocks.append((info.strip(), re.sub(container, "", code, flags=re.M)))
    return blocks


@lru_cache(maxsize=256)  # a prompt has many completions
def formulas(prompt: str) -> set:
    """The trees of the formulas in a prompt."""
    return {answers.formula_tree("".join(parts)) for parts in FORMULA.findall(prompt)} - {None}


def copied_from_prompt(answer: str, gold: str, prompt: str) -> bool:
    r"""Is the answer an expression copied from the prompt, and not written like the gold answer?

    Otherwise `2+3` would answer "What is 2+3?", and `\sqrt{48}` would be its own simplification.
    So would `x = 3 + 2` and `**2+3**`: formulas are compared whatever their notation and order.
    Copying a number, fraction, word or label is allowed, and what the prompt offers as an answer.
    """
    parts = {answer, answer.rpartition("=")[2]}
    copied = any(stands_in(prompt, part) for part in parts)
    return copied and not answers.written_alike(gold, answer)


def stands_in(prompt: str, expression: str) -> bool:
    """Does an expression with an operation stand in the prompt, and not as one of its choices?"""
    text, spaceless = SPACING.sub("", expression), SPACING.sub("", prompt)
    if LITERAL.fullmatch(text) or not OPERATION.search(text):
        return False
    if text not in spaceless and answers.formula_tree(expression) not in formulas(prompt):
        return False
    copy = rf"{re.escape(text)}(?![-\w+*/^])"
    offered = rf"(?:\([A-J]\)|(?<![A-Za-z])[A-J][.:]){copy}"
    if ASKS_WHICH.search(spaceless):
        offered += rf"|(?:or|或){copy}(?!=)|(?<![-\w+*/^=]){re.escape(text)}(?:or|或)"
    return not re.search(offered, spaceless)


def chosen_label(answer: str, prompt: str) -> str | None:
    """`B` for an answer like `(B) 5`, if a line of the prompt gives B that text; None if it gives B
    another one; the answer as it is if the prompt has no B."""
    chosen = LABELLED.fullmatch(answer)
    lines = map(LABELLED.fullmatch, prompt.splitlines()) if chosen else ()
    texts = [line[2] for line in lines if line and line[1] == chosen[1]]
    if not texts:
        return answer
    return chosen[1] if chosen[2] in texts else None


# -- words -------------------------------------------------------------------------------------


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


def repetition_rate(units: list[str], n: int) -> float:
    """1 - distinct n-grams / n-grams; 0 if the text is shorter than n."""
    ngrams = list(zip(*(units[start:] for start in range(n))))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


# -- the problem -------------------------------------------------------------------------------


def needs_reasoning(problem: Problem) -> bool:
    """Does the problem ask for thinking?"""
    return problem.task not in tasks.TASKS or tasks.TASKS[problem.task].reasoning


def has_right_answer(problem: Problem) -> bool:
    """Can an answer be checked: by an embedded task, or against a gold answer?"""
    if problem.task in tasks.TASKS:
        return tasks.TASKS[problem.task].find_error is not None
    return gold_answer(problem) is not None


def is_general(problem: Problem) -> bool:
    """Can no rule say whether an answer is right?"""
    return not has_right_answer(problem) and not wants_program(problem)


def gold_answer(problem: Problem) -> str | None:
    r"""The gold answer of a data file's row; None where a task's checker or tests decide.

    It is the column `answer`, or without one the last `\boxed{…}` of the column `solution`.
    """
    if problem.task in tasks.TASKS or wants_program(problem):
        return None
    answer = problem.columns.get("answer")
    if answer is None or not str(answer).strip():
        return answers.extract(str(problem.columns.get("solution")))
    return answers.extract(str(answer)) or str(answer)


def wants_program(problem: Problem) -> bool:
    """Does the problem ask for a program?"""
    info = json_column(problem, "verification_info")
    has_cases = isinstance(info, dict) and "test_cases" in info
    return problem.columns.get("tests") is not None or has_cases


def problem_tests(problem: Problem) -> list[dict] | None:
    """The sandbox's tests of a problem; None without any. ValueError if no test can be run.

    They are the column `tests`, or else open-r1's `verification_info`; both may be JSON text.
    """
    tests = json_column(problem, "tests")
    if tests is not None or not wants_program(problem):
        return tests
    try:
        tests, dropped = open_r1_tests(json_column(problem, "verification_info"))
    except Dropped as reason:
        raise ValueError(f"verification_info: {reason}") from None
    if not tests:
        raise ValueError(f"verification_info: no test can be run ({', '.join(dropped)})")
    return tests


def json_column(problem: Problem, name: str) -> Any:
    """A column, parsed if it is JSON text."""
    value = problem.columns.get(name)
    return parse_json(value) if isinstance(value, str) else value


parse_json = lru_cache(maxsize=1000)(json.loads)  # all completions of a problem share its columns


def check_problem(problem: Problem, general: bool = False) -> None:
    """ValueError if a data file's row has unusable gold answers or tests; or none, unless it may be
    a general prompt."""
    gold = gold_answer(problem)
    if gold is not None:
        answers.equivalent(gold, "")
        return
    tests = problem_tests(problem)
    if tests is None:
        if general:
            return
        raise ValueError(
            "answers cannot be checked: no column 'answer', 'solution' with a box, or 'tests'"
        )
    sandbox.check(tests)
    limit = problem.columns.get("time_limit", 2.0)
    if not isinstance(limit, int | float) or not 0.05 <= limit <= 86400:
        raise ValueError(f"time_limit {limit!r}: must be 0.05 to 86400 seconds")
