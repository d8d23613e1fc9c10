"""Answers prompts from a flag, a pipe or a file; in a terminal, starts a chat."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from r1mini.checkpoint.chat_template import ChatTemplate, Messages
from r1mini.data.files import read_rows
from r1mini.evaluation.chat import Screen, chat, reply
from r1mini.evaluation.jobs import Session, job_settings, open_journal, write_rows
from r1mini.records import Rollout, think_prefix
from r1mini.sampler.sampler import encode_prompts, sample


def answer(s: Session) -> None:
    cfg = s.cfg
    system = [{"role": "system", "content": cfg.system}] if cfg.system else []
    if cfg.prompts:
        answer_file(s, system)
        return
    if sys.stdin is None and not cfg.prompt:
        raise ValueError("no --prompt, and no standard input to read one from")
    if not cfg.prompt and sys.stdin.isatty():
        chat(s, system)
        return
    for number, prompt in enumerate([cfg.prompt] if cfg.prompt else read_lines()):
        text = s.template.render([*system, {"role": "user", "content": prompt}])
        encode_prompts(s.model, s.tokenizer, [text])  # ValueError before anything is shown
        with Screen() as screen:
            reply(s, text, number, screen)


def read_lines() -> Iterator[str]:
    """The lines of standard input that are not blank, each as soon as it arrives."""
    return filter(None, map(str.strip, iter(sys.stdin.readline, "")))


def answer_file(s: Session, system: Messages) -> None:
    """Answers the prompts of a file side by side.

    A row of `--out` is a row of the file with `completion` and `finished`.
    """
    cfg, rows, prompts = s.cfg, [], []
    for where, row, question, prompt in render_prompts(Path(cfg.prompts), s.template, system):
        try:
            encode_prompts(s.model, s.tokenizer, [prompt])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        prompts.append(prompt)
        rows.append((row, question))
    settings = job_settings(s, "prompts_sha256", json.dumps([rows, prompts]))
    journal = open_journal(cfg, settings, len(rows))
    done = len(journal.parts)

    def save(number: int, rollouts: list[Rollout]) -> None:
        row, question = rows[done + number]
        text = think_prefix(prompts[done + number]) + rollouts[0].text
        journal.add({**row, "completion": text, "finished": rollouts[0].finished})
        if not cfg.out:
            print(f"> {question.rstrip()}")
            with Screen() as screen:
                screen.write(text)

    sample(
        s.model,
        s.tokenizer,
        prompts[done:],
        1,
        s.params,
        seed=cfg.seed,
        first_prompt=done,
        max_rows=cfg.sampler_rows,
        on_finished=save,
        progress="answering" if cfg.progress and cfg.out else None,
    )
    if cfg.out:
        write_rows(Path(cfg.out), journal.parts)
        cut_off = sum(not row["finished"] for row in journal.parts)
        print(f"{cfg.out}: {len(rows)} answers, {cut_off} of them cut off")
    journal.close()


def render_prompts(
    path: Path, template: ChatTemplate, system: Messages
) -> Iterator[tuple[str, dict, str, str]]:
    """(file and line, row, last message, what the model sees) of each prompt of a file."""
    for where, row in read_prompts(path):
        messages = row["prompt"]
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            roles = [message.get("role") for message in messages if isinstance(message, dict)]
            if system and "system" in roles:
                raise ValueError(
                    "has its own system message, so it cannot take "
                    f"--system {system[0]['content']!r}"
                )
            prompt = template.render([*system, *messages])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield where, row, messages[-1]["content"], prompt


def read_prompts(path: Path) -> list[tuple[str, dict]]:
    """(file and line, row with a `prompt`) of each prompt. ValueError for a row without one."""
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file")
    if path.suffix in (".jsonl", ".json", ".gz", ".csv", ".parquet"):
        rows = list(read_rows(path))
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        numbered = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
        rows = [(where, {"prompt": line}) for where, line in numbered if line]
    for where, row in rows:
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, (str, list)) or not prompt:
            raise ValueError(f"{where}: no text or messages in column 'prompt'")
    if not rows:
        raise ValueError(f"--prompts {path}: no prompts")
    return rows
