r"""Rule-based rewards [R1 §2.2.2]: accuracy, format, language consistency [R1 §2.3.2], and open-r1's under its names. No
neural reward model.

A reward is a function as TRL calls it: `reward(prompts, completions, **columns) -> list[float | None]`, all of them lists
with one item per completion, None where the reward does not apply. Prompts and completions are strings or message lists;
columns are `task`, `language`, `completion_ids`, `max_completion_len` and what else the problem has. One call gets the
completions of one problem. What has parameters takes them as keywords: `functools.partial(rewards.cosine, max_len=500)`.

A completion is `<think>…</think><answer>…</answer>`; to a row of a data file `\boxed{…}` after the thinking is an answer
too. Nothing of it is executed but by `code`, in the sandbox. Left out: TRL's `trainer_state`, `log_extra`, `log_metric`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1mini import answers, sandbox, tasks
from r1mini.programs import program, tests, wanted
from r1mini.records import Problem, opened

Reward = Callable[..., "Sequence[float | None]"]
Columns = Mapping[str, Sequence[Any]]

TAG = re.compile(r"</?(?:think|answer)>")
ORDER = ["<think>", "</think>", "<answer>", "</answer>"]
NOTATION = ("return", "for", "in", "if", "range", "max", "min", "sum", "ln")  # what traces write in either language


@dataclass(frozen=True)
class Parsed:
    thinking: str | None  # None: no think block
    answer: str


def parse(text: str) -> Parsed | None:
    """The blocks of a completion that keeps the format strictly, or None: at most one think block, exactly one answer
    block after it, only white space between, nothing before, nothing but white space after, no tag inside.

    >>> parse("<think>5+8=13</think><answer>5+8</answer>")
    Parsed(thinking='5+8=13', answer='5+8')
    >>> parse("<think>5+8=13</think><answer>5+8</answer> and more") is None
    True
    """
    match TAG.findall(text):
        case ["<think>", "</think>", "<answer>", "</answer>"]:
            before, thinking, between, answer, after = TAG.split(text)
        case ["<answer>", "</answer>"]:
            (before, answer, after), thinking, between = TAG.split(text), None, ""
        case _:
            return None
    return None if (before + between + after).strip() else Parsed(thinking, answer)


def thinking(text: str) -> str:
    """What stands in the think block, closed or not; "" without one."""
    return text.partition("<think>")[2].partition("</think>")[0]


# -- one completion of one problem: what is asked of it, and what is wrong with it -------------------------------------


def blank(text: str) -> bool:
    """Is there nothing to see? White space, and signs of no width."""
    return not any(sign.isprintable() and not sign.isspace() for sign in text)


def reasons(problem: Problem) -> bool:
    """Is thinking asked for?"""
    return problem.task not in tasks.TASKS or tasks.TASKS[problem.task].reasoning


def gold(problem: Problem) -> str | None:
    r"""The right answer of a data file's row: its column `answer`, or without one the last `\boxed{…}` of `solution`. None
    where a checker decides: an embedded task's, or tests."""
    if problem.task in tasks.TASKS or wanted(problem):
        return None
    answer, solution = problem.columns.get("answer"), problem.columns.get("solution")
    if answer is None or not str(answer).strip():
        return None if solution is None else answers.extract(str(solution))
    return answers.extract(str(answer)) or str(answer)


def check(problem: Problem) -> None:
    """ValueError if a data file's row has neither an answer nor tests, or an answer or a test that cannot be judged by."""
    needed, right = tests(problem), gold(problem)
    if needed is None and right is None:
        raise ValueError("nothing to judge an answer by: no column 'answer', 'solution' with a box, or 'tests'")
    if right is not None:
        answers.equivalent(right, "")
    if needed is not None:
        sandbox.check(needed)
        limit = problem.columns.get("time_limit", 2.0)
        if not isinstance(limit, (int, float)) or not 0.05 <= limit <= 86400:
            raise ValueError(f"time_limit {limit!r}: seconds, from 0.05 to 86400")


def answer_of(problem: Problem, text: str) -> str | None:
    """What a completion answers, by the rules of its problem; None: nothing that could be right."""
    return program(text) if problem.task not in tasks.TASKS and wanted(problem) else answers.extract(text)


