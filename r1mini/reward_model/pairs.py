"""Preference pairs of a general task, as R1 made them: answers of several models, and a judge.
[R1 §2.3.4]

    python -m r1mini.reward_model.pairs --models runs/r1/dev1 runs/r1/dev3 --out runs/pairs.jsonl

Two answers to a prompt are judged several times, in both orders, and kept where the verdicts are
clear. R1's judge was DeepSeek-V3; here the simulated annotator of the task takes its place
(tasks/annotator.py), with its errors and its biases. So that length alone says
nothing, as many of the kept pairs prefer the longer answer as the shorter one.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import NamedTuple

from r1mini import checkpoint, tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import DeviceOptions, option, run_script, validate
from r1mini.infra.device import autocast, pick_device
from r1mini.infra.files import write_rows
from r1mini.records import Problem, Rollout
from r1mini.rewards.completion import is_blank, visible_answer
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.tasks import annotator


@dataclass(frozen=True)
class Config(DeviceOptions):
    models: tuple[str, ...] = option(("base",), "model folders whose answers are compared")
    out: str = option("runs/pairs.jsonl", "file of preference pairs")
    tasks: tuple[str, ...] = option(tasks.GENERAL, "general tasks, taken in turn")
    problems: int = option(
        400, "prompts to draw; what is drawn again is answered once", bounds="1 <= x"
    )
    samples: int = option(4, "answers of each model to a prompt", bounds="1 <= x")
    pairs: int = option(
        600, "random pairs of the answers to a prompt, at most, to judge", bounds="1 <= x"
    )
    judgements: int = option(4, "judgements of a pair, half of them in each order; R1: 4")
    margin: float = option(
        0.5,
        "keep a pair if the verdicts for and against differ by at least this share of all",
        bounds="0 < x <= 1",
    )
    temperature: float = option(1.0, "sampling temperature", bounds="0 < x")
    max_new_tokens: int = option(400, "length limit of a completion", bounds="1 <= x")
    sampler_rows: int = option(512, "completions sampled in parallel", bounds="1 <= x")


class Answer(NamedTuple):
    text: str  # what the annotator reads, and the reward model
    tokens: int
    model: str


def main(cfg: Config) -> dict:
    """Write the pairs. Returns their counts."""
    check(cfg)
    drawn = (
        tasks.problem(cfg.tasks[i % len(cfg.tasks)], f"pairs {cfg.seed}", i, "train")
        for i in range(cfg.problems)
    )
    problems = list({problem.prompt: problem for problem in drawn}.values())
    answers = [[] for _ in problems]
    for number, model in enumerate(cfg.models):
        for same_prompt, new in zip(answers, sample_answers(cfg, model, number, problems)):
            same_prompt += new
    rows, counts = [], Counter()
    for number, (problem, same_prompt) in enumerate(zip(problems, answers)):
        rng = Random(f"{cfg.seed} judge {number}")
        chosen = random_pairs(same_prompt, cfg.pairs, rng)
        rows += clear_pairs(problem, chosen, cfg.judgements, cfg.margin, rng)
        counts["judged"] += len(chosen)
    counts["clear"] = len(rows)
    rows = balance_lengths(rows, Random(f"{cfg.seed} balance"))
    counts["kept"] = len(rows)
    if not rows:
        raise ValueError(
            f"--models: {counts['judged']} pairs of different answers judged, {counts['clear']} "
            f"clear with --margin {cfg.margin:g}, none left with balanced lengths"
        )
    write_rows(Path(cfg.out), rows)
    print(
        f"{cfg.out}: {counts['judged']} pairs judged, {counts['clear']} clear, {counts['kept']} "
        "kept with balanced lengths"
    )
    return dict(counts)


def check(cfg: Config) -> None:
    validate(cfg)
    for name in cfg.tasks:
        if name not in tasks.GENERAL:
            raise ValueError(f"--tasks: {name!r} is not one of {', '.join(tasks.GENERAL)}")
    if cfg.judgements < 2 or cfg.judgements % 2:
        raise ValueError(f"--judgements {cfg.judgements}: must be even, half in each order")
    if len(cfg.models) * cfg.samples < 2:
        raise ValueError(f"--samples {cfg.samples}: of one model, at least 2 answers make a pair")


def sample_answers(
    cfg: Config, model: str, number: int, problems: Sequence[Problem]
) -> list[list[Answer]]:
    device = pick_device(cfg.device, cfg.threads, tf32=cfg.tf32)
    policy, tokenizer = checkpoint.load(model, device)
    with autocast(device, cfg.bf16):
        groups = sample(
            policy,
            tokenizer,
            [problem.prompt for problem in problems],
            cfg.samples,
            SamplingParams(cfg.max_new_tokens, cfg.temperature),
            seed=cfg.seed,
            step=number,
            max_rows=cfg.sampler_rows,
            progress=f"answers of {model}" if cfg.progress else None,
        )
    return [read_answers(model, rollouts, tokenizer) for rollouts in groups]


def read_answers(model: str, rollouts: Sequence[Rollout], tokenizer: Tokenizer) -> list[Answer]:
    """The answers that a reader can see."""
    texts = [visible_answer(rollout.text) for rollout in rollouts]
    texts = [text for text in texts if not is_blank(text)]
    return [
        Answer(text, len(ids), model) for text, ids in zip(texts, tokenizer.encode_batch(texts))
    ]


def random_pairs(answers: Sequence[Answer], limit: int, rng: Random) -> list[tuple[Answer, Answer]]:
    """Every two different answers, or a random `limit` of such pairs."""
    different = {answer.text: answer for answer in answers}
    pairs = list(combinations(different.values(), 2))
    return rng.sample(pairs, min(limit, len(pairs)))


def clear_pairs(
    problem: Problem,
    pairs: Sequence[tuple[Answer, Answer]],
    judgements: int,
    margin: float,
    rng: Random,
) -> Iterator[dict]:
    """The rows of the pairs whose verdicts differ by at least this share of the judgements. These
    are annotated once more, which tells how far one can trust the first annotation."""
    texts = {answer.text for pair in pairs for answer in pair}
    appeals = {text: annotator.appeal(problem, text) for text in sorted(texts)}
    for first, second in pairs:
        appeal, other = appeals[first.text], appeals[second.text]
        votes = judge(appeal, other, judgements, rng)
        if abs(votes[0] - votes[1]) < margin * judgements:
            continue
        again = judge(appeal, other, judgements, rng)
        likelier = appeal - other
        if votes[1] > votes[0]:
            first, second, likelier = second, first, -likelier
            votes, again = votes[::-1], again[::-1]
        yield {
            "prompt": problem.prompt,
            "chosen": first.text,
            "rejected": second.text,
            "task": problem.task,
            "problem": problem.key,
            "votes": votes,
            "second_votes": again,
            "chosen_is_likelier": None if likelier == 0 else likelier > 0,
            "models": [first.model, second.model],
            "tokens": [first.tokens, second.tokens],
        }


def judge(first: float, second: float, judgements: int, rng: Random) -> list[int]:
    """[votes for the first answer, for the second], of answers with these appeals: half of the
    judgements in each order."""
    half = judgements // 2
    votes = sum(annotator.prefers_first(first, second, rng) for _ in range(half))
    votes += sum(not annotator.prefers_first(second, first, rng) for _ in range(half))
    return [votes, judgements - votes]


def balance_lengths(rows: Sequence[dict], rng: Random) -> list[dict]:
    """Leave out random pairs, so that the longer answer is chosen as often as the shorter one."""
    longer = [i for i, row in enumerate(rows) if row["tokens"][0] > row["tokens"][1]]
    shorter = [i for i, row in enumerate(rows) if row["tokens"][0] < row["tokens"][1]]
    more, fewer = sorted((longer, shorter), key=len, reverse=True)
    left_out = set(rng.sample(more, len(more) - len(fewer)))
    return [row for i, row in enumerate(rows) if i not in left_out]


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.reward_model.pairs"
    run_script(main, Config, description=__doc__)
