"""SFT rows to token ids: each row alternates segments of prompt and of learned text."""

from collections.abc import Sequence
from itertools import repeat

from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.files import RowErrors
from r1mini.data.formats import Row, to_messages

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

    A row of text has two: the prompt, and the completion with its end token. A row that exceeds the
    context is reported to `errors`; `places` names the rows.
    """
    accepted = []
    for row, place in zip(rows, places or repeat("--data")):
        try:
            accepted.append((row, place, segment_texts(row, template)))
        except ValueError as error:  # the template rejects it
            errors.report(f"{place}: {error}")
    texts = [text for *_, segments in accepted for text in segments]
    ids = iter(tokenizer.encode_batch(texts))
    encoded = []
    for row, place, segments in accepted:
        segments = [next(ids) for _ in segments]
        if is_plain_text(row, template):
            segments[-1] = [*segments[-1], tokenizer.eos_id]
        bare = sum(segments, [])
        whole = tokenizer.with_bos(bare)
        if whole is not bare:
            segments[0] = [*tokenizer.bos_ids, *segments[0]]
        if len(whole) > context:
            errors.report(
                f"{place}: {len(whole)} tokens do not fit the model's context of {context}"
            )
        else:
            encoded.append(([], whole) if train_on_prompt else tuple(segments))
    return encoded


def is_plain_text(row: Row, template: ChatTemplate) -> bool:
    """Whether the row is text for the model as it is, without a template that ends the turn."""
    return "text" in row or (isinstance(row.get("prompt"), str) and not template.wraps_text)


def segment_texts(row: Row, template: ChatTemplate) -> list[str]:
    """A row's text, split where prompt and learned text meet; the first segment is a prompt. In
    messages, the assistant's turns are learned, except in a prompt that has its own completion.

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
    for text, is_learned in template.segments(to_messages(row), in_prompt):
        if is_learned == (len(segments) % 2 == 0):
            segments[-1] += text
        else:
            segments.append(text)
    return segments