def why_wrong(problem: Problem, text: str) -> str | None:
    """What is wrong with the answer, or None if it is right: by the checker of the column `task` if that is an embedded
    task, else by `answers.equivalent` to the row's own answer, which must be there."""
    answer = answer_of(problem, text)
    if problem.task not in tasks.TASKS:
        if answer is None:
            return "no answer after the thinking, or more than one"
        if copied(problem, answer):
            return f"{answer[:60]!r} is the question's own"
        return None if answers.equivalent(gold(problem), answer) else f"{answer[:60]!r} is not {gold(problem)!r}"
    if answer is not None:
        return tasks.mistake(problem, answer)
    for tag in ("<answer>", "</answer>"):
        if tag not in text:
            return f"no {tag}"
    return "not one answer block after the thinking"


LITERAL = re.compile(r"[-+]?(?:\d+/\d+|\\[dt]?frac\d+|[\d.,]+|[A-Za-z ]*)%?")
OPERATION = re.compile(r"[\w)!][-+*/^!]|\\[a-z]{3}|\)\(")


def copied(problem: Problem, answer: str) -> bool:
    r"""Is the answer an expression of the prompt, of the right value but another form? Else `2+3` would answer "What is 2+3?",
    and `\sqrt{48}` its own simplification. A number, fraction, word or label may stand in the prompt."""
    answer, right, prompt = (re.sub(r"[\s{}$]|\\(?:left|right|[,;!])", "", text) for text in
                             (answer, gold(problem), problem.prompt))
    return answer != right and answer in prompt and not LITERAL.fullmatch(answer) and OPERATION.search(answer) is not None


def correct(problem: Problem, text: str) -> bool | None:
    """Is the answer right? None: the problem has none that could be compared."""
    return why_wrong(problem, text) is None if problem.task in tasks.TASKS or gold(problem) is not None else None


def why_unformatted(problem: Problem, text: str) -> str | None:
    """What is wrong with the format, or None: it is kept and its answer is not empty. Reasoning tasks need a think block
    that is not empty; elsewhere an answer alone will do."""
    parsed = parse(text)
    if parsed is None:
        missing = [tag for tag in ORDER if tag not in text]
        return f"no {missing[0]}" if missing else "tags out of order or repeated, or text outside them"
    if blank(parsed.answer):
        return "empty answer"
    if parsed.thinking is None:
        return "no <think>" if reasons(problem) else None
    return "empty thinking" if blank(parsed.thinking) else None


def words(text: str) -> list[str]:
    """The words of a text: Han characters by two, and Latin words. Formulas, variables and names of functions are notation:
    single letters, two letters with a capital, anything beside a digit or with a capital inside, unless there are four
    capitals and nothing else (of three kinds: ABAB is a value), or three small letters in a row. Two letters in a row of any
    other script but Greek are a word too.

    >>> words("try 2 H2O + NaCl, f(a) 对 then Fe 算了")
    ['try', '对', 'then', '算了']
    """
    found = re.findall(r"[\u4e00-\u9fff]{1,2}|(?<![A-Za-z0-9_])(?:[a-z]{2}|[A-Z]{4,})(?![A-Za-z0-9_])"
                       r"|(?<![A-Za-z0-9_])(?=[A-Za-z_]*[a-z]{3}|[A-Z][a-z]{2})[A-Za-z_]+(?![A-Za-z0-9_])"
                       r"|[^\W\d_\u0000-\u024f\u0370-\u03ff\u1e00-\u1eff\u4e00-\u9fff]{2,}", text)
    is_value = lambda word: word.isascii() and word.isupper() and len(set(word)) < 3
    return [word for word in found if word not in NOTATION and not is_value(word)]


def consistency(thinking: str, language: str) -> float:
    """[R1 §2.3.2] Num(words in the target language) / Num(words).

    DEVIATES: thinking without a single word scores 0, or silence would be the easiest consistency.
    """
    found = words(thinking)
    target = [word for word in found if ("\u4e00" <= word[0] <= "\u9fff" if language == "zh" else word.isascii())]
    return len(target) / len(found) if found else 0.0


def share(problem: Problem, text: str) -> float | None:
    """Consistency of the thinking; None without reasoning, or where the language is neither "en" nor "zh"."""
    if not reasons(problem) or problem.language not in ("en", "zh"):
        return None
    return consistency(thinking(text), problem.language)


def why_mixed(problem: Problem, text: str) -> str | None:
    """What keeps the thinking from being in the problem's language alone, or None."""
    kept = share(problem, text)
    if kept is None or kept == 1:
        return None
    found = len(words(thinking(text)))
    return f"{round((1 - kept) * found)} of {found} words are not {problem.language}" if found else "no word in the thinking"


