"""Rows of a data file for supervised fine-tuning, and the token ids of any rows."""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

from r1mini.checkpoint.chat_template import ChatTemplate, is_learned
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.files import RowErrors
from r1mini.data.formats import TEXT_FIELDS, Row, check_unicode, to_messages
from r1mini.data.rows import Example, convert_rows


def sft_rows(
    path: Path,
    *,
    prompt_key: str = "",
    answer_key: str = "",
    skip_bad: bool = False,
    decontaminate: Sequence[str] = (),
) -> dict[str, Row]:
    """{file and line: row}; a row is prompt and completion (text or messages), messages, or text.

    Duplicates are kept and counted, or skipped with `--skip-bad`.
    """
    errors = RowErrors(skip_bad)
    first_place = {}
    duplicates = []

    def convert(example: Example) -> Row:
        row = sft_row(example)
        first = first_place.setdefault(repr(row), example.place)
        if first != example.place:
            if skip_bad:
                raise ValueError(f"duplicate of {first}")
            duplicates.append(example.place)
        return row

    rows = convert_rows(path, convert, errors, prompt_key, answer_key, decontaminate)
    if duplicates:
        print(f"{path}: {len(duplicates)} duplicate rows, the first at {duplicates[0]}", flush=True)
    return rows


def sft_row(example: Example) -> Row:
    """The text or messages of an example. ValueError if it has nothing to learn."""
    row = {name: value for name, value in example.fields.items() if name in TEXT_FIELDS}
    if "text" not in row and not any(map(is_learned, to_messages(row, ("messages", "completion")))):
        raise ValueError(f"no {example.format.target}")
    if isinstance(row.get("prompt"), str) != isinstance(row.get("completion"), str):
        raise ValueError("columns 'prompt' and 'completion': one is text, the other messages")
    check_unicode(row)
    return row


# -- token ids -------------------------------------------------------------------------------------

Segments = tuple[list[int], ...]


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: int,
    train_on_prompt: bool = False,
    places: Sequence[str] = (),
    errors: RowErrors = RowErrors(),
) -> list[Segments]:
    """The token ids of each row's segments; every second segment is learned.

    A row of text has two: the prompt, and the completion with its end token. The ids are those of
    the whole conversation. A row that exceeds the context is reported to `errors`; `places` names
    the rows.
    """
    accepted = []
    for row, place in zip(rows, places or repeat("--data")):
        try:
            accepted.append((row, place, segment_texts(row, template)))
        except ValueError as error:  # the template rejects it
            errors.report(f"{place}: {error}")
    encodings = tokenizer.encode_segments([texts for *_, texts in accepted])
    if count := sum(len(texts) == 2 and texts[0].endswith(" ") for *_, texts in accepted):
        print(f"{count} prompts end in a space, which may be learned as part of the next token")
    encoded = []
    for (row, place, texts), segments in zip(accepted, encodings):
        try:
            segments = complete(row, texts, segments, tokenizer, template, context)
        except ValueError as error:
            errors.report(f"{place}: {error}")
        else:
            encoded.append(([], sum(segments, [])) if train_on_prompt else segments)
    return encoded


def complete(
    row: Row,
    texts: Sequence[str],
    segments: list[list[int]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: int,
) -> Segments:
    """The segments of `texts` with BOS, and with EOS unless a template or the text has an end.

    ValueError if they do not fit the context.
    """
    if is_plain_text(row, template) and not tokenizer.has_end(texts[-1]):
        segments[-1] = [*segments[-1], tokenizer.eos_id]
    bare = sum(segments, [])
    whole = tokenizer.with_bos(bare)
    if whole is not bare:
        segments[0] = [*tokenizer.bos_ids, *segments[0]]
    if len(whole) > context:
        raise ValueError(f"{len(whole)} tokens do not fit the model's context of {context}")
    return tuple(segments)


def is_plain_text(row: Row, template: ChatTemplate) -> bool:
    """Whether the row is text for the model as it is, without a template that ends the turn."""
    return "text" in row or (isinstance(row.get("prompt"), str) and not template.wraps_text)


def segment_texts(row: Row, template: ChatTemplate) -> list[str]:
    """A row's text, split where prompt and learned text meet; the first segment is a prompt. In
    messages, the assistant's turns are learned, except those of `weight` 0 and in a prompt that has
    its own completion.

    >>> from r1mini.checkpoint.chat_template import plain_template
    >>> messages = [{"role": role, "content": role[:1]} for role in ("user", "assistant", "user")]
    >>> segment_texts({"messages": messages}, plain_template("$"))
    ['u\\n', 'a$', 'u\\n']
    """
    if "text" in row:
        return ["", row["text"]]
    if is_plain_text(row, template):
        return [row["prompt"], row["completion"]]
    segments = [""]
    in_prompt = len(to_messages(row, ("prompt",)))
    for text, learned in template.segments(to_messages(row), in_prompt):
        if learned == (len(segments) % 2 == 0):
            segments[-1] += text
        else:
            segments.append(text)
    return segments
