"""Layouts of data files: a row of TRL, ShareGPT or a public data set as TRL's columns.

`FORMATS` is the table. A reader makes of a row `prompt` and `completion` (both text, or both messages), `messages` or `text`,
and what else rewards need of it (`answer`). Text is taken as it is; messages go through a chat template. What is not as the
layout says is a ValueError. Left out: preference pairs, tool calls, images. Tests of code are read by `code_data.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Message = Mapping[str, str]


def text(row: Row, name: str) -> str:
    """A column of text. ValueError for another type, a missing or blank one, or half characters."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}" + (f", but {value!r:.60}" if name in row else ""))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"column {name!r}: half a character, or a byte that is no UTF-8, in {value!r:.60}") from None
    return value


ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}


def turns(row: Row, name: str) -> list[Message]:
    """A column of messages: `role` and `content`, which may be in parts, or ShareGPT's `from` and `value`."""
    found = []
    for number, turn in enumerate(row[name], 1):
        said = {"content": turn.get("content", turn.get("value")), "role": turn.get("role", turn.get("from"))}
        if isinstance(said["content"], list):
            said["content"] = "".join(part["text"] for part in said["content"])
        role = ROLES.get(said["role"], said["role"])
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"column {name!r}, message {number}: {role!r:.60} is not system, user or assistant")
        try:
            found.append({"role": role, "content": text(said, "content")})
        except ValueError as error:
            raise ValueError(f"column {name!r}, message {number}: {error}") from None
    return found


def chat(question: str, reply: str | None = None, **columns: Any) -> dict:
    """A question of a user's, and the assistant's reply where there is one. ValueError for a reply that is no text."""
    if reply is not None and not isinstance(reply, str):
        raise ValueError(f"text expected as the reply, not {reply!r:.60}")
    said = {"completion": [{"role": "assistant", "content": reply}]} if reply else {}
    return {"prompt": [{"role": "user", "content": question}], **said, **columns}


def conversation(fields: Row, names: Sequence[str] = ("messages", "prompt", "completion", "text")) -> list[Message]:
    """What a reader found as messages; a text is a user's, a completion the assistant's."""
    found = []
    for name in names:
        said = fields.get(name) or []
        found += said if isinstance(said, list) else [
            {"role": "assistant" if name == "completion" else "user", "content": said}]
    return found


def trl(row: Row) -> dict:
    """Text or messages, in the columns that are there."""
    names = ["messages"] if "messages" in row and "prompt" not in row else ["prompt", "completion"][: 1 + ("completion" in row)]
    return {name: (turns if isinstance(row.get(name), list) or name == "messages" else text)(row, name) for name in names}


def sharegpt(row: Row) -> dict:
    """Bespoke-Stratos' marks of thought become <think> and </think>, in the system's prompt too; those of the solution go."""
    said = [{"from": "system", "value": row["system"]}] if row.get("system") else []
    found = turns({"conversations": [*said, *row["conversations"]]}, "conversations")
    for old, new in ((r"<\|begin_of_thought\|>", "<think>"), (r"<\|end_of_thought\|>", "</think>"),
                     (r"<\|begin_of_solution\|>\s*|\s*<\|end_of_solution\|>", "")):
        found = [{**turn, "content": re.sub(old, new, turn["content"])} for turn in found]
    return {"messages": found}


def solved(row: Row) -> dict:
    """MATH and its relatives: the answer is in `answer`, or else in the last box of `solution`."""
    return chat(text(row, "problem"), row.get("solution"))


def openr1(row: Row) -> dict:
    """The first generation that is complete and that Math-Verify found correct, or else Llama."""
    generations = row["generations"] or []
    done, verified, llama = (row.get(name) or [False] * len(generations) for name in (
        "is_reasoning_complete", "correctness_math_verify", "correctness_llama"))
    right = [reply for good in (verified, llama) for reply, *both in zip(generations, done, good) if all(both)]
    return chat(text(row, "problem"), *right[:1])