# -- the rewards ------------------------------------------------------------------------------------------------------


def content(message: Any) -> str:
    """The text of a prompt or completion: a string, or messages of which the last one counts, with its parts of text."""
    if isinstance(message, str):
        return str(message)
    parts = message[-1]["content"]
    return parts if isinstance(parts, str) else "".join(part["text"] for part in parts if part["type"] == "text")


def texts(prompts: Sequence, completions: Sequence) -> list[str]:
    """The text of each completion, with the `<think>` that its prompt may have opened."""
    return [opened(content(prompt)) + content(completion) for prompt, completion in zip(prompts, completions, strict=True)]


def rows(prompts: Sequence, completions: Sequence, columns: Columns) -> list[tuple[Problem, str]]:
    """(problem, text of the completion) of each row. What is no list, as TRL's `trainer_state`, is no column."""
    columns = {name: values for name, values in columns.items() if isinstance(values, (list, tuple))}
    found = []
    for prompt, text, *values in zip(prompts, texts(prompts, completions), *columns.values(), strict=True):
        row = dict(zip(columns, values))
        problem = Problem(row.get("task") or "", "", row.get("language") or "", content(prompt), row)
        found.append((problem, text))
    return found


def accuracy(prompts, completions, **columns) -> list[float | None]:
    """1 if the answer is right, else 0; None for a problem with tests, or without an answer. [R1 §2.2.2]"""
    found = [correct(problem, text) for problem, text in rows(prompts, completions, columns)]
    return [None if right is None else float(right) for right in found]


def format(prompts, completions, **columns) -> list[float]:
    """1 if the completion keeps the format and its answer is not empty, else 0. [R1 §2.2.2]"""
    return [float(why_unformatted(problem, text) is None) for problem, text in rows(prompts, completions, columns)]


def language(prompts, completions, **columns) -> list[float | None]:
    """Share of the thinking's words that are in the problem's language, 0 to 1, 0 without a think block; None (does not
    apply) for tasks without reasoning. [R1 §2.3.2]"""
    return [share(problem, text) for problem, text in rows(prompts, completions, columns)]


def code(prompts, completions, *, time_limit=2.0, **columns) -> list[float | None]:
    """1 if the program passes all tests, each in `time_limit` CPU seconds (a number, or a column of them), else 0; None
    without tests. open-r1 gives the share of passed tests, which a constant answer earns a part of. [R1 §2.2.2]"""
    limits = time_limit if isinstance(time_limit, (list, tuple)) else [time_limit] * len(completions)
    found: list[float | None] = []
    for (problem, text), limit in zip(rows(prompts, completions, columns), limits, strict=True):
        needed, written = tests(problem), program(text)
        found.append(None if needed is None else float(written is not None and sandbox.judge(written, needed, limit)))
    return found


CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\(?([A-Ja-j])\)?\.?\}?")


def multiple_choice(prompts, completions, **columns) -> list[float | None]:
    r"""1 if the answer is the label of the right choice and nothing else, `B`, `(b)` or `\text{B}.`, else 0; None where
    the right answer is no capital letter from A to J."""
    found: list[float | None] = []
    for problem, text in rows(prompts, completions, columns):
        right = CHOICE.fullmatch(gold(problem) or "")
        label = CHOICE.fullmatch(answer_of(problem, text) or "")
        found.append(float(label is not None and label[1].upper() == right[1]) if right and right[1].isupper() else None)
    return found


def tag_count(prompts, completions, **columns) -> list[float]:
    """1/4 for each of the four tags that is there exactly once; 0 if these are out of order. From open-r1."""
    found = []
    for text in texts(prompts, completions):
        tags = TAG.findall(text)
        once = [tag for tag in tags if tags.count(tag) == 1] if len(tags) < 100 else []
        found.append(len(once) / 4 if once == sorted(once, key=ORDER.index) else 0.0)
    return found


STEP = re.compile(r"[ \t]*(?:Step \d+:|\d+[.)]|[-*]|First,|Second,|Next,|Finally,|首先|其次|然后|最后)[ \t]*(\S.*)")


