"""Sample from a checkpoint: answer prompts, chat, evaluate on held-out problems, or make SFT rows by rejection sampling.

    python sample.py --model runs/r1/r1                                       chat in the terminal
    python sample.py --model runs/r1/r1 --prompt "Make 24 from 3, 5, 9."
    python sample.py --model runs/r1/r1 --prompts problems.jsonl --out answers.jsonl
    python sample.py --model runs/r1/r1 --eval --out runs/eval.json
    python sample.py --model runs/r1/dev2 --reject --out runs/rows.jsonl      [R1 §2.3.3]
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from r1mini import checkpoint, filters, rewards, score, tasks, template
from r1mini.config import device as pick_device
from r1mini.config import option, require, run
from r1mini.data import cold_start_row, entries
from r1mini.evaluate import evaluate, table
from r1mini.records import Problem, Rollout
from r1mini.rollout import Sampling, encode, sample, stream
from r1mini.tasks.trace import Style
from r1mini.tokenizer import Stream


@dataclass(frozen=True)
class Config:
    model: str = option("base", "model folder or embedded model")
    prompt: str = option("", "a prompt to answer; without it, --prompts, --eval or --reject: chat in the terminal, or one "
                             "prompt a line from a pipe")
    prompts: str = option("", "file of prompts to answer: .jsonl(.gz) or .json with text or messages in column 'prompt', else "
                              "one a line")
    system: str = option("", "system message before the prompt")
    template: str = option("auto", "how messages become the model's text: chat (the template in the model folder), r1-zero, "
                                   "plain; auto: chat if there is one, else plain")
    eval: bool = option(False, "evaluate on held-out problems of --tasks")
    reject: bool = option(False, "rejection sampling: keep the good completions of training problems as SFT rows")
    reference: str = option("", "--eval: model to measure the KL from")
    out: str = option("", "file for the figures (--eval, JSON) or the rows (--reject, --prompts; JSONL)")
    tasks: tuple[str, ...] = option(tasks.DEFAULT, "embedded tasks")
    problems: int = option(60, "problems per task")
    samples: int = option(16, "--eval, --reject: completions per problem")
    temperature: float = option(1.0, "sampling temperature; 0: greedy")
    top_k: int = option(0, "keep the k likeliest tokens (0: all)")
    top_p: float = option(1.0, "keep the likeliest tokens that make up this probability")
    min_p: float = option(0.0, "keep tokens at least this share as likely as the likeliest")
    max_new_tokens: int = option(400, "length limit of a completion")
    keep: int = option(2, "--reject: rows kept per problem at most")
    max_thinking: int = option(280, "--reject: longest thinking kept, in tokens")
    plain_rows: int = option(400, "--reject: non-reasoning rows added, answered at once [R1 §2.3.3]")
    seed: int = option(0, "seed of sampling, and of the problems of --reject")
    sampler_rows: int = option(256, "completions sampled side by side; changes memory, never a completion")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    progress: bool = option(True, "show progress bars")


def main(cfg: Config) -> dict:
    tasks.require(cfg.tasks)
    if cfg.eval and cfg.reject:
        raise ValueError("--eval and --reject: choose one")
    if cfg.reject and not cfg.out:
        raise ValueError("--reject needs --out, a file for the rows")
    if cfg.prompt and cfg.prompts:
        raise ValueError("--prompt and --prompts: choose one")
    if cfg.out and not (cfg.eval or cfg.reject or cfg.prompts):
        raise ValueError(f"--out {cfg.out}: only --eval, --reject and --prompts write a file")
    require(cfg, problems=cfg.problems >= 1, samples=cfg.samples >= 1, keep=cfg.keep >= 1, plain_rows=cfg.plain_rows >= 0,
            sampler_rows=cfg.sampler_rows >= 1)
    if cfg.reference and not cfg.eval:
        raise ValueError(f"--reference {cfg.reference}: only --eval measures a KL")
    if cfg.reference and not (cfg.temperature > 0 and cfg.top_k == 0 and cfg.top_p == 1 and cfg.min_p == 0):
        raise ValueError(f"--reference {cfg.reference}: a KL needs samples of the whole distribution, at a --temperature "
                         "over 0 and without --top-k, --top-p, --min-p")
    if cfg.eval and cfg.out.endswith(".jsonl"):
        raise ValueError(f"--out {cfg.out}: the completions go to the .jsonl; name a .json for the figures")
    for name, why in moot(cfg).items():
        if getattr(cfg, name) != getattr(Config(), name):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: would have no effect ({why})")
    device = pick_device(cfg.device, cfg.threads)
    model, tokens = checkpoint.load(cfg.model, device)
    how = Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    if cfg.out:
        writable(Path(cfg.out))
    if cfg.eval:
        return evaluation(cfg, model, tokens, how)
    if cfg.reject:
        return rejection(cfg, model, tokens, how)
    answer(cfg, model, tokens, how)
    return {}


def moot(cfg: Config) -> dict[str, str]:
    """Flags that have no effect beside the others, and why."""
    drawn = cfg.eval or cfg.reject
    needs = {name: (not drawn, "the embedded tasks' prompts are bare, and no others are answered")
             for name in ("prompt", "prompts", "system", "template")}
    needs |= {name: (drawn, "only --eval and --reject draw problems") for name in ("tasks", "problems", "samples")}
    needs |= {name: (cfg.reject, "only --reject keeps rows") for name in ("keep", "max_thinking", "plain_rows")}
    needs["sampler_rows"] = (drawn or cfg.prompts, "one prompt is answered at a time")
    return {name: why for name, (met, why) in needs.items() if not met}


def answer(cfg: Config, model, tokens, how: Sampling) -> None:
    form = template.load(cfg.model, cfg.template)
    tokens = tokens.stopping_at(form.end)
    system = [{"role": "system", "content": cfg.system}] if cfg.system else []
    if cfg.prompts:
        answer_file(cfg, model, tokens, form, system, how)
    elif sys.stdin.isatty() and not cfg.prompt:
        chat(cfg, model, tokens, form, system, how)
    else:
        prompts = [cfg.prompt] if cfg.prompt else iter(lambda: sys.stdin.readline().strip(), "")
        for number, prompt in enumerate(prompts):
            text = form.render([*system, {"role": "user", "content": prompt}])
            encode(model, tokens, [text])  # one that is too long is an error before anything is shown
            screen = Screen()
            try:
                reply(cfg, model, tokens, text, how, number, screen)
            finally:
                screen.close()


def chat(cfg: Config, model, tokens, form: template.Template, system: list[dict], how: Sampling) -> None:
    """Each answer is drawn with the seed and its number, so a conversation comes out the same when it is typed again."""
    with suppress(ImportError):
        import readline  # noqa: F401  (with it, input() edits its line)
    alone, context = form.name == "plain", model.config.max_position_embeddings
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
        prompt = form.render(asked)
        if (length := len(tokens.encode(prompt))) >= context:  # nothing is dropped behind the user's back
            print(f"not sent: {length} tokens, and the model's context holds {context}"
                  + ("" if alone else "; /new begins a new conversation"))
            continue
        screen, note = Screen(), ""
        try:
            ended = reply(cfg, model, tokens, prompt, how, number, screen)
            note = "" if ended else f" [cut off at {min(how.max_new_tokens, context - length)} tokens]"
        except KeyboardInterrupt:
            note = " [stopped]"
        finally:
            screen.close(note)
        messages, number = [*asked, {"role": "assistant", "content": screen.text}], number + 1


def reply(cfg: Config, model, tokens, prompt: str, how: Sampling, step: int, screen: Screen) -> bool:
    """Writes the completion as it is drawn, after the `<think>` that the prompt may end with; whether it ended by itself."""
    screen.write(template.OPENED.search(prompt)[0])
    decoder, token = Stream(tokens), None
    for token in stream(model, tokens, prompt, how, seed=cfg.seed, step=step):
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


def answer_file(cfg: Config, model, tokens, form: template.Template, system: list[dict], how: Sampling) -> None:
    """Answers the prompts of a file side by side; rows of --out have `completion` and `finished` beside their columns."""
    rows, prompts = [], []
    for where, row in read_prompts(Path(cfg.prompts)):
        asked = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        try:
            if system and any(isinstance(message, dict) and message.get("role") == "system" for message in asked):
                raise ValueError(f"has a system message of its own, beside --system {cfg.system!r}")
            prompts.append(form.render([*system, *asked]))
            encode(model, tokens, prompts[-1:])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        rows.append((row, asked[-1]["content"]))
    written = []

    def ready(number: int, rollouts: list[Rollout]) -> None:
        (row, question), text = rows[number], template.OPENED.search(prompts[number])[0] + rollouts[0].text
        written.append({**row, "completion": text, "finished": rollouts[0].finished})
        if not cfg.out:
            print(f"> {question.rstrip()}")
            screen = Screen()
            screen.write(text)
            screen.close()

    sample(model, tokens, prompts, 1, how, seed=cfg.seed, max_rows=cfg.sampler_rows, ready=ready,
           progress="answering" if cfg.progress and cfg.out else None)
    if cfg.out:
        write(Path(cfg.out), written)
        print(f"{cfg.out}: {len(written)} answers, {sum(not row['finished'] for row in written)} of them cut off")


def read_prompts(path: Path) -> list[tuple[str, dict]]:
    """(File and line, row with a `prompt`) of each prompt of a file. ValueError for a row without one."""
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file")
    if path.suffix in (".jsonl", ".json", ".gz"):
        found = list(entries(path))
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        found = [(f"{path}:{number}", {"prompt": line.strip()}) for number, line in enumerate(lines, 1) if line.strip()]
    for where, row in found:
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), (str, list)) or not row["prompt"]:
            raise ValueError(f"{where}: no text or messages in column 'prompt'")
    if not found:
        raise ValueError(f"--prompts {path}: no prompts")
    return found


def evaluation(cfg: Config, model, tokens, how: Sampling) -> dict:
    started = time.perf_counter()
    reference = None
    if cfg.reference:
        reference, theirs = checkpoint.load(cfg.reference, model.lm_head.weight.device)
        if theirs.backend.to_str() != tokens.backend.to_str():
            raise ValueError(f"--reference {cfg.reference}: its tokenizer is not that of {cfg.model}, so there is no KL")
    results, kept = evaluate(model, tokens, cfg.tasks, cfg.problems, cfg.samples, how, cfg.seed, reference=reference,
                             max_rows=cfg.sampler_rows, progress=cfg.progress)
    results["settings"] |= {"model": cfg.model, "seconds": round(time.perf_counter() - started, 1)}
    print(table(results))
    if cfg.out:
        out = Path(cfg.out)
        write(out.with_suffix(".jsonl"), [
            {"task": p.task, "problem": p.key, "language": p.language, "prompt": p.prompt, "sample": i,
             "completion": r.text, "answer": rewards.answer_of(p, r.text), "rewards": scores, "finished": r.finished}
            for p, group in kept for i, (r, scores) in enumerate(zip(group, score.score(p, group)))])
        checkpoint.write_json(out, results)
    return results


def verdict(problem: Problem, rollout: Rollout, thinking_tokens: int, limit: int) -> str:
    """Why a completion is not kept, or "kept". [R1 §2.3.3]"""
    if not rollout.finished:
        return "cut off"
    [scores] = score.score(problem, [rollout], ("accuracy", "code", "format"))
    if 1.0 not in (scores["accuracy"], scores["code"]):
        return "wrong"
    if not scores["format"]:
        return "format"
    found = (name for name, removes in filters.FILTERS.items() if removes(problem, rollout.text))
    return next(found, "long" if thinking_tokens > limit else "kept")


def rejection(cfg: Config, model, tokens, how: Sampling) -> dict:
    """[R1 §2.3.3] Several completions per training problem; the correct and readable ones become SFT rows, at most
    `keep` a problem; rows without reasoning are added."""
    rows, verdicts = [], Counter()
    for number, name in enumerate(t for t in cfg.tasks if tasks.TASKS[t].reasoning):
        problems = [tasks.problem(name, f"rejection {cfg.seed}", i, "train") for i in range(cfg.problems)]
        rollouts = sample(model, tokens, [p.prompt for p in problems], cfg.samples, how, seed=cfg.seed,
                          step=number, max_rows=cfg.sampler_rows, progress=f"sampling {name}" if cfg.progress else None)
        for problem, group in zip(problems, rollouts):
            good = []
            for rollout in group:
                thinking = rollout.text.partition("</think>")[0]
                why = verdict(problem, rollout, len(tokens.encode(thinking)), cfg.max_thinking)
                verdicts[why] += 1
                if why == "kept" and rollout.text not in [r.text for r in good]:
                    good.append(rollout)
            for rollout in Random(f"{cfg.seed} {problem.key}").sample(good, min(cfg.keep, len(good))):
                rows.append({"prompt": problem.prompt, "completion": rollout.text, "task": problem.task,
                             "problem": problem.key, "model": cfg.model})
    # DEVIATES: R1's non-reasoning rows come from DeepSeek-V3; here from the task's own writer.
    plain = [t for t in cfg.tasks if not tasks.TASKS[t].reasoning]
    for index in range(cfg.plain_rows if plain else 0):
        name = plain[index % len(plain)]
        rows.append({**cold_start_row(name, f"plain {cfg.seed}", index, Style()), "task": name})
    if not rows:
        raise ValueError(f"--reject: no completion of {cfg.model} was kept ({dict(verdicts)})")
    write(Path(cfg.out), rows)
    print(f"{cfg.out}: {len(rows)} rows; of {sum(verdicts.values())} completions: "
          + ", ".join(f"{count} {why}" for why, count in verdicts.most_common()))
    return {"rows": len(rows), "verdicts": dict(verdicts)}


def write(path: Path, rows: Sequence[dict]) -> None:
    checkpoint.replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def writable(path: Path) -> None:
    """Found out before the sampling, not after it."""
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder")
    checkpoint.prepare_folder(path.parent)


if __name__ == "__main__":
    run(main, Config, description=__doc__)
