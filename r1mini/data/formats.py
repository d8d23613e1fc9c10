"""Dataset formats: converts a row of TRL, ShareGPT or a public dataset to TRL's columns.

`FORMATS` is the table, with one reader per format. A reader returns `prompt` and `completion` (both
text or both messages), `messages` or `text`, and columns that rewards need (`answer`); for
preference pairs, `prompt`, `chosen` and `rejected`. Text is used unchanged; messages go through a
chat template. ValueError for a row that does not fit the format. Left out: tool calls, images.
"""

import json
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os.path import commonprefix
from random import Random
from typing import Any, NamedTuple

from r1mini.checkpoint.chat_template import REASONING, squeezed
from r1mini.rewards.completion import extract_thinking
from r1mini.sandbox import convert
from r1mini.sandbox.convert import typed_column

Row = Mapping[str, Any]
Message = Mapping[str, str]
# A column is missing or mistyped.
READ_ERRORS = (ValueError, LookupError, TypeError, AttributeError)
REPLY_FIELDS = "completion chosen rejected".split()
TEXT_FIELDS = ["messages", "prompt", *REPLY_FIELDS, "text"]


def text(row: Row, name: str) -> str:
    """A column of text. ValueError for another type, a missing or blank one, or invalid Unicode."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        actual = f", found {value!r:.60}" if name in row else ""
        raise ValueError(f"no text in column {name!r}{actual}")
    check_unicode(value, f"column {name!r}: ")
    return value


def check_unicode(value: Any, place: str = "") -> None:
    """ValueError for text in a JSON value that UTF-8 cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        excerpt = error.object[max(0, error.start - 20) :][:60]
        reason = "not valid Unicode (a lone surrogate or a byte that is not UTF-8)"
        raise ValueError(f"{place}{reason} in {excerpt!r}") from None


ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}


def messages(row: Row, name: str) -> list[Message]:
    """A column of messages, without empty system messages."""
    result = []
    for number, message in enumerate(row[name], 1):
        try:
            if fields := read_message(message):
                result.append(fields)
        except ValueError as error:
            raise ValueError(f"column {name!r}, message {number}: {error}") from None
    return result


def is_empty(value: Any) -> bool:
    return not value or not str(value).strip()


def read_message(message: Row) -> Message:
    """`role` and `content` (text or parts), or ShareGPT's `from` and `value`; an assistant's
    `reasoning_content`, under any of its names, and its `weight` if that is 0. An empty system
    message is {}.

    ValueError for another role, tool calls, images, another weight than 0 and 1, and for reasoning
    that is not text, not the assistant's, under another name, or unlike other reasoning of the
    message, also in the content.
    """
    content = message.get("content", message.get("value"))
    role = message.get("role", message.get("from"))
    role = ROLES.get(role, role)
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role {role!r:.60} is not system, user or assistant")
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise ValueError(f"{key!r}: tool calls are not supported")
    if isinstance(content, list):
        for part in content:
            if (kind := part.get("type", "text")) not in ("text", "input_text", "output_text"):
                raise ValueError(f"content of type {kind!r} is not supported")
        content = "".join(part["text"] for part in content)
    if role == "system" and is_empty(content):
        return {}
    names = [key for key in REASONING if not is_empty(message.get(key))]
    for key, value in message.items():
        unread = key not in REASONING and re.search("reason|think|thought", key, re.IGNORECASE)
        if unread and isinstance(value, str if names else str | list) and not is_empty(value):
            raise ValueError(f"reasoning must be named {REASONING[0]!r}, not {key!r}")
    content = "" if names and is_empty(content) else text({"content": content}, "content")
    fields = {"role": role, "content": content}
    if role != "assistant":
        if names:
            raise ValueError(f"{names[0]!r} in a message of role {role!r}")
        return fields
    not_learned = False in (message.get("train"), message.get("loss"))
    weight = 0 if not_learned else message.get("weight")
    if weight not in (0, 1, None):
        raise ValueError(f"'weight' must be 0 or 1, not {weight!r:.60}")
    if weight == 0:
        fields["weight"] = 0
    thoughts = {text(message, key).strip() for key in names}
    if names and "think>" in content + "".join(thoughts):
        names.append("<think> tags")
        thoughts.add(extract_thinking(content).strip())
    elif names:
        fields["reasoning_content"] = message[names[0]]
    if len(thoughts) > 1:
        raise ValueError(f"{' and '.join(map(repr, names))} differ")
    return fields