def reasoning_steps(prompts, completions, **columns) -> list[float]:
    """min(1, steps/3): lines of the thinking that begin as a step does and then say something that no other step says.
    From open-r1, which counts bare markers. It is looks alone: give it a small weight."""
    found = []
    for text in texts(prompts, completions):
        steps = [match[1].strip() for line in thinking(text).split("\n") if (match := STEP.fullmatch(line))]
        found.append(min(1.0, len({step for step in steps if re.search(r"\w", step)}) / 3))
    return found


def signs(text: str) -> list[str]:
    """Words of at most 16 letters or digits (a longer one is cut), Chinese ones of one, and all other signs, singly."""
    return re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w){1,16}|[^\w\s]", text.lower())


def repeated(tokens: Sequence[str], size: int) -> float:
    """1 - distinct n-grams / n-grams; 0 of a text without any."""
    ngrams = list(zip(*(tokens[i:] for i in range(size))))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition_penalty(prompts, completions, *, ngram_size: int = 3, max_penalty: float = -1.0, **columns) -> list[float]:
    """max_penalty * (1 - distinct n-grams / n-grams), -1 to 0 (Yeo et al. 2502.03373, open-r1). Of the words alone or of
    all signs, whichever is worse: neither a row of `!` nor points between the words hide it."""
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty}: a penalty is not positive")
    found = []
    for text in texts(prompts, completions):
        every = signs(text)
        spoken = [sign for sign in every if sign[0].isalnum()]
        found.append(max_penalty * max(repeated(every, ngram_size), repeated(spoken, ngram_size)))
    return found


def lengths(completions, completion_ids) -> list[int]:
    """In tokens, or where these are not known in characters."""
    return [len(part) for part in (map(content, completions) if completion_ids is None else completion_ids)]


def cosine(prompts, completions, *, max_len: int = 1000, min_value_wrong: float = -1.0, max_value_wrong: float = -0.5,
           min_value_correct: float = 0.5, max_value_correct: float = 1.0, completion_ids=None, **columns
           ) -> list[float | None]:
    """From `start` at length 0 to `end` at `max_len` by half a cosine wave (Yeo et al. 2502.03373, open-r1): right answers
    fall from max to min_value_correct, wrong ones rise from min to max_value_wrong. Beyond `max_len` it stays at `end`,
    where open-r1's comes back: end + (start - end) * (1 + cos(pi * min(1, length / max_len))) / 2."""
    found: list[float | None] = []
    for (problem, text), length in zip(rows(prompts, completions, columns), lengths(completions, completion_ids)):
        right = correct(problem, text)
        start, end = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        wave = (1 + math.cos(math.pi * min(1.0, length / max_len))) / 2
        found.append(None if right is None else end + (start - end) * wave)
    return found


def length(prompts, completions, *, completion_ids=None, **columns) -> list[float | None]:
    """0.5 - (length - shortest) / (longest - shortest) among a problem's completions, of wrong answers at most 0; all 0
    if they are of one length (Kimi k1.5 §2.3.3; open-r1). A wrong short answer costs less than a right long one: it is
    meant beside accuracy."""
    lengths_B = lengths(completions, completion_ids)
    span = max(lengths_B) - min(lengths_B)
    found: list[float | None] = []
    for (problem, text), length in zip(rows(prompts, completions, columns), lengths_B):
        right, value = correct(problem, text), 0.5 - (length - min(lengths_B)) / span if span else 0.0
        found.append(None if right is None else value if right else min(0.0, value))
    return found


def soft_overlong(length: int, longest: int, cache: int) -> float:
    """[DAPO Eq. 13] 0 up to `cache` tokens before the limit, from there down to -1 at it; 0 with no cache.

    >>> [soft_overlong(length, 100, 20) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return max(-1.0, min(0.0, (longest - cache - length) / cache)) if cache else 0.0


def soft_overlong_punishment(prompts, completions, *, completion_ids, max_completion_len,
                             soft_punish_cache: int | None = None, **columns) -> list[float]:
    """`soft_overlong` of each completion, -1 to 0, in tokens; by default over the last fifth, as DAPO's 4096 of 20480."""
    limits = max_completion_len if isinstance(max_completion_len, Sequence) else [max_completion_len] * len(completions)
    return [soft_overlong(len(ids), limit, -(-limit // 5) if soft_punish_cache is None else soft_punish_cache)
            for ids, limit in zip(completion_ids, limits, strict=True)]


REWARDS: dict[str, Reward] = {reward.__name__: reward for reward in (
    accuracy, format, language, code, multiple_choice, tag_count, reasoning_steps, repetition_penalty, cosine, length,
    soft_overlong_punishment)}
