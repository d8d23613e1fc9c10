"""Held-out evaluation [R1 §3]: k samples a problem, pass@1 as their mean with its standard error, pass@k, cons@k.

Problems come in sets: the held-out ones of an embedded task, or a file. Each completion becomes a row, and the figures are
made of the rows alone. `BENCHMARKS` are R1's, with the file that each needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from r1mini import answers, rewards, score, tasks
from r1mini.batch import by_prompt, collate, token_logprobs
from r1mini.checkpoint import number, read_json, read_lines
from r1mini.journal import Journal
from r1mini.model import Transformer
from r1mini.records import Problem, Rollout
from r1mini.rollout import Sampling, sample
from r1mini.tokenizer import Tokenizer

MICRO_BATCH = 4096  # tokens of a pass through the reference
Row = Mapping[str, Any]

# R1's benchmarks: name -> (samples a problem, file, where it comes from). [R1 §3]
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
BENCHMARKS = {
    "aime24": (64, "aime24.jsonl", "https://huggingface.co/datasets/HuggingFaceH4/aime_2024"),
    "math500": (16, "math500.jsonl", "https://huggingface.co/datasets/HuggingFaceH4/MATH-500 (test.jsonl)"),
    "gsm8k": (4, "gsm8k.jsonl", "https://github.com/openai/grade-school-math (data/test.jsonl)"),
    "gpqa": (64, "gpqa_diamond.csv", "https://huggingface.co/datasets/Idavidrein/gpqa (its authors ask for consent)"),
    "humaneval": (16, "HumanEval.jsonl.gz", "https://github.com/openai/human-eval (data)"),
}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased chance that at least one of k samples, drawn from n of which `correct` are right, is right
    (Chen et al. 2021, Eq. 1).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def consensus(rows: Sequence[Row]) -> float | None:
    """cons@k of one problem: is the most frequent answer right? A tie counts by the share of its answers that are. Answers
    to rows of a file are one if `answers.equivalent` says so; programs have no consensus."""
    votes: list[tuple[str, list[float]]] = []
    for row in rows:
        if row["rewards"]["accuracy"] is None:
            return None
        if row["answer"]:
            group = next((right for answer, right in votes if agree(row["task"], answer, row["answer"])), None)
            if group is None:
                votes.append((row["answer"], group := []))
            group.append(row["rewards"]["accuracy"])
    most = max((len(right) for _, right in votes), default=0)
    return fmean([fmean(right) for _, right in votes if len(right) == most]) if votes else 0.0


def agree(task: str, one: str, other: str) -> bool:
    if one == other or task in tasks.TASKS:
        return one == other
    try:
        return answers.equivalent(one, other)
    except ValueError:  # an answer that could not be a gold
        return False


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error over problems; of one problem there is none."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def reference_logprobs(reference: Transformer, rollouts: Sequence[Rollout], temperature: float) -> list[float]:
    """The log-probability of each completion under another model, in nats."""
    found = [0.0] * len(rollouts)
    with torch.inference_mode():
        rows = [(r.prompt_ids, r.completion_ids) for r in rollouts]
        for part in by_prompt(rows, MICRO_BATCH):
            batch = collate([rows[b] for b in part])
            logp_BT = token_logprobs(reference, batch.to(reference.lm_head.weight.device), temperature)
            for b, total in zip(part, logp_BT.sum(-1).tolist()):
                found[b] = total
    return found


def rows_of(problem: Problem, rollouts: Sequence[Rollout], scores: score.Scores, theirs: Sequence[float] | None) -> list[Row]:
    """What is kept of a problem's completions: all that the figures are made of."""
    split = [problem.split(rollout) for rollout in rollouts]
    return [{"task": problem.task, "problem": problem.key, "language": problem.language, "prompt": prompt, "sample": i,
             "completion": text, "answer": rewards.answer_of(problem, text), "gold": rewards.gold(problem),
             "rewards": given, "finished": rollout.finished, "tokens": len(rollout.completion_ids),
             "logprob": sum(rollout.logprobs), **({"reference_logprob": theirs[i]} if theirs else {})}
            for i, (rollout, (prompt, text), given) in enumerate(zip(rollouts, split, scores))]