def gsm8k(row: Row) -> dict:
    r"""The answer is behind `####`. The reply is the solution without its calculator's `<<…>>`, the answer in a `\boxed{…}`,
    where rewards look for it.

    >>> gsm8k({"question": "900+300?", "answer": "900+300=<<900+300=1200>>1200\n#### 1,200"})["completion"][0]["content"]
    '900+300=1200\n\\boxed{1200}'
    """
    solution = text(row, "answer")
    worked, sign, answer = re.sub(r"<<.*?>>", "", solution).rpartition("####")
    answer = answer.strip().replace(",", "")  # of thousands
    if not sign or not answer or "\n" in answer:
        raise ValueError(f"column 'answer': no answer after '####', but {solution[-60:]!r}")
    return chat(text(row, "question"), rf"{worked}\boxed{{{answer}}}", answer=answer, solution=solution)


def countdown(row: Row) -> dict:
    """Judged by the embedded task's checker: every number exactly once. The prompt is worded as TinyZero's."""
    numbers, target = row["nums"], row["target"]
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= 6 or not all(type(n) is int and 0 <= n < 100 for n in numbers):
        raise ValueError(f"column 'nums': one to six integers from 0 to 99 expected, not {numbers!r:.60}")
    if type(target) is not int:
        raise ValueError(f"column 'target': an integer expected, not {target!r:.60}")
    asked = (f"Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
             "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the "
             "final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.")
    return {**(trl(row) if "prompt" in row else chat(asked)), "task": "countdown", "numbers": numbers, "target": target}


def gpqa(row: Row) -> dict:
    """The choices in an order that depends on the question alone; the answer is a letter."""
    question, right = text(row, "Question").strip(), text(row, "Correct Answer").strip()
    choices = [right, *(text(row, f"Incorrect Answer {number}").strip() for number in (1, 2, 3))]
    Random(question).shuffle(choices)
    lines = "".join(f"\n{letter}) {choice}" for letter, choice in zip("ABCD", choices))
    if len(set(choices)) < 4:
        raise ValueError(f"two choices are the same: {choices}")
    letter = "ABCD"[choices.index(right)]
    return chat(f"{question}\n{lines}\n\nAnswer with the letter of the right choice.", rf"\boxed{{{letter}}}", answer=letter)


def program(question: str, code: str) -> dict:
    return chat(question, f"```python\n{code.strip()}\n```" if code.strip() and "```" not in code else code)


def humaneval(row: Row) -> dict:
    return program(text(row, "prompt"), row["prompt"] + text(row, "canonical_solution"))


def mbpp(row: Row) -> dict:
    return program(f"{text(row, 'text' if 'text' in row else 'prompt')}\n\nExample:\n{row['test_list'][0]}", text(row, "code"))


def apps(row: Row) -> dict:
    given = row.get("solutions") or []
    solutions = json.loads(given) if isinstance(given, str) else given
    return program(f"{text(row, 'question')}\n\n{row.get('starter_code') or ''}".strip(), *solutions[:1] or [""])


def open_r1_code(row: Row) -> dict:
    name = next((name for name in ("prompt", "problem", "problem_statement") if row.get(name)), "prompt")
    return program(text(row, name), row.get("gold_standard_solution") or "")


def named(prompt: str, answer: str, row: Row) -> dict:
    """Columns by their names. `solution` has its answer in a box; any other one is the answer. SFT learns the solution, or else
    the answer."""
    asked = {"prompt": turns(row, prompt)} if isinstance(row.get(prompt), list) else chat(text(row, prompt))
    if row.get(answer) is None or answer == "tests":
        return asked
    if isinstance(row[answer], (list, dict)):
        raise ValueError(f"column {answer!r}: text or a number expected, not {row[answer]!r:.60}")
    solution = row.get("solution")
    learned = solution if isinstance(solution, str) and solution.strip() and answer == "answer" else str(row[answer])
    return {**asked, "completion": [{"role": "assistant", "content": learned}],
            "answer": None if answer == "solution" else row[answer]}


class Format(NamedTuple):
    name: str
    columns: tuple[str, ...]  # a file whose first row has all of these is of the first such format
    read: Callable[[Row], dict]
    learned: str  # what SFT learns; a row without it is an error there
    source: str
    sign: str = ""  # what stands in that row's `answer`


