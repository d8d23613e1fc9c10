"""The terminal: a conversation through the model's template, answers written as they are drawn, thinking dimmed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from r1mini import template
from r1mini.model import Transformer
from r1mini.records import opened
from r1mini.rollout import Sampling, stream
from r1mini.tokenizer import Stream, Tokenizer


def chat(model: Transformer, tokens: Tokenizer, form: template.Template, system: Sequence[Mapping], how: Sampling,
         seed: int) -> None:
    """Each answer is drawn with the seed and its number, so a conversation comes out the same when it is typed again."""
    with suppress(ImportError):
        import readline  # noqa: F401  (with it, input() edits its line)
    alone, context = form.source == template.PLAIN, model.config.max_position_embeddings
    print("Ctrl-C stops an answer; an empty line or Ctrl-D leaves; "
          + ("no template: each prompt stands alone." if alone else "/new begins a new conversation."))
    messages, number = [*system], 0
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            line = print()
        if not line:
            return
        if line == "/new" and not alone:
            messages = [*system]
            continue
        asked = [*(system if alone else messages), {"role": "user", "content": line}]
        try:
            prompt = form.render(asked)
            length = len(tokens.begun(tokens.encode(prompt)))
        except ValueError as error:  # half a character, or what the template refuses
            print(f"not sent: {error}")
            continue
        if length >= context:  # nothing is dropped behind the user's back
            print(f"not sent: {length} tokens, and the model's context holds {context}"
                  + ("" if alone else "; /new begins a new conversation"))
            continue
        screen, note = Screen(), ""
        try:
            ended = reply(model, tokens, prompt, how, seed, number, screen)
            note = "" if ended else f" [cut off at {min(how.max_new_tokens, context - length)} tokens]"
        except KeyboardInterrupt:
            note = " [stopped]"
        finally:
            screen.close(note)
        messages, number = [*asked, {"role": "assistant", "content": screen.text}], number + 1


def reply(model: Transformer, tokens: Tokenizer, prompt: str, how: Sampling, seed: int, step: int, screen: Screen) -> bool:
    """Writes the completion as it is drawn, after the `<think>` that the prompt may end with; whether it ended by itself."""
    screen.write(opened(prompt))
    decoder, token = Stream(tokens), None
    for token in stream(model, tokens, prompt, how, seed=seed, step=step):
        if token not in tokens.stop_ids:
            screen.write(decoder.add(token))
    screen.write(decoder.end())
    return token in tokens.stop_ids


class Screen:
    """Standard output, for one answer, which `text` collects. On a terminal thinking is dimmed (unless NO_COLOR is set) and
    control characters, by which a text could take the terminal over, are replaced."""

    TAGS = {"<think>": "\x1b[2m<think>", "</think>": "</think>\x1b[0m"}

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.tags = self.TAGS if self.terminal and not os.environ.get("NO_COLOR") else {}
        self.text = self.held = ""

    def write(self, piece: str) -> None:
        self.text += piece
        self.held += re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", piece) if self.terminal else piece
        last = self.held[self.held.rfind("<"):]  # perhaps the beginning of a tag
        ready = self.held.removesuffix(last) if any(tag != last and tag.startswith(last) for tag in self.tags) else self.held
        self.held = self.held[len(ready):]
        for tag, shown in self.tags.items():
            ready = ready.replace(tag, shown)
        print(ready, end="", flush=True)

    def close(self, note: str = "") -> None:
        print(self.held + ("\x1b[0m" if self.tags else "") + note)
