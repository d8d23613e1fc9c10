"""Preference pairs: two replies to a prompt, of which a person or a model preferred one.

What a reward model would learn wrongly from is refused by name: equal replies, ties, scores that
contradict the labels, replies to different prompts, and pairs that do not fit the context. No text
is ever cut: the end decides many a pair. Left out: strengths of a preference, unpaired labels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from r1mini.checkpoint.chat_template import PLAIN, ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.files import RowErrors
from r1mini.data.formats import Message, Row, check_unicode
from r1mini.data.rows import Example, convert_rows
from r1mini.data.sft import Segments, complete, segment_texts

SCORE = re.compile("score|rating|reward")
Tokens = tuple[tuple[int, ...], ...]  # a row's segments: the prompt, the answer with its end
DAY = "2024-07-26"  # Llama 3.1's default


class Pair(NamedTuple):
    prompt: str | list[Message]
    chosen: str | list[Message]  # text like the prompt, or messages: the assistant's first and last
    rejected: str | list[Message]
    columns: Row  # as in the file


def read_pairs(
    path: Path, *, prompt_key: str = "", skip_bad: bool = False, decontaminate: Sequence[str] = ()
) -> dict[str, Pair]:
    """{file and line: pair}. Duplicates are kept and counted, or skipped with `skip_bad`.

    Pairs that occur both ways round are kept and counted: annotators disagree. ValueError naming
    file, line and value for any other bad row; with `skip_bad` such rows are skipped and counted.
    """
    first_place: dict[str, str] = {}
    duplicates, reversals = [], []

    def convert(example: Example) -> Pair:
        pair = read_pair(example)
        prompt, chosen, rejected = map(repr, pair[:3])
        first = first_place.setdefault(prompt + chosen + rejected, example.place)
        if first != example.place:
            if skip_bad:
                raise ValueError(f"duplicate of {first}")
            duplicates.append(example.place)
        if prompt + rejected + chosen in first_place:
            reversals.append(example.place)
        return pair

    pairs = convert_rows(
        path, convert, RowErrors(skip_bad), prompt_key, "", decontaminate, pairs=True
    )
    if duplicates:
        print(f"{path}: {len(duplicates)} duplicate rows, the first at {duplicates[0]}", flush=True)
    if reversals:
        print(
            f"{path}: {len(reversals)} pairs are also there the other way round, the first at "
            f"{reversals[0]}",
            flush=True,
        )
    return pairs


def read_pair(example: Example) -> Pair:
    """ValueError for equal replies, and for scores that do not prefer the chosen one."""
    fields = example.fields
    pair = Pair(fields["prompt"], fields["chosen"], fields["rejected"], example.columns)
    check_unicode(pair[:3])
    if stripped(pair.chosen) == stripped(pair.rejected):
        reply = pair.chosen if isinstance(pair.chosen, str) else pair.chosen[-1]["content"]
        raise ValueError(f"chosen and rejected are equal: {reply!r:.60}")
    check_scores(example.columns)
    return pair


def stripped(reply: str | list[Message]) -> Any:
    """The reply without white space around its texts."""
    if isinstance(reply, str):
        return reply.strip()
    return [{name: text.strip() for name, text in message.items()} for message in reply]


def check_scores(columns: Row) -> None:
    """ValueError if a score of the chosen reply is not above that of the rejected one.

    >>> check_scores({"score_chosen": 2, "score_rejected": "8.0"})
    Traceback (most recent call last):
    ValueError: the wrong way round: score_chosen 2 is below score_rejected 8.0
    """
    for name in columns:
        other = name.replace("chosen", "rejected")
        if other == name or other not in columns or not SCORE.search(name.lower()):
            continue
        chosen, rejected = number(columns[name]), number(columns[other])
        shown = f"{name} {columns[name]!s:.40}", f"{other} {columns[other]!s:.40}"
        if chosen == rejected:
            raise ValueError(f"a tie: {shown[0]} and {shown[1]} are equal")
        if chosen < rejected:
            raise ValueError(f"the wrong way round: {shown[0]} is below {shown[1]}")


def number(value: Any) -> float:
    """A score, also as text, as in a CSV file; NaN for anything else, as where none was given."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


# -- token ids -------------------------------------------------------------------------------------


def answer_template(template: ChatTemplate) -> ChatTemplate:
    """With a chat template, prompts of text become a user's message, too. The day that a template
    may show is always the same, or a score would depend on it."""
    return replace(template, wraps_text=template.source != PLAIN, date=DAY)


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: int,
    places: Sequence[str] = (),
    errors: RowErrors = RowErrors(),
) -> list[tuple[Segments, Segments] | None]:
    """The token ids of each pair's sides, (prompt, chosen reply) and (prompt, rejected reply).

    A pair that the template rejects, that exceeds the context or whose sides have equal ids is
    reported to `errors`, and None stands in its place; `places` names the pairs.
    """
    places = places or ["--data"] * len(pairs)
    texts = {}  # of the two sides of pair i
    for i, pair in enumerate(pairs):
        try:
            texts[i] = [tuple(reply_texts(pair.prompt, reply, template)) for reply in pair[1:3]]
        except ValueError as error:
            errors.report(f"{places[i]}: {error}")
    distinct = list(dict.fromkeys(chain.from_iterable(texts.values())))  # most are in many pairs
    segments = dict(zip(distinct, tokenizer.encode_segments(distinct)))
    encoded = [None] * len(pairs)
    for i, sides in texts.items():
        row = {"prompt": pairs[i].prompt}
        try:
            chosen, rejected = (
                complete(row, side, [*segments[side]], tokenizer, template, context)
                for side in sides
            )
            if (ids := sum(chosen, [])) == sum(rejected, []):
                raise ValueError(f"chosen and rejected are the same {len(ids)} tokens")
            encoded[i] = (chosen, rejected)
        except ValueError as error:
            errors.report(f"{places[i]}: {error}")
    return encoded


def encode_reply(
    prompt: str | Sequence[Message],
    reply: str | Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: int,
) -> Segments:
    """The token ids of a prompt and of a reply to it, as a reward model sees them.

    The ids are those of the whole conversation, with one BOS at most. It ends as the template ends
    it, or with EOS for text. ValueError if the template rejects the
    conversation, or if it exceeds the context.
    """
    texts = reply_texts(prompt, reply, template)
    [segments] = tokenizer.encode_segments([texts])
    return complete({"prompt": prompt}, texts, segments, tokenizer, template, context)


def reply_texts(
    prompt: str | Sequence[Message], reply: str | Sequence[Message], template: ChatTemplate
) -> list[str]:
    """The text before the reply, and all after it. What a template writes after the end of the
    last turn belongs to it (Qwen's line end): public reward models score that token."""
    before, *texts = segment_texts({"prompt": prompt, "completion": reply}, template)
    return [before, "".join(texts)]
