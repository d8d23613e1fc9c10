"""Rule-based rewards: accuracy, format, code [R1 §2.2.2] and language consistency [R1 §2.3.2].

A reward is a function of a problem and one of its completions; it returns None where it does not
apply. `@per_completion` adds TRL's signature (the runner calls the undecorated function). A
completion is `<think>…</think><answer>…</answer>`; for the rows of data files, `\\boxed{…}` or
a line `Answer: …` or `#### 5` after the thinking also counts. Model-written code runs only in the
sandbox: for `code`, and for `accuracy` on the task `repair`. More rewards are in `open_r1.py`.

Reward models, for prompts that no rule can judge, are in `reward_model/`.
"""

from r1mini import answers, sandbox, tasks
from r1mini.records import Problem
from r1mini.rewards.completion import (
    TAGS,
    Completion,
    chosen_label,
    copied_from_prompt,
    extract_answer,
    extract_program,
    extract_thinking,
    gold_answer,
    has_right_answer,
    is_blank,
    needs_reasoning,
    parse,
    problem_tests,
    words,
)
from r1mini.rewards.trl_adapter import per_completion


@per_completion
def accuracy(problem: Problem, completion: Completion) -> float | None:
    """1 if the answer is right, else 0; None for problems with tests or without an answer."""
    correct = is_correct(problem, completion.text)
    return None if correct is None else float(correct)


def is_correct(problem: Problem, text: str) -> bool | None:
    """Is the answer right? None for a general prompt, and for one that wants a program."""
    if not has_right_answer(problem):
        return None
    return answer_error(problem, text) is None


def answer_error(problem: Problem, text: str) -> str | None:
    """What is wrong with the answer; None if it is right. An embedded task has its own checker;
    the row of a data file must have a gold answer."""
    answer = extract_answer(problem, text)
    if problem.task in tasks.TASKS:
        if answer is not None:
            return tasks.find_error(problem, answer)
        missing = [tag for tag in ("<answer>", "</answer>") if tag not in text]
        return f"no {missing[0]}" if missing else "not one answer block after the thinking"
    if answer is None:
        return "expected exactly one answer after the thinking"
    gold, label = gold_answer(problem), chosen_label(answer, problem.prompt)
    if label is None:
        return f"{answer[:60]!r} is not a choice of the question"
    answer = label
    if copied_from_prompt(answer, gold, problem.prompt):
        return f"{answer[:60]!r} is copied from the question"
    return None if answers.equivalent(gold, answer) else f"{answer[:60]!r} is not {gold!r}"


@per_completion
def format(problem: Problem, completion: Completion) -> float:
    """1 if the completion follows the format and its answer is not empty, else 0."""
    return float(format_error(problem, completion.text) is None)


def format_error(problem: Problem, text: str) -> str | None:
    """What is wrong with the format; None if it is right. Only reasoning needs a think block."""
    parsed = parse(text)
    if parsed is None:
        missing = [tag for tag in TAGS if tag not in text]
        return f"no {missing[0]}" if missing else "tags out of order, or text outside of them"
    thinking, answer = parsed
    if is_blank(answer):
        return "empty answer"
    if thinking is None:
        return "no <think>" if needs_reasoning(problem) else None
    return "empty thinking" if is_blank(thinking) else None


@per_completion
def language(problem: Problem, completion: Completion) -> float | None:
    """[R1 §2.3.2] Share of the thinking's words that are in the problem's language; 0 if
    there are none. None for tasks without reasoning, and for languages other than "en" and "zh"."""
    return thinking_consistency(problem, completion.text)


def thinking_consistency(problem: Problem, text: str) -> float | None:
    if not needs_reasoning(problem) or problem.language not in ("en", "zh"):
        return None
    return consistency(extract_thinking(text), problem.language)


def consistency(thinking: str, language: str) -> float:
    """[R1 §2.3.2] Num(words in the target language) / Num(words).

    DEVIATES: thinking without words scores 0; otherwise not thinking would be rewarded.
    """
    all_words = words(thinking)
    in_language = str.isascii if language == "en" else lambda word: "\u4e00" <= word[0] <= "\u9fff"
    return sum(map(in_language, all_words)) / len(all_words) if all_words else 0.0


@per_completion
def code(problem: Problem, completion: Completion, *, time_limit: float = 2.0) -> float | None:
    """1 if the program passes all tests, else 0; None without tests. `time_limit`: CPU seconds for
    each test, unless the problem has a column `time_limit`. (open-r1 rewards the share of passed
    tests, so that a constant answer earns partial credit.)"""
    tests = problem_tests(problem)
    if tests is None:
        return None
    program = extract_program(completion.text, tests)
    if program is None:
        return 0.0
    return float(sandbox.judge(program, tests, problem.columns.get("time_limit", time_limit)))
