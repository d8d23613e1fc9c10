"""Chat in the terminal, through the model's template: answers appear as they are sampled, with the
thinking dimmed."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from r1mini.checkpoint.chat_template import PLAIN, Messages
from r1mini.checkpoint.tokenizer import StreamDecoder
from r1mini.evaluation.jobs import Session
from r1mini.records import think_prefix
from r1mini.sampler.sampler import stream


def chat(s: Session, system: Messages) -> None:
    """Samples each answer with the seed and its number: the same input gives the same answers."""
    with suppress(ImportError):
        import readline  # noqa: F401  (with it, input() can edit its line)
    single_turn, context = s.template.source == PLAIN, s.model.config.max_position_embeddings
    restart = "" if single_turn else "/new starts a new conversation"
    print(
        "Ctrl-C stops an answer; an empty line or Ctrl-D quits; "
        + (restart or "no chat template: each prompt is independent")
        + "."
    )
    messages, number = [*system], 0
    while line := read_line():
        if line == "/new" and not single_turn:
            messages = [*system]
            continue
        asked = [*(system if single_turn else messages), {"role": "user", "content": line}]
        try:
            prompt = s.template.render(asked)
            length = len(s.tokenizer.with_bos(s.tokenizer.encode(prompt)))
        except ValueError as error:  # not Unicode, or the template refuses it
            print(f"not sent: {error}")
            continue
        if length >= context:  # no message is dropped without telling the user
            excess = f"not sent: {length} tokens do not fit the model's context of {context}"
            print("; ".join(filter(None, [excess, restart])))
            continue
        limit = min(s.params.max_new_tokens, context - length)
        with Screen() as screen:
            try:
                finished = reply(s, prompt, number, screen)
                screen.note = "" if finished else f" [cut off at {limit} tokens]"
            except KeyboardInterrupt:
                screen.note = " [stopped]"
        messages = [*asked, {"role": "assistant", "content": screen.text}]
        number += 1


def read_line() -> str:
    """The next line; "" at Ctrl-C or Ctrl-D."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def reply(s: Session, prompt: str, step: int, screen: Screen) -> bool:
    """Writes the completion as it is sampled, after the `<think>` that the prompt may end with.
    Returns whether it ended with an end token."""
    screen.write(think_prefix(prompt))
    decoder, token = StreamDecoder(s.tokenizer), None
    for token in stream(s.model, s.tokenizer, prompt, s.params, seed=s.cfg.seed, step=step):
        if token not in s.tokenizer.stop_ids:
            screen.write(decoder.add(token))
    screen.write(decoder.flush())
    return token in s.tokenizer.stop_ids


class Screen:
    """Standard output for one answer; `text` collects it, and `note` follows it at the end.

    On a terminal, thinking is dimmed (unless NO_COLOR is set), and control characters are replaced,
    because a text could take over the terminal with them.
    """

    TAGS = {"<think>": "\x1b[2m<think>", "</think>": "</think>\x1b[0m"}

    def __init__(self):
        self.is_terminal = sys.stdout.isatty()
        self.tags = self.TAGS if self.is_terminal and not os.environ.get("NO_COLOR") else {}
        self.text = self.pending = self.note = ""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_) -> None:
        print(self.pending + ("\x1b[0m" if self.tags else "") + self.note)

    def write(self, piece: str) -> None:
        self.text += piece
        if self.is_terminal:
            piece = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", piece)
        ready, self.pending = self.pending + piece, ""
        last = ready[ready.rfind("<") :]  # perhaps the first part of a tag
        if any(tag != last and tag.startswith(last) for tag in self.tags):
            ready, self.pending = ready.removesuffix(last), last
        for tag, styled in self.tags.items():
            ready = ready.replace(tag, styled)
        print(ready, end="", flush=True)