def chat(prompt: str | list[Message], reply: str | None = None, **columns: Any) -> dict:
    """A prompt and the assistant's reply, if any, as messages. ValueError if that is not text."""
    if not isinstance(reply, str | None):
        raise ValueError(f"the reply must be text, not {reply!r:.60}")
    fields = {"prompt": to_messages({"prompt": prompt}), **columns}
    if reply:
        fields["completion"] = to_messages({"completion": reply})
    return fields


def code_chat(row: Row, question: str, reply: str) -> dict:
    """A question and its program in a code block; `solution` is the program alone, or None."""
    code = re.sub(r"(?s).*?```(?:python)?[ \t]*\n(.*?)```.*", r"\1", reply)
    if code.strip() and "```" not in reply:
        reply = f"```python\n{code.strip()}\n```"
    id = row.get("task_id", row.get("problem_id"))
    return chat(question, reply, solution=code or None, id=id)


def to_messages(fields: Row, names: Sequence[str] = TEXT_FIELDS) -> list[Message]:
    """A reader's fields as messages; text becomes a user's message, a reply an assistant's."""
    result = []
    for name in names:
        value = fields.get(name) or []
        if isinstance(value, str):
            role = "assistant" if name in REPLY_FIELDS else "user"
            value = [{"role": role, "content": value}]
        result += value
    return result


def text_or_messages(row: Row, name: str) -> str | list[Message]:
    """A column of either."""
    return (messages if isinstance(row.get(name), list) else text)(row, name)


def trl(row: Row) -> dict:
    """TRL's columns, with text or messages, and a gold by any of its names.

    UltraChat's `prompt` only repeats its messages.
    """
    if "completion" in row:
        names = ["prompt", "completion"]
    else:
        names = ["messages"] if row.get("messages") else ["prompt"]
    fields = {name: text_or_messages(row, name) for name in names}
    if names == ["prompt"] and (reply := written_reply(row)):  # verl's `response`
        is_text = isinstance(fields["prompt"], str)
        fields["completion"] = reply if is_text else to_messages({"completion": reply})
    for name in GOLDS:
        if row.get(name) is not None:
            fields.setdefault("answer", row[name])
    return fields


MARKERS = {  # of Bespoke-Stratos
    r"<\|begin_of_thought\|>": "<think>",
    r"<\|end_of_thought\|>": "</think>",
    r"<\|begin_of_solution\|>\s*|\s*<\|end_of_solution\|>": "",
}


def sharegpt(row: Row) -> dict:
    """Markers of thinking become <think> and </think>, in system prompts too."""
    turns = list(row["conversations"])
    if row.get("system"):
        turns.insert(0, {"from": "system", "value": row["system"]})
    result = messages({"conversations": turns}, "conversations")
    for pattern, tag in MARKERS.items():
        result = [{**m, "content": re.sub(pattern, tag, m["content"])} for m in result]
    return {"messages": result}


def math(row: Row) -> dict:
    r"""The answer is in `answer`, or else in the last \boxed{} of `solution`."""
    return chat(text(row, "problem"), row.get("solution"))


def open_r1_math(row: Row) -> dict:
    """The reply is the first complete generation that Math-Verify, or else Llama, found correct."""
    question = text(row, "problem")
    for correct in ("correctness_math_verify", "correctness_llama"):
        names = ("generations", "is_reasoning_complete", correct)
        for reply, *flags in zip(*(row.get(name) or [] for name in names)):
            if all(flags):
                return chat(question, reply)
    return chat(question)


def gsm8k(row: Row) -> dict:
    r"""The answer follows `####`. The reply is the solution without the calculator's `<<…>>`, with
    the answer in `\boxed{…}`, where rewards look for it.

    >>> row = {"question": "900+300?", "answer": "900+300=<<900+300=1200>>1200\n#### 1,200"}
    >>> gsm8k(row)["completion"][0]["content"]
    '900+300=1200\n\\boxed{1200}'
    """
    solution = text(row, "answer")
    steps, marker, answer = re.sub(r"<<.*?>>", "", solution).rpartition("####")
    answer = answer.strip().replace(",", "")  # of thousands
    if not marker or not answer or "\n" in answer:
        raise ValueError(f"column 'answer': no answer after '####' in {solution[-60:]!r}")
    reply = rf"{steps}\boxed{{{answer}}}"
    return chat(text(row, "question"), reply, answer=answer, solution=solution)


