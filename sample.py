"""Sample from a checkpoint: answer prompts, chat, evaluate on held-out problems, or make SFT rows by rejection sampling.

    python sample.py --model runs/r1/r1                                       chat in the terminal
    python sample.py --model runs/r1/r1 --prompt "Make 24 from 3, 5, 9."
    python sample.py --model runs/r1/r1 --prompts problems.jsonl --out answers.jsonl
    python sample.py --model runs/r1/r1 --eval --out runs/eval.json
    python sample.py --model Qwen2.5-0.5B --preset gsm8k --data test.jsonl --out runs/gsm8k.json
    python sample.py --model runs/r1/dev2 --reject --out runs/rows.jsonl      [R1 §2.3.3]
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from r1mini import checkpoint, evaluate, rejection, tasks, template
from r1mini.chat import Screen, chat, reply
from r1mini.config import device as pick_device
from r1mini.config import option, refuse_moot, require, run
from r1mini.data import entries
from r1mini.journal import Journal
from r1mini.problems import read_problems
from r1mini.records import Problem, Rollout, opened
from r1mini.rollout import Sampling, encode, sample
from r1mini.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    model: str = option("base", "model folder, embedded model or hub id")
    prompt: str = option("", "a prompt to answer; without it, --prompts, --eval or --reject: chat in the terminal, or one "
                             "prompt a line from a pipe")
    prompts: str = option("", "file of prompts to answer: .jsonl(.gz) or .json with text or messages in column 'prompt', else "
                              "one a line")
    system: str = option("", "system message before the prompt")
    eval: bool = option(False, "evaluate: on held-out problems of --tasks, or on --data")
    reject: bool = option(False, "rejection sampling: keep the good completions as SFT rows; of training problems, or of --data")
    data: tuple[str, ...] = option((), "--eval, --reject: files of problems, in place of --tasks (JSONL, JSON, CSV, Parquet)")
    prompt_key: str = option("", "column of the data's prompts, where it is none of a known layout")
    answer_key: str = option("", "column of its answers")
    instruction: str = option("", "text that is added to each of its prompts")
    template: str = option("auto", "how messages become the model's text: chat (the template in the model folder), r1-zero, "
                                   "plain; auto: chat if there is one, else plain, and prompts of --data that are text stay as they are")
    skip_bad: bool = option(False, "leave out and count what is wrong in the data, instead of stopping at its line")
    reference: str = option("", "--eval: model to measure the KL from")
    out: str = option("", "file for the figures (--eval, JSON) or the rows (--reject, --prompts; JSONL)")
    tasks: tuple[str, ...] = option(tasks.DEFAULT, "embedded tasks")
    problems: int = option(0, "problems of a task or file (0: 60 of a task, all of a file)")
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
    bf16: bool = option(False, "weights and compute in bfloat16")


# R1's protocol [R1 §3]: pass@1 as the mean over samples of up to 32,768 tokens, never greedy.
PRESETS = {name: {"eval": True, "data": (file,), "samples": samples, "temperature": 0.6, "top_p": 0.95,
                  "max_new_tokens": 32_768, "instruction": "" if name == "humaneval" else evaluate.BOXED}
           for name, (samples, file, _) in evaluate.BENCHMARKS.items()}


def main(cfg: Config) -> dict:
    check(cfg)
    device = pick_device(cfg.device, cfg.threads)
    if cfg.out:
        writable(Path(cfg.out))
        if cfg.eval:
            writable(completions_beside(Path(cfg.out)))
    model, tokens = checkpoint.load(cfg.model, device, torch.bfloat16 if cfg.bf16 else torch.float32)
    form = template.load(cfg.model, cfg.template)
    tokens = form.fit(tokens)
    how = Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    if cfg.eval or cfg.reject:
        sets = problem_sets(cfg, model, tokens, form)
        return (evaluation if cfg.eval else rejected)(cfg, model, tokens, sets, how)
    answer(cfg, model, tokens, form, how)
    return {}


def check(cfg: Config) -> None:
    tasks.require(cfg.tasks, judged=(cfg.eval or cfg.reject) and not cfg.data)
    if cfg.eval and cfg.reject:
        raise ValueError("--eval and --reject: choose one")
    if cfg.reject and not cfg.out:
        raise ValueError("--reject needs --out, a file for the rows")
    if cfg.prompt and cfg.prompts:
        raise ValueError("--prompt and --prompts: choose one")
    if cfg.out and not (cfg.eval or cfg.reject or cfg.prompts):
        raise ValueError(f"--out {cfg.out}: only --eval, --reject and --prompts write a file")
    require(cfg, problems=cfg.problems >= 0, samples=cfg.samples >= 1, keep=cfg.keep >= 1, plain_rows=cfg.plain_rows >= 0,
            sampler_rows=cfg.sampler_rows >= 1)
    if cfg.reference and not cfg.eval:
        raise ValueError(f"--reference {cfg.reference}: only --eval measures a KL")
    if cfg.reference and not (cfg.temperature > 0 and cfg.top_k == 0 and cfg.top_p == 1 and cfg.min_p == 0):
        raise ValueError(f"--reference {cfg.reference}: a KL needs samples of the whole distribution, at a --temperature "
                         "over 0 and without --top-k, --top-p, --min-p")
    if cfg.eval and cfg.out.endswith(".jsonl"):
        raise ValueError(f"--out {cfg.out}: the completions go to the .jsonl; name a .json for the figures")
    refuse_moot(cfg, moot(cfg))


def moot(cfg: Config) -> dict[str, str]:
    """Flags that have no effect beside the others, and why."""
    drawn = cfg.eval or cfg.reject
    needs = {name: (not drawn, "problems are drawn, and no others are answered") for name in ("prompt", "prompts", "system")}
    needs |= {name: (drawn, "only --eval and --reject draw problems") for name in ("data", "tasks", "problems", "samples")}
    needs["tasks"] = (drawn and not cfg.data, "problems come from --data" if cfg.data else needs["tasks"][1])
    needs |= {name: (cfg.data, "there is no --data") for name in ("prompt_key", "answer_key", "instruction", "skip_bad")}
    needs["template"] = (cfg.data or not drawn, "the embedded tasks' prompts are bare")
    needs |= {name: (cfg.reject, "only --reject keeps rows") for name in ("keep", "max_thinking")}
    needs["plain_rows"] = (cfg.reject and not cfg.data, "only --reject of the embedded tasks adds such rows")
    needs["sampler_rows"] = (drawn or cfg.prompts, "one prompt is answered at a time")
    return {name: why for name, (met, why) in needs.items() if not met}


def answer(cfg: Config, model, tokens: Tokenizer, form: template.Template, how: Sampling) -> None:
    system = [{"role": "system", "content": cfg.system}] if cfg.system else []
    if sys.stdin is None and not (cfg.prompt or cfg.prompts):
        raise ValueError("no --prompt, and no standard input to read one from")
    if cfg.prompts:
        answer_file(cfg, model, tokens, form, system, how)
    elif sys.stdin.isatty() and not cfg.prompt:
        chat(model, tokens, form, system, how, cfg.seed)
    else:
        prompts = [cfg.prompt] if cfg.prompt else filter(None, map(str.strip, iter(sys.stdin.readline, "")))
        for number, prompt in enumerate(prompts):
            text = form.render([*system, {"role": "user", "content": prompt}])
            encode(model, tokens, [text])  # one that is too long is an error before anything is shown
            screen = Screen()
            try:
                reply(model, tokens, text, how, cfg.seed, number, screen)
            finally:
                screen.close()


def answer_file(cfg: Config, model, tokens, form: template.Template, system: list[dict], how: Sampling) -> None:
    """Answers the prompts of a file side by side; rows of --out have `completion` and `finished` beside their columns."""
    rows, prompts = [], []
    for where, row, question, prompt in rendered(Path(cfg.prompts), form, system):
        try:
            encode(model, tokens, [prompt])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        prompts.append(prompt)
        rows.append((row, question))
    kept = {**asdict(how), "seed": cfg.seed, "model": cfg.model, "weights": fingerprint(cfg.model), "bf16": cfg.bf16,
            "prompts_sha256": hashlib.sha256(json.dumps([rows, prompts]).encode()).hexdigest()}
    journal = begin(cfg, kept, len(rows))
    done = len(journal.parts)

    def ready(number: int, rollouts: list[Rollout]) -> None:
        (row, question), text = rows[done + number], opened(prompts[done + number]) + rollouts[0].text
        journal.add({**row, "completion": text, "finished": rollouts[0].finished})
        if not cfg.out:
            print(f"> {question.rstrip()}")
            screen = Screen()
            screen.write(text)
            screen.close()

    sample(model, tokens, prompts[done:], 1, how, seed=cfg.seed, first=done, max_rows=cfg.sampler_rows, ready=ready,
           progress="answering" if cfg.progress and cfg.out else None)
    if cfg.out:
        write(Path(cfg.out), journal.parts)
        print(f"{cfg.out}: {len(rows)} answers, {sum(not row['finished'] for row in journal.parts)} of them cut off")
    journal.close()


def rendered(path: Path, form: template.Template, system: list[dict]) -> Iterator[tuple[str, dict, str, str]]:
    """(File and line, row, what is asked last, what the model sees) of each prompt of a file."""
    for where, row in read_prompts(path):
        asked = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        try:
            if system and any(isinstance(message, dict) and message.get("role") == "system" for message in asked):
                raise ValueError(f"has a system message of its own, beside --system {system[0]['content']!r}")
            prompt = form.render([*system, *asked])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield where, row, asked[-1]["content"], prompt


def read_prompts(path: Path) -> list[tuple[str, dict]]:
    """(File and line, row with a `prompt`) of each prompt of a file. ValueError for a row without one."""
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file")
    if path.suffix in (".jsonl", ".json", ".gz", ".csv", ".parquet"):
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


def problem_sets(cfg: Config, model, tokens: Tokenizer, form: template.Template) -> dict[str, list[Problem]]:
    """The problems of each embedded task, held out or not, or of each file, by its name."""
    if not cfg.data:
        count = cfg.problems or 60
        if cfg.eval:
            return {name: evaluate.held_out(name, count) for name in cfg.tasks}
        return {name: [tasks.problem(name, f"rejection {cfg.seed}", index, "train") for index in range(count)]
                for name in cfg.tasks if tasks.TASKS[name].reasoning}
    sets: dict[str, list[Problem]] = {}
    for file in cfg.data:
        path = Path(file)
        source = next((source for _, known, source in evaluate.BENCHMARKS.values() if known == path.name), None)
        if not path.is_file() and source:
            raise ValueError(f"--data {file}: no such file; it is to be had from {source}")
        if path.name in sets or path.name in ("mean", "settings"):
            raise ValueError(f"--data {file}: that name is taken in the figures")
        found = read_problems(file, form, lambda problem: encode(model, tokens, [problem.prompt]), prompt_key=cfg.prompt_key,
                              answer_key=cfg.answer_key, instruction=cfg.instruction, skip_bad=cfg.skip_bad)
        sets[path.name] = found[: cfg.problems or None]
    return sets


def settings(cfg: Config, how: Sampling, sets: Mapping[str, Sequence[Problem]]) -> dict:
    """What decides a job's completions and their judgement: stored beside its figures, and compared when it goes on."""
    content = json.dumps([[title, *map(asdict, problems)] for title, problems in sets.items()], default=str)
    return {**asdict(how), "seed": cfg.seed, "samples": cfg.samples, "model": cfg.model, "weights": fingerprint(cfg.model),
            "bf16": cfg.bf16, "sets": {title: len(problems) for title, problems in sets.items()},
            "sets_sha256": hashlib.sha256(content.encode()).hexdigest(),
            **({"data": list(cfg.data), "template": cfg.template, "instruction": cfg.instruction} if cfg.data else {})}