def right(row: Row) -> float:
    """1 for the right answer, or a program that passes."""
    return row["rewards"]["code"] if row["rewards"]["accuracy"] is None else row["rewards"]["accuracy"]


def summarise(groups: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """The figures of one set, whose problems have a group of rows each. A problem is one observation: its samples are averaged
    first. Entropy is in nats per token, of the distribution that was drawn from: the mean of -log p; the KL from it to the
    reference is the mean of log p - log p_ref."""
    flat, k = [row for group in groups for row in group], len(groups[0])
    pass1, error = mean_and_error([fmean(map(right, group)) for group in groups])
    tokens, logprob = sum(row["tokens"] for row in flat), sum(row["logprob"] for row in flat)
    figures = {
        "pass@1": pass1, "pass@1_se": error,
        f"pass@{k}": fmean(pass_at_k(k, int(sum(map(right, group))), k) for group in groups),
        f"cons@{k}": known([consensus(group) for group in groups]),
        "format": known([row["rewards"]["format"] for row in flat]),
        "language": known([row["rewards"]["language"] for row in flat]),
        "length": tokens / len(flat),
        "truncated": fmean(not row["finished"] for row in flat),
        "unparsed": fmean(row["answer"] is None for row in flat),
        "entropy": -logprob / tokens, "problems": len(groups), "samples": k,
    }
    if "reference_logprob" in flat[0]:
        figures["kl"] = (logprob - sum(row["reference_logprob"] for row in flat)) / tokens
    return figures


def known(values: Sequence[float | None]) -> float | None:
    """The mean of those that there are."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def held_out(name: str, count: int) -> list[Problem]:
    """The first held-out problems of an embedded task, each once, or all if there are fewer."""
    found: dict[str, Problem] = {}
    for index in range(50 * count):
        drawn = tasks.problem(name, "evaluation", index, "heldout")
        found.setdefault(drawn.key, drawn)
        if len(found) == count:
            break
    return list(found.values())


def draw(model: Transformer, tokenizer: Tokenizer, sets: Mapping[str, Sequence[Problem]], samples: int, how: Sampling,
         seed: int, *, done: int = 0, names: Sequence[str] = (*score.WATCHED, "code"), max_rows: int = 256,
         progress: str | None = None) -> Iterator[tuple[Problem, list[Rollout], score.Scores]]:
    """(problem, its completions, their rewards) of every problem of every set but the first `done`. What is sampled side by
    side is so again, the done ones with it: else the last bits of the log-probabilities would not be those of a job that was
    never interrupted."""
    at_once = max(1, max_rows // samples)
    with score.pool() as pool:
        for number, (title, problems) in enumerate(sets.items()):
            for start in range(0, len(problems), at_once):
                part, had = problems[start : start + at_once], max(0, done - start)
                if had >= len(part):
                    continue
                groups = sample(model, tokenizer, [p.prompt for p in part], samples, how, seed=seed, step=number, first=start,
                                max_rows=max_rows,
                                progress=f"{progress} {title} {start + 1}/{len(problems)}" if progress else None)
                part, groups = part[had:], groups[had:]
                scoring = [score.begin(problem, group, {name: rewards.REWARDS[name] for name in names}, pool)
                           for problem, group in zip(part, groups)]
                yield from zip(part, groups, (finish() for finish in scoring))
            done = max(0, done - len(problems))


def evaluate(model: Transformer, tokenizer: Tokenizer, sets: Mapping[str, Sequence[Problem]], samples: int, how: Sampling,
             seed: int, *, reference: Transformer | None = None, journal: Journal | None = None, max_rows: int = 256,
             progress: bool = False) -> tuple[dict[str, Any], list[Row]]:
    """({set: figures, "mean": …}, a row per completion); with a `reference`, the KL from it too. What the journal has is
    not sampled again."""
    journal = journal or Journal(None, {}, 0)
    for problem, rollouts, scores in draw(model, tokenizer, sets, samples, how, seed, done=len(journal.parts),
                                          max_rows=max_rows, progress="evaluating" if progress else None):
        theirs = reference_logprobs(reference, rollouts, how.temperature) if reference is not None else None
        journal.add(rows_of(problem, rollouts, scores, theirs))
    groups = iter(journal.parts)
    results = {title: summarise([next(groups) for _ in problems]) for title, problems in sets.items()}
    results["mean"] = average(list(results.values()))
    return results, [row for group in journal.parts for row in group]


def average(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over tasks; its standard error from theirs, which are independent."""
    mean = {}
    for key in figures[0]:
        values = [f[key] for f in figures if f[key] is not None]
        mean[key] = sum(values) / len(values) if values else None
    mean |= {"samples": figures[0]["samples"], "problems": sum(f["problems"] for f in figures)}
    errors = [f["pass@1_se"] for f in figures]
    mean["pass@1_se"] = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(figures)
    return mean


def table(results: dict[str, Any]) -> str:
    """A Markdown table of one model's figures."""
    k = results["mean"]["samples"]
    columns = ["pass@1", f"pass@{k}", f"cons@{k}", "format", "language", "length", "truncated", "unparsed", "entropy"]
    columns += ["kl"] * ("kl" in results["mean"])
    lines = ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    sets = [name for name in results if name not in ("mean", "settings")]
    for name in [*sets, *["mean"] * (len(sets) > 1)]:
        lines.append(f"| {name} | " + " | ".join(cell(results[name], column) for column in columns) + " |")
    return "\n".join(lines)


def cell(figures: dict[str, Any], column: str) -> str:
    error = f" ± {figures['pass@1_se']:.2f}" if column == "pass@1" and figures["pass@1_se"] is not None else ""
    return shown(figures[column], column) + error


def read_figures(path: Path, names: Sequence[str] = (), k: int | None = None, columns: Sequence[str] = ()
                 ) -> dict[str, dict[str, Any]]:
    """What an evaluation wrote: {set: figures, …, "mean": …}, of these sets, with so many samples and these numbers, if they are
    given. ValueError for anything else."""
    found = read_json(path)
    mean = found.get("mean")
    k = k or (mean.get("samples") if isinstance(mean, dict) else None)
    for name in ["mean", *names, *(name for name in found if name != "settings")]:  # the mean first: the others are as it is
        figures = found.get(name)
        if not isinstance(figures, dict) or type(k) is not int or figures.get("samples") != k or not 0 < k < 10**6:
            raise ValueError(f"{path}: {name[:60]}: not the figures of an evaluation with {k!r:.60} samples")
        certain = {"pass@1", f"pass@{k}", "problems", "length", "truncated", "unparsed", "entropy", *columns}
        for column in certain | {"pass@1_se", f"cons@{k}", "format", "language"} | mean.keys() | figures.keys():
            value = figures.get(column, "missing")
            if not (number(value) or value is None and column not in certain):
                raise ValueError(f"{path}: {name[:60]}: {column[:60]} {value!r:.60} is not a finite number")
    return found


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The completions that an evaluation wrote."""
    for where, row in read_lines(path):
        for name in ("task", "prompt", "completion"):
            if not isinstance(row.get(name), str):
                raise ValueError(f"{where}: {name} {row.get(name)!r:.60} is not text")
        given = row.get("rewards")
        if not isinstance(given, dict) or not (
                given.get("accuracy", "missing") is None or number(given.get("accuracy"))):
            raise ValueError(f"{where}: rewards {given!r:.60} are not those of a completion")
        if not number(row.get("sample")):
            raise ValueError(f"{where}: sample {row.get('sample')!r:.60} is not a number")
        yield row


def shown(value: float | None, column: str) -> str:
    if value is None:
        return "–"
    digits = {"length": 0, "kl": 3}.get(column, 2)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.00