HUB, TRL = "https://huggingface.co/datasets/", "https://huggingface.co/docs/trl/dataset_formats"
COMPLETION, SOLUTION, TURN = "text in column 'completion'", "text in column 'solution'", "turn of an assistant"
FORMATS = (
    Format("Countdown-Tasks-3to4", ("nums", "target"), countdown, COMPLETION, HUB + "Jiayi-Pan/Countdown-Tasks-3to4"),
    Format("open-r1 code", ("verification_info",), open_r1_code, "text in column 'gold_standard_solution'",
           HUB + "open-r1/verifiable-coding-problems-python"),
    Format("HumanEval", ("entry_point",), humaneval, SOLUTION, "https://github.com/openai/human-eval"),
    Format("MBPP", ("test_list",), mbpp, "text in column 'code'", HUB + "google-research-datasets/mbpp"),
    Format("APPS", ("input_output",), apps, "text in column 'solutions'", HUB + "codeparrot/apps"),
    Format("TRL prompt-completion", ("prompt", "completion"), trl, COMPLETION, TRL),
    Format("TRL prompt-only", ("prompt",), trl, COMPLETION, TRL),
    Format("OpenR1-Math-220k", ("problem", "generations"), openr1, "generation that is complete and verified",
           HUB + "open-r1/OpenR1-Math-220k"),
    Format("NuminaMath", ("problem", "solution", "source"), solved, SOLUTION, HUB + "AI-MO/NuminaMath-CoT"),
    Format("MATH-500", ("problem", "answer", "unique_id"), solved, SOLUTION, HUB + "HuggingFaceH4/MATH-500"),
    Format("MATH", ("problem", "solution", "level", "type"), solved, SOLUTION, HUB + "EleutherAI/hendrycks_math"),
    Format("GSM8K", ("question", "answer"), gsm8k, "text in column 'answer'", HUB + "openai/gsm8k", sign="####"),
    Format("GPQA", ("Question", "Correct Answer"), gpqa, "text in column 'Correct Answer'", HUB + "Idavidrein/gpqa"),
    Format("Bespoke-Stratos", ("system", "conversations"), sharegpt, TURN, HUB + "bespokelabs/Bespoke-Stratos-17k"),
    Format("ShareGPT", ("conversations",), sharegpt, TURN, HUB + "anon8231489123/ShareGPT_Vicuna_unfiltered"),
    Format("TRL messages", ("messages",), trl, TURN, TRL),
)
TEXT = Format("TRL text", ("text",), lambda row: {"text": text(row, "text")}, "text in column 'text'", TRL)
PROMPTS, ANSWERS = ("prompt", "problem", "question", "text"), ("answer", "solution", "ground_truth", "target", "tests")


def detect(head: Sequence[Row], prompt_key: str = "", answer_key: str = "") -> Format:
    """The format of a file by its first rows, of which some may be bad: one of `FORMATS`, or else columns by their usual names,
    or by those given."""
    row = {name: value for row in reversed(head) for name, value in row.items()}
    for flag, key in (("prompt", prompt_key), ("answer", answer_key)):
        if key and key not in row:
            raise ValueError(f"--{flag}-key {key}: no such column; there are {', '.join(row)}")
    for form in FORMATS if not (prompt_key or answer_key) else ():
        if all(name in row for name in form.columns) and any(form.sign in str(row.get("answer")) for row in head):
            return form
    prompt = prompt_key or next((name for name in PROMPTS if name in row), None)
    answer = answer_key or next((name for name in ANSWERS if any(row.get(name) is not None for row in head)), None)
    if prompt and answer:
        return Format(f"columns {prompt}, {answer}", (), partial(named, prompt, answer), f"text in column {answer!r}", "")
    if "text" in row and not (prompt_key or answer_key):
        return TEXT
    known = "; ".join(f"{form.name} ({', '.join(form.columns)})" for form in (*FORMATS, TEXT))
    raise ValueError(f"unknown columns: {', '.join(row) or 'none'}; --prompt-key and --answer-key name them. Known: {known}")
