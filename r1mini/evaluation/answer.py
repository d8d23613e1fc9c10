"""Answers prompts: of a flag, a pipe or a file, or in a chat in the terminal, where answers appear
as they are sampled, with the thinking dimmed."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from r1mini.checkpoint.chat_template import PLAIN, Messages
from r1mini.checkpoint.tokenizer import StreamDecoder
from r1mini.data.files import read_rows
from r1mini.evaluation.jobs import Session, job_settings, json_sha256, open_journal
from r1mini.infra.files import write_rows
from r1mini.records import Rollout, think_prefix
from r1mini.sampler.sampler import encode_prompts, sample, stream


def answer(session: Session) -> None:
    """Answers `--prompts`, `--prompt` or each line of a pipe; else starts a chat."""
    cfg = session.cfg
    system = [{"role": "system", "content": cfg.system}] if cfg.system else []
    if cfg.prompts:
        answer_file(session, system)
        return
    lines = [cfg.prompt]
    if not cfg.prompt:
        if sys.stdin is None:
            raise ValueError("no --prompt, and no standard input to read one from")
        if sys.stdin.isatty():
            chat(session, system)
            return
        lines = map(str.strip, sys.stdin)  # each as soon as it arrives
    for number, line in enumerate(filter(None, lines)):
        prompt = session.template.render([*system, {"role": "user", "content": line}])
        # ValueError before anything is shown.
        encode_prompts(session.model, session.tokenizer, [prompt])
        with Screen() as screen:
            reply(session, prompt, number, screen)


def reply(session: Session, prompt: str, step: int, screen: Screen) -> bool:
    """Writes the completion as it is sampled, after the `<think>` that the prompt may end with.
    Returns whether it ended with an end token."""
    tokenizer = session.tokenizer
    screen.write(think_prefix(prompt))
    decoder, token = StreamDecoder(tokenizer), None
    for token in stream(
        session.model, tokenizer, prompt, session.params, seed=session.cfg.seed, step=step
    ):
        if token not in tokenizer.stop_ids:
            screen.write(decoder.add(token))
    screen.write(decoder.flush())
    return token in tokenizer.stop_ids


# -- prompts of a file ----------------------------------------------------------------------------


def answer_file(session: Session, system: Messages) -> None:
    """Answers the prompts of a file side by side.

    A row of `--out` is a row of the file with `completion` and `finished`.
    """
    cfg = session.cfg
    rendered = render_prompts(session, system)
    settings = job_settings(session, prompts_sha256=json_sha256(rendered))
    journal = open_journal(cfg, settings, len(rendered))
    done = len(journal.parts)

    def save(number: int, rollouts: list[Rollout]) -> None:
        row, question, prompt = rendered[done + number]
        text = think_prefix(prompt) + rollouts[0].text
        journal.add({**row, "completion": text, "finished": rollouts[0].finished})
        if not cfg.out:
            print(f"> {question.rstrip()}")
            with Screen() as screen:
                screen.write(text)

    sample(
        session.model,
        session.tokenizer,
        [prompt for _, _, prompt in rendered[done:]],
        1,
        session.params,
        seed=cfg.seed,
        first_prompt=done,
        max_rows=cfg.sampler_rows,
        on_finished=save,
        progress="answering" if cfg.progress and cfg.out else None,
    )
    if cfg.out:
        write_rows(Path(cfg.out), journal.parts)
        cut_off = sum(not row["finished"] for row in journal.parts)
        print(f"{cfg.out}: {len(rendered)} answers, {cut_off} of them cut off")
    journal.close()


def render_prompts(session: Session, system: Messages) -> list[tuple[dict, str, str]]:
    """(row, last message, what the model sees) of each prompt of the file.

    ValueError, with file and line, for one that cannot be answered.
    """
    rendered = []
    for place, row in read_prompts(Path(session.cfg.prompts)):
        messages = row["prompt"]
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            roles = [m.get("role") for m in messages if isinstance(m, dict) and m.get("content")]
            if system and "system" in roles:
                raise ValueError(
                    "has its own system message, so it cannot take "
                    f"--system {system[0]['content']!r}"
                )
            prompt = session.template.render([*system, *messages])
            encode_prompts(session.model, session.tokenizer, [prompt])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        rendered.append((row, messages[-1]["content"], prompt))
    return rendered


def read_prompts(path: Path) -> list[tuple[str, dict]]:
    """(file and line, row with a `prompt`) of each prompt. ValueError for a row without one."""
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file")
    if path.suffix in (".jsonl", ".json", ".gz", ".csv", ".parquet"):
        rows = list(read_rows(path))
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = [
            (f"{path}:{number}", {"prompt": line.strip()})
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    for place, row in rows:
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, (str, list)) or not prompt:
            raise ValueError(f"{place}: no text or messages in column 'prompt'")
    if not rows:
        raise ValueError(f"--prompts {path}: no prompts")
    return rows


# -- chat -----------------------------------------------------------------------------------------


def chat(session: Session, system: Messages) -> None:
    """Samples each answer with the seed and its number: the same input gives the same answers."""
    with suppress(ImportError):
        import readline  # noqa: F401  (with it, input() can edit its line)
    single_turn = session.template.source == PLAIN
    hint = "/new starts a new conversation"
    if single_turn:
        hint = "no chat template: each prompt is independent"
    print(f"Ctrl-C stops an answer; an empty line or Ctrl-D quits; {hint}.")
    messages, number = [*system], 0
    while line := read_line():
        if line == "/new" and not single_turn:
            messages = [*system]
            continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            prompt = session.template.render(asked)
            [ids] = encode_prompts(session.model, session.tokenizer, [prompt])
        except ValueError as error:  # too long, not Unicode, or the template refuses it
            print(f"not sent: {error}; {hint}")
            continue
        limit = session.model.config.max_completion(session.params.max_new_tokens, len(ids))
        with Screen() as screen:
            try:
                finished = reply(session, prompt, number, screen)
                screen.note = "" if finished else f" [cut off at {limit} tokens]"
            except KeyboardInterrupt:
                screen.note = " [stopped]"
        if not single_turn:
            messages = [*asked, {"role": "assistant", "content": screen.text}]
        number += 1


def read_line() -> str:
    """The next line; "" at Ctrl-C or Ctrl-D."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


class Screen:
    """Standard output for one answer; `text` collects it, and `note` follows it at the end.

    On a terminal, thinking is dimmed (unless NO_COLOR is set), and control characters are replaced,
    because a text could take over the terminal with them.
    """

    def __init__(self):
        self.text = self.pending = self.note = ""
        self.is_terminal, self.tags = sys.stdout.isatty(), {}
        if self.is_terminal and not os.environ.get("NO_COLOR"):
            self.tags = {"<think>": "\x1b[2m<think>", "</think>": "</think>\x1b[0m"}

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
