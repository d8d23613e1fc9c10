"""Rejection sampling [R1 §2.3.3]: a policy's correct and readable completions become SFT rows.

Keeps completions that finish, are correct, follow the format and pass every filter, and selects a
few different ones per problem. Rows without reasoning are added. R1 removes thinking in mixed
languages, long paragraphs and code blocks; here also repetition and long thinking. Left out: R1's
human and model judges.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from random import Random

from r1mini import tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.records import Problem, Rollout
from r1mini.rewards import completion, rules
from r1mini.rewards.completion import is_general
from r1mini.rewards.runner import Scores, weighted_sum
from r1mini.tasks.corpus import cold_start_row
from r1mini.tasks.trace import Style

REWARDS = ("accuracy", "code", "format")
MAX_PARAGRAPH = 1500  # characters of a line
MAX_REPEATED = 30  # consecutive words that may not be repeated


def select_rows(
    problem: Problem,
    rollouts: Sequence[Rollout],
    scores: Scores,
    tokenizer: Tokenizer,
    *,
    keep: int,
    max_thinking: int,
    seed: int,
    model: str,
    weights: Mapping[str, float] = {},
) -> dict:
    """{"verdicts": their counts, "rows": at most `keep` different completions} of one problem:
    random ones of those that are right; or, where no rule says what is right, those with the
    highest sum of rewards by these weights.

    A `<think>` at the end of the prompt belongs to the completion. If a chat template made the
    prompt, the row has its messages.
    """
    verdicts, samples = Counter(), {}  # samples: the number of each completion to choose from
    for number, (rollout, rewards) in enumerate(zip(rollouts, scores)):
        prompt, text = problem.prompt_and_completion(rollout)
        thinking_tokens = len(tokenizer.encode(completion.extract_thinking(text)))
        judged = verdict(problem, text, rollout.finished, rewards, thinking_tokens, max_thinking)
        verdicts[judged] += 1
        if judged == "kept":
            samples.setdefault(text, number)
    rows, chosen = [], Random(f"{seed} {problem.key}").sample(list(samples), len(samples))
    if is_general(problem):
        chosen.sort(key=lambda text: -weighted_sum(scores[samples[text]], weights))
    for text in chosen[:keep]:
        row = {"prompt": prompt, "completion": text}
        if problem.messages:
            reply = {"role": "assistant", "content": text}
            row = {"prompt": list(problem.messages), "completion": [reply]}
        rewards = scores[samples[text]]
        rows.append(
            {
                **row,
                "task": problem.task,
                "problem": problem.key,
                "model": model,
                "seed": seed,
                "sample": samples[text],
                "rewards": {name: x for name, x in rewards.items() if x is not None},
            }
        )
    return {"verdicts": verdicts, "rows": rows}


def verdict(
    problem: Problem,
    text: str,
    finished: bool,
    rewards: Mapping[str, float | None],
    thinking_tokens: int,
    max_thinking: int,
) -> str:
    """Why a completion is not kept, or "kept"."""
    if not finished:
        return "cut off"
    judged = [rewards[name] for name in ("accuracy", "code") if rewards[name] is not None]
    if judged and 1.0 not in judged:
        return "wrong"
    if breaks_format(problem, text, rewards):
        return "format"
    for name, removes in FILTERS.items():
        if removes(problem, text):
            return name
    return "long" if thinking_tokens > max_thinking else "kept"


def breaks_format(problem: Problem, text: str, rewards: Mapping[str, float | None]) -> bool:
    r"""The answer to a file's problem may also stand in a `\boxed{…}` or a code block, after one
    think block or none."""
    if problem.task in tasks.TASKS or "answer>" in text:
        return not rewards["format"]
    return completion.TAG.findall(text) not in ([], ["<think>", "</think>"])


# -- filters: should a correct completion be removed? ---------------------------------------------


def mixed_languages(problem: Problem, text: str) -> bool:
    """A word of the thinking is not in the problem's language, or the thinking has no words."""
    return rules.thinking_consistency(problem, text) not in (None, 1.0)


def long_paragraph(problem: Problem, text: str) -> bool:
    """A line has more than MAX_PARAGRAPH characters."""
    return any(len(line) > MAX_PARAGRAPH for line in text.split("\n"))


def code_block(problem: Problem, text: str) -> bool:
    """A fenced block in the thinking; or anywhere, if the problem does not ask for a program."""
    if problem.task == "repair" or completion.wants_program(problem):
        text = completion.extract_thinking(text)
    return "```" in text or "~~~" in text


def repetition(problem: Problem, text: str) -> bool:
    """The thinking repeats a line, or MAX_REPEATED words or numbers (Chinese: characters) in a row.
    Lines without a letter or digit, such as the brackets of formulas, may be repeated."""
    thinking = completion.extract_thinking(text)
    lines = [line.strip() for line in thinking.split("\n") if re.search(r"\w", line)]
    units = [unit for unit in completion.words_and_symbols(thinking) if unit.isalnum()]
    return len(lines) > len(set(lines)) or completion.repetition_rate(units, MAX_REPEATED) > 0


FILTERS: dict[str, Callable[[Problem, str], bool]] = {
    "mixed languages": mixed_languages,
    "long paragraph": long_paragraph,
    "code block": code_block,
    "repetition": repetition,
}


def plain_rows(names: Sequence[str], count: int, seed: int) -> list[dict]:
    """Rows of the tasks without reasoning, in turn.

    DEVIATES: R1's non-reasoning rows come from DeepSeek-V3; here the tasks write them.
    """
    plain = [name for name in names if not tasks.TASKS[name].reasoning]
    return [
        {**cold_start_row(name, f"plain {seed}", index, Style()), "task": name}
        for index, name in zip(range(count), cycle(plain))
    ]