def fingerprint(model: str) -> list:
    """Sizes and times of the files of a model folder: told apart without reading gigabytes."""
    return [[file.name, file.stat().st_size, int(file.stat().st_mtime)]
            for file in sorted(checkpoint.resolve(model).glob("*")) if file.suffix in (".safetensors", ".json", ".jinja")
            and file.name != "run.json"]


def begin(cfg: Config, kept: Mapping[str, object], count: int) -> Journal:
    """The journal of a job of `count` parts, beside its --out."""
    return Journal(Path(f"{cfg.out}.partial") if cfg.out else None, kept, count)


def evaluation(cfg: Config, model, tokens: Tokenizer, sets: Mapping[str, Sequence[Problem]], how: Sampling) -> dict:
    started = time.perf_counter()
    reference = None
    if cfg.reference:
        reference, theirs = checkpoint.load(cfg.reference, model.lm_head.weight.device, model.lm_head.weight.dtype)
        if theirs.backend.to_str() != tokens.backend.to_str():
            raise ValueError(f"--reference {cfg.reference}: its tokenizer is not that of {cfg.model}, so there is no KL")
    out, kept = Path(cfg.out), settings(cfg, how, sets)
    if cfg.reference:
        kept |= {"reference": cfg.reference, "reference_weights": fingerprint(cfg.reference)}
    journal = begin(cfg, kept, sum(kept["sets"].values()))
    results, rows = evaluate.evaluate(model, tokens, sets, cfg.samples, how, cfg.seed, reference=reference, journal=journal,
                                      max_rows=cfg.sampler_rows, progress=cfg.progress)
    results["settings"] = {**kept, "seconds": round(time.perf_counter() - started, 1)}
    print(evaluate.table(results))
    if cfg.out:
        write(completions_beside(out), rows)
        checkpoint.write_json(out, results)
    journal.close()
    return results