def countdown(row: Row) -> dict:
    """The embedded task checks it: each number exactly once. The prompt is TinyZero's."""
    numbers, target = row["nums"], row["target"]
    if (
        not isinstance(numbers, list)
        or not 1 <= len(numbers) <= 6
        or not all(type(n) is int and 0 <= n < 100 for n in numbers)
    ):
        raise ValueError(
            f"column 'nums': must be one to six integers from 0 to 99, not {numbers!r:.60}"
        )
    if type(target) is not int:
        raise ValueError(f"column 'target': must be an integer, not {target!r:.60}")
    question = (
        f"Using the numbers {numbers}, create an equation that equals {target}. You can use basic "
        "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work "
        "in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
        "example <answer> (1 + 2) / 3 </answer>."
    )
    fields = trl(row) if "prompt" in row else chat(question)
    fields.pop("answer", None)  # TinyZero's has the numbers and the target again
    return {**fields, "task": "countdown", "numbers": numbers, "target": target}


def written_reply(row: Row) -> str:
    """What stands beside an answer for SFT to learn; "" without it."""
    texts = [row[name] for name in REPLIES if isinstance(row.get(name), str)]
    return next(filter(str.strip, texts), "")


LETTERS = "ABCDEFGHIJ"


def gpqa(row: Row) -> dict:
    """The order of the choices depends on the question alone."""
    question = text(row, "Question").strip()
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    options = [text(row, name).strip() for name in names]
    correct = options[0]
    Random(question).shuffle(options)
    columns = {"Question": question, "choices": options, "correct": options.index(correct)}
    return choices("Question", ["correct"], columns)


def find_choices(row: Row) -> dict:
    """A row's choices by label: texts (MMLU) by index, texts with labels (ARC, in two spellings;
    MedQA), or columns such as `A` or `option_a` by name, as some data sets count them from 1."""
    match next((row[name] for name in CHOICES if row.get(name)), None):
        case {"text": [*texts], "label": [*labels]}:
            if len({*labels}) < len(texts):
                raise ValueError(f"choices need a label each, not {labels!r:.60}")
            return dict(zip(labels, texts))
        case [{"text": _, "label": _}, *_] as pairs:
            return {pair.get("label"): pair.get("text") for pair in pairs}
        case {**by_label}:
            return by_label
        case [*texts]:
            return dict(enumerate(texts))
        case _:
            named = {
                name: value
                for name, value in sorted(row.items())
                if CHOICE_COLUMN.fullmatch(name) and isinstance(value, str)
            }
            return named if len(named) > 1 else {}


def has_choices(row: Row) -> bool:
    try:
        return bool(find_choices(row))
    except READ_ERRORS:  # each row is checked when it is read
        return True


def mark(name: Any) -> str:
    """A label or a choice without the signs around it, in capitals."""
    return str(name).strip("().: ").upper() or str(name)


def choices(prompt: str, golds: Sequence[str], row: Row) -> dict:
    """A question with choices; the answer is a letter, also in the reply without another.

    ValueError unless the columns of golds name one choice, by label, letter or text.
    """
    by_label = find_choices(row)
    while len(by_label) > 2 and [*by_label.values()][-1] in (
        None,
        "",
    ):  # four choices in five columns
        by_label.popitem()
    if not 2 <= len(by_label) <= len(LETTERS):
        raise ValueError(f"must be a list of 2 to {len(LETTERS)} choices, not {by_label!r:.90}")
    values = {name: row[name] for name in golds if row.get(name) is not None}
    correct = set(LETTERS)
    for value in values.values():
        named = {
            letter
            for letter, (label, choice) in zip(LETTERS, by_label.items())
            if mark(value) in (letter, mark(label), isinstance(value, str) and mark(choice))
        }
        correct &= named or correct
    if len(correct) != 1:
        raise ValueError(f"no single choice is named by {values!r:.60} of {by_label!r:.90}")
    shown = {}
    for letter, choice in zip(LETTERS, by_label.values()):
        choice = re.sub(rf"^\(?{letter}\)", "", str(choice))
        shown[text({"choice": choice}, "choice").strip()] = letter
    if len(shown) < len(by_label):
        raise ValueError(f"two choices are the same: {list(by_label.values())}")
    lines = "".join(f"\n{letter}) {choice}" for choice, letter in shown.items())
    *before, last = to_messages({"prompt": text_or_messages(row, prompt)})
    question = f"{last['content']}\n{lines}\n\nPut the letter of the right choice in \\boxed{{}}."
    [letter] = correct
    reply = written_reply(row) or rf"\boxed{{{letter}}}"
    return chat([*before, {**last, "content": question}], reply, answer=letter)


