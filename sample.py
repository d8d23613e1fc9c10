"""Sample from a checkpoint: answer prompts, chat, evaluate on held-out problems, or make SFT rows by rejection sampling.

    python sample.py --model runs/r1/r1 --prompt "Make 24 from 3, 5, 9."
    python sample.py --model runs/r1/r1 --eval --out runs/eval.json
    python sample.py --model runs/r1/dev2 --reject --out runs/rows.jsonl      [R1 §2.3.3]
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from r1mini import checkpoint, filters, rewards, score, tasks
from r1mini.config import device as pick_device
from r1mini.config import option, require, run
from r1mini.data import cold_start_row
from r1mini.evaluate import evaluate, table
from r1mini.records import Problem, Rollout
from r1mini.rollout import Sampling, sample
from r1mini.tasks.trace import Style


@dataclass(frozen=True)
class Config:
    model: str = option("base", "model folder or embedded model")
    prompt: str = option("", "a prompt to answer; without it, --eval or --reject, prompts are read from the terminal")
    eval: bool = option(False, "evaluate on held-out problems of --tasks")
    reject: bool = option(False, "rejection sampling: keep the good completions of training problems as SFT rows")
    reference: str = option("", "--eval: model to measure the KL from")
    out: str = option("", "file for the figures (--eval, JSON) or the rows (--reject, JSONL)")
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
    if cfg.out and not (cfg.eval or cfg.reject):
        raise ValueError(f"--out {cfg.out}: only --eval and --reject write a file")
    require(cfg, problems=cfg.problems >= 1, samples=cfg.samples >= 1, keep=cfg.keep >= 1, plain_rows=cfg.plain_rows >= 0,
            sampler_rows=cfg.sampler_rows >= 1)
    if cfg.reference and not cfg.eval:
        raise ValueError(f"--reference {cfg.reference}: only --eval measures a KL")
    if cfg.reference and not (cfg.temperature > 0 and cfg.top_k == 0 and cfg.top_p == 1 and cfg.min_p == 0):
        raise ValueError(f"--reference {cfg.reference}: a KL needs samples of the whole distribution, at a --temperature "
                         "over 0 and without --top-k, --top-p, --min-p")
    if cfg.eval and cfg.out.endswith(".jsonl"):
        raise ValueError(f"--out {cfg.out}: the completions go to the .jsonl; name a .json for the figures")
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


def answer(cfg: Config, model, tokens, how: Sampling) -> None:
    if cfg.prompt:
        prompts = [cfg.prompt]
    else:
        if sys.stdin.isatty():
            print("One prompt a line; an empty line or Ctrl-D ends.")
        prompts = iter(lambda: sys.stdin.readline().strip(), "")
    for number, prompt in enumerate(prompts):
        # Every prompt of the embedded models ends its line.
        print(sample(model, tokens, [prompt.rstrip("\n") + "\n"], 1, how, seed=cfg.seed, step=number)[0][0].text)


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