def rejected(cfg: Config, model, tokens: Tokenizer, sets: Mapping[str, Sequence[Problem]], how: Sampling) -> dict:
    out = Path(cfg.out)
    kept = {**settings(cfg, how, sets), "keep": cfg.keep, "max_thinking": cfg.max_thinking}
    journal = begin(cfg, kept, sum(kept["sets"].values()))
    rows, verdicts = rejection.reject(model, tokens, sets, cfg.samples, how, cfg.seed, journal, keep=cfg.keep, name=cfg.model,
                                      max_thinking=cfg.max_thinking, max_rows=cfg.sampler_rows, progress=cfg.progress)
    if not cfg.data:
        plain = [name for name in cfg.tasks if not tasks.TASKS[name].reasoning]
        rows = [*rows, *rejection.plain_rows(plain, cfg.plain_rows, cfg.seed)]
    if not rows:
        journal.close()
        raise ValueError(f"--reject: no completion of {cfg.model} was kept ({dict(verdicts)})")
    write(out, rows)
    journal.close()
    print(f"{out}: {len(rows)} rows; of {sum(verdicts.values())} completions: "
          + ", ".join(f"{count} {why}" for why, count in verdicts.most_common()))
    return {"rows": len(rows), "verdicts": dict(verdicts)}


def write(path: Path, rows: Sequence[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    checkpoint.replace(path.parent, {path.name: lines.encode("utf-8", "backslashreplace")})  # half a character: its JSON escape


def completions_beside(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".json") + ".jsonl")


def writable(path: Path) -> None:
    """Found out before the sampling, not after it."""
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder")
    checkpoint.prepare_folder(path.parent)


if __name__ == "__main__":
    run(main, Config, PRESETS, __doc__, moot)