def humaneval(row: Row) -> dict:
    """HumanEval (arXiv 2107.03374): the canonical solution continues the prompt."""
    prompt = text(row, "prompt")
    return code_chat(row, prompt, prompt + text(row, "canonical_solution"))


def mbpp(row: Row) -> dict:
    """MBPP (arXiv 2108.07732), also sanitized (`prompt`). The text does not name the function, so
    the prompt shows the first assert."""
    question = text(row, "text" if "text" in row else "prompt")
    prompt = f"{question}\n\nExample:\n{convert.mbpp_asserts(row)[0]}"
    return code_chat(row, prompt, text(row, "code"))


def apps(row: Row) -> dict:
    """APPS (arXiv 2105.09938), and TACO, which adds `time_limit`."""
    prompt = f"{text(row, 'question')}\n\n{typed_column(row, 'starter_code', str, '')}".strip()
    solution, *_ = typed_column(row, "solutions", list, []) or [""]
    fields = code_chat(row, prompt, str(solution))
    if "time_limit" in row:  # "2.0 seconds", or null
        seconds = re.match(r"\d+(\.\d+)?", str(row["time_limit"]))
        fields["time_limit"] = float(seconds[0]) if seconds else 2.0
    return fields


def open_r1_code(row: Row) -> dict:
    """open-r1's code; its solution may be a reply with a code block."""
    name = next(filter(row.get, ("prompt", "problem", "problem_statement")), "prompt")
    return code_chat(row, text(row, name), typed_column(row, "gold_standard_solution", str, ""))


def named_columns(prompt: str, answer: str, row: Row) -> dict:
    """Columns by name. The answer is in the box of a `solution`, or else the whole column.

    SFT learns the written reply, or else the answer.
    """
    question, value = text_or_messages(row, prompt), row.get(answer)
    if value is None or answer == "tests":
        return chat(question)
    if isinstance(value, list) and len(value) == 1:  # OlympiadBench
        value = value[0]
    if isinstance(value, list | dict):
        raise ValueError(f"column {answer!r}: must be text or a number, not {value!r:.60}")
    reply = written_reply(row) if answer in GOLDS else ""
    return chat(question, reply or str(value), answer=None if answer == "solution" else value)


# -- preference pairs ------------------------------------------------------------------------------

# How transcripts of Anthropic's begin, and who speaks next in them.
HUMAN = re.compile(r"\s*Human:")
SPEAKER = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
# Messages that a table's export wrote as text, in Python's notation or one alone.
UNREAD_MESSAGES = re.compile(
    r"""\s*(\[\s*\{\s*'(role|content|from|value)'|\{\s*['"](role|from)['"])"""
)
# Two characters of one word; a Chinese or Japanese character is a word.
IN_WORD = re.compile(r"[^\s\u3000-\u9fff\uff00-\uffef]{2}")


def preference(prompt_key: str, row: Row) -> dict:
    """The prompt of a pair and its two replies: all text, or all messages.

    TRL's rows and their relatives: the prompt is a column, or that with which both sides begin.
    Text stays text below `prompt`; below another name, or beside a system prompt, it is a user's
    message.
    """
    sides = [pair_side(row, name) for name in ("chosen", "rejected")]
    kinds = ["text" if isinstance(side, str) else "messages" for side in sides]
    if kinds[0] != kinds[1]:
        raise ValueError(f"chosen is {kinds[0]}, but rejected is {kinds[1]}")
    is_text, name = kinds[0] == "text", prompt_key or pair_prompt(row)
    if not is_text and all(side[0]["role"] != "assistant" for side in sides):
        fields = shared_messages(*(with_system(row, side) for side in sides))
        if name in (prompt_key, "prompt") and row.get(name) is not None:
            check_repeated(pair_column(row, name), name, fields["prompt"])
        return fields
    if not name and is_text:
        return shared_text(*sides)
    if not name:
        raise ValueError("no prompt: a conversation begins with a message of role 'assistant'")
    prompt = pair_column(row, name)
    if is_text and isinstance(prompt, str):
        if HUMAN.match(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
            return shared_messages(*(transcript(prompt + side, name) for side in sides))
        if name == "prompt" and not system_prompt(row):
            return {"prompt": add_context(row, prompt), "chosen": sides[0], "rejected": sides[1]}
    prompt = add_context({**row, name: None}, prompt)
    prompt = with_system(row, to_messages({"prompt": prompt}))
    return shared_messages(*(prompt + to_messages({"completion": side}) for side in sides))


def pair_prompt(row: Row) -> str:
    """The first column that can be a prompt, of those with a value if there are any; or ""."""
    names = [name for name in PAIR_PROMPTS if name in row]
    names.sort(key=lambda name: row[name] is None)
    return names[0] if names else ""


def pair_column(row: Row, name: str) -> str | list[Message]:
    """A column of text or messages, of which one may stand alone; weights are for SFT."""
    if isinstance(row.get(name), dict):
        row = {name: [row[name]]}
    value = text_or_messages(row, name)
    if isinstance(value, str):
        return value
    if not value:
        raise ValueError(f"no messages in column {name!r}")
    return [{key: message[key] for key in message if key != "weight"} for message in value]


def pair_side(row: Row, name: str) -> str | list[Message]:
    """A column of text or messages; Anthropic's transcripts are messages."""
    side = pair_column(row, name)
    if isinstance(side, str) and UNREAD_MESSAGES.match(side):
        raise ValueError(f"column {name!r}: messages must be a list in JSON, not {side!r:.60}")
    is_transcript = isinstance(side, str) and HUMAN.match(side) and "\n\nAssistant:" in side
    return transcript(side, name) if is_transcript else side


def transcript(text: str, name: str) -> list[Message]:
    r"""Anthropic's text as messages.

    >>> [message["content"] for message in transcript("\n\nHuman: 1+1?\n\nAssistant: 2", "chosen")]
    ['1+1?', '2']
    """
    _, *parts = SPEAKER.split(text)
    turns = zip(parts[::2], parts[1::2])
    turns = [{"role": role.lower(), "content": content.strip()} for role, content in turns]
    return messages({name: turns}, name)


def system_prompt(row: Row) -> Any:
    values = (row.get(name) for name in ("system", "system_prompt"))
    return next((value for value in values if not is_empty(value)), "")


def with_system(row: Row, conversation: list[Message]) -> list[Message]:
    """The conversation, after the row's system prompt if it has none of its own."""
    system = system_prompt(row)
    if not system or conversation[0]["role"] == "system":
        return conversation
    return [{"role": "system", "content": text({"system": system}, "system")}, *conversation]


def shared_messages(chosen: list[Message], rejected: list[Message]) -> dict:
    """Two conversations as the messages with which both begin, and the rest of each.

    ValueError unless both go on with the assistant's message, and end with one.
    """
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if (role := side[-1]["role"]) != "assistant":
            raise ValueError(f"column {name!r}: the last message is of role {role!r}")
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    prompt, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
    for first in (chosen[0], rejected[0]):
        if not prompt or first["role"] != "assistant":
            raise ValueError(
                f"chosen and rejected have different prompts, {chosen[0]['content']!r:.60} and "
                f"{rejected[0]['content']!r:.60}"
            )
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with a message of role 'assistant'")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def shared_text(chosen: str, rejected: str) -> dict:
    """Two texts as the prompt with which both begin, and the rest of each.

    No word is split, and a space belongs to the reply (as in TRL), which is never blank.

    >>> shared_text("It is blue.", "It is black.")
    {'prompt': 'It is', 'chosen': ' blue.', 'rejected': ' black.'}
    """
    common = commonprefix([text.rstrip()[:-1] for text in (chosen, rejected)])
    end = len(common)
    while any(IN_WORD.fullmatch(text[max(0, end - 1) : end + 1]) for text in (chosen, rejected)):
        end -= 1
    prompt = common[:end].rstrip(" ")
    if not prompt.strip():
        raise ValueError(
            f"no prompt: chosen and rejected begin differently, {chosen!r:.60} and {rejected!r:.60}"
        )
    end = len(prompt)
    return {"prompt": prompt, "chosen": chosen[end:], "rejected": rejected[end:]}


def check_repeated(prompt: str | list[Message], name: str, shared: list[Message]) -> None:
    """ValueError unless a prompt's column fits the beginning of the two conversations.

    They may add a system message; text is one user's message, or it contains them all.
    """
    if isinstance(prompt, str):
        users = [squeezed(message["content"]) for message in shared if message["role"] == "user"]
        fits = squeezed(prompt) in users or all(user in squeezed(prompt) for user in users)
    else:
        start = int(shared[0]["role"] == "system" != prompt[0]["role"])
        fits = prompt == shared[start:][: len(prompt)]
    if not fits:
        last = to_messages({"prompt": prompt})[-1]["content"]
        raise ValueError(
            f"chosen and rejected do not begin with column {name!r}, {last!r:.60}, but with "
            f"{shared[-1]['content']!r:.60}"
        )


class Format(NamedTuple):
    name: str
    columns: str  # a file has the first format whose columns it has
    read: Callable[[Row], dict]
    target: str  # what SFT learns; there, a row without it is an error
    tests: Callable[[Row], convert.Tests] | None = None  # of code datasets
    answer_marker: str = ""  # must occur in `answer`


COMPLETION = "text in column 'completion'"
SOLUTION = "text in column 'solution'"
GENERATION = "generation that is complete and verified"
TURN = "turn of an assistant"
FORMATS = (
    # huggingface.co/datasets/Jiayi-Pan/Countdown-Tasks-3to4
    Format("Countdown-Tasks-3to4", "nums, target", countdown, COMPLETION),
    # huggingface.co/datasets/open-r1/verifiable-coding-problems-python
    Format(
        "open-r1 code",
        "verification_info",
        open_r1_code,
        "text in column 'gold_standard_solution'",
        convert.open_r1_row_tests,
    ),
    # github.com/openai/human-eval
    Format("HumanEval", "entry_point", humaneval, SOLUTION, convert.humaneval_tests),
    # huggingface.co/datasets/google-research-datasets/mbpp
    Format("MBPP", "test_list", mbpp, "text in column 'code'", convert.mbpp_tests),
    # huggingface.co/datasets/codeparrot/apps
    Format("APPS", "input_output", apps, "text in column 'solutions'", convert.apps_tests),
    # huggingface.co/docs/trl/dataset_formats
    Format("TRL prompt-completion", "prompt, completion", trl, COMPLETION),
    # huggingface.co/datasets/HuggingFaceH4/ultrachat_200k
    Format("UltraChat", "prompt, messages", trl, TURN),
    Format("TRL prompt-only", "prompt", trl, COMPLETION),
    # huggingface.co/datasets/open-r1/OpenR1-Math-220k
    Format("OpenR1-Math-220k", "problem, generations", open_r1_math, GENERATION),
    # huggingface.co/datasets/AI-MO/NuminaMath-CoT
    Format("NuminaMath", "problem, solution, source", math, SOLUTION),
    # huggingface.co/datasets/HuggingFaceH4/MATH-500
    Format("MATH-500", "problem, answer, unique_id", math, SOLUTION),
    # huggingface.co/datasets/EleutherAI/hendrycks_math
    Format("MATH", "problem, solution, level, type", math, SOLUTION),
    # huggingface.co/datasets/openai/gsm8k
    Format("GSM8K", "question, answer", gsm8k, "text in column 'answer'", answer_marker="####"),
    # huggingface.co/datasets/Idavidrein/gpqa
    Format("GPQA", "Question, Correct Answer", gpqa, "text in column 'Correct Answer'"),
    # huggingface.co/datasets/bespokelabs/Bespoke-Stratos-17k
    Format("Bespoke-Stratos", "system, conversations", sharegpt, TURN),
    # huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered
    Format("ShareGPT", "conversations", sharegpt, TURN),
    Format("TRL messages", "messages", trl, TURN),
)
# huggingface.co/docs/trl/dataset_formats
PAIRS = Format("preference pairs", "chosen, rejected", partial(preference, ""), "")
TEXT = Format("TRL text", "text", lambda row: {"text": text(row, "text")}, "text in column 'text'")
PROMPTS = "prompt problem stem question question_stem query ctx sentence instruction text".split()
PAIR_PROMPTS = ["prompt", "conversations", *(name for name in PROMPTS if name != "prompt"), "input"]
GOLDS = "answer ground_truth expected_answer final_answer target".split()
REPLIES = "solution output response generated_solution".split()
ANSWERS = [*GOLDS, "solution", "tests", "output", "response"]
CHOICES = "choices options endings alternatives answer_choices answer_options".split()
NESTED = [*TEXT_FIELDS, "conversations", *CHOICES]
CHOICE_COLUMN = re.compile(r"(option|choice|answer|ending|op|sol)?_?([a-j]|\d)")
CORRECT = (  # columns that name the right choice
    "answer_index answer_idx answerkey answer_key answer_letter correct correct_option "
    "correct_answer label gold cop"
).split()
# Text that belongs to a question, from the nearest to the first; Alpaca's `input` is below it.
CONTEXTS = "input body background paragraph story article passage context instruction".split()


def common_columns(row: Row) -> Row:
    """The columns, also under lower-case names with `_`, and those in ARC's `question` and verl's
    `reward_model`. Messages and choices may be JSON text, as in a CSV file. Argilla's
    `chosen_response` and `rejected_response` are `chosen` and `rejected`."""
    row = {name: from_json(name, value) for name, value in row.items()}
    nested = {}
    for name in ("question", "reward_model"):
        if isinstance(row.get(name), dict):
            nested |= row[name]
    lower = {name.strip().lower().replace(" ", "_"): value for name, value in row.items()}
    pair = {
        name: lower[f"{name}_response"]
        for name in ("chosen", "rejected")
        if f"{name}_response" in lower
    }
    return {**nested, **pair, **lower, **row}


def from_json(name: str, value: Any) -> Any:
    """Messages or choices that are JSON text as what they are; any other value as it is."""
    begins = r"\s*[\[{]" if name in CHOICES else r'\s*\[\s*\{\s*"(?:role|from|content|value)"'
    try:
        return json.loads(value) if name in NESTED and re.match(begins, value) else value
    except (ValueError, TypeError):
        return value


def add_context(row: Row, prompt: str | list[Message]) -> str | list[Message]:
    """The prompt with the row's context before the question; Alpaca's `input` after it."""
    if isinstance(prompt, list):
        *before, last = prompt
        return [*before, {**last, "content": add_context(row, last["content"])}]
    question = prompt
    for name in CONTEXTS:
        part = row.get(name)
        if is_empty(part) or not isinstance(part, str):
            continue
        # A question may have it already: at its start, as a line or, if it is long, anywhere.
        shown = [part] if name != "input" and question.startswith(part) else question.split("\n")
        if part not in (question if "prompt" in row and len(part) > 30 else shown):
            prompt = f"{prompt}\n{part}" if name == "input" else f"{part}\n{prompt}"
    return prompt


def detect(head: Sequence[Row], prompt_key: str = "", answer_key: str = "") -> Format:
    """The format of a file, detected from its first rows; some of them may be bad.

    One of `FORMATS`, or else columns with common names or those of the flags.
    """
    head = list(map(common_columns, head))
    columns = ChainMap(*head)
    for flag, key in (("prompt", prompt_key), ("answer", answer_key)):
        if key and key not in columns:
            raise ValueError(f"--{flag}-key {key}: no such column in {', '.join(columns)}")
    if {"chosen", "rejected"} <= columns.keys() and not answer_key:
        return PAIRS._replace(read=partial(preference, prompt_key))
    custom = prompt_key or answer_key
    prompt = prompt_key or next((name for name in PROMPTS if name in columns), None)
    if prompt and "completion" not in columns and any(map(has_choices, head)):
        golds = [answer_key] if answer_key else [*ANSWERS, *CORRECT]
        return Format("choices", "", partial(choices, prompt, golds), "right choice")
    if not custom:
        for row_format in FORMATS:
            has_columns = set(row_format.columns.split(", ")) <= columns.keys()
            if has_columns and any(
                row_format.answer_marker in str(row.get("answer")) for row in head
            ):
                return row_format
    answers = (name for name in ANSWERS if any(row.get(name) is not None for row in head))
    answer = answer_key or next(answers, None)
    if prompt and answer:
        read = partial(named_columns, prompt, answer)
        return Format(f"columns {prompt}, {answer}", "", read, f"text in column {answer!r}")
    if "text" in columns and not custom:
        return TEXT
    known = "; ".join(f"{known.name} ({known.columns})" for known in (*FORMATS, TEXT, PAIRS))
    raise ValueError(
        f"unknown columns: {', '.join(columns) or 'none'}; name the columns with "
        f"--prompt-key and --answer-key, or use a known format: {known}"
    )
