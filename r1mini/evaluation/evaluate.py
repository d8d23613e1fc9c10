"""Held-out evaluation [R1 §3]: sample k completions per problem, score them, keep a row of each.

Problems come in sets: the held-out ones of an embedded task, or those of a file. All figures are
computed from the rows (figures.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from r1mini import tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.evaluation.figures import Figures, Row, average, summarise
from r1mini.infra.journal import Journal
from r1mini.model.transformer import Transformer
from r1mini.records import Problem, Rollout
from r1mini.rewards import REWARDS, completion
from r1mini.rewards.runner import Scores, score_async, worker_pool
from r1mini.rewards.spec import ALWAYS_LOGGED
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training.logprobs import collate, token_logprobs
from r1mini.training.micro_batches import by_prompt

MICRO_BATCH = 4096  # tokens per forward pass of the reference
ProblemSets = Mapping[str, Sequence[Problem]]
Scored = tuple[Problem, list[Rollout], Scores]


def evaluate(
    sampled: Iterable[Scored],
    sets: ProblemSets,
    journal: Journal,
    reference: Transformer | None,
    temperature: float,
) -> tuple[dict[str, Figures], list[Row]]:
    """({set: figures, ..., "mean": figures}, a row per completion).

    `sampled` are the problems that are not yet in the journal, with their scored completions. With
    a `reference`, the figures include the KL from it.
    """
    for problem, rollouts, scores in sampled:
        rows = make_rows(problem, rollouts, scores)
        if reference is not None:
            logprobs = reference_logprobs(reference, rollouts, temperature)
            rows = [row | {"reference_logprob": x} for row, x in zip(rows, logprobs)]
        journal.add(rows)
    groups = iter(journal.parts)
    results = {
        title: summarise([next(groups) for _ in problems]) for title, problems in sets.items()
    }
    results["mean"] = average(list(results.values()))
    return results, [row for group in journal.parts for row in group]


def sample_and_score(
    model: Transformer,
    tokenizer: Tokenizer,
    sets: ProblemSets,
    samples: int,
    params: SamplingParams,
    seed: int,
    *,
    done: int = 0,
    names: Sequence[str] = (*ALWAYS_LOGGED, "code"),
    max_rows: int = 256,
    progress: str | None = None,
) -> Iterator[Scored]:
    """(problem, its completions, their rewards `names`) of all problems but the first `done`.

    A resumed job samples the same problems in parallel as an uninterrupted one, including finished
    ones: otherwise the last bits of the log-probabilities would differ.
    """
    functions = {name: REWARDS[name] for name in names}
    side_by_side = max(1, max_rows // samples)
    with worker_pool() as pool:
        for number, (title, problems) in enumerate(sets.items()):
            for start in range(0, len(problems), side_by_side):
                batch, skipped = problems[start : start + side_by_side], max(0, done - start)
                if skipped >= len(batch):
                    continue
                groups = sample(
                    model,
                    tokenizer,
                    [problem.prompt for problem in batch],
                    samples,
                    params,
                    seed=seed,
                    step=number,
                    first_prompt=start,
                    max_rows=max_rows,
                    progress=progress and f"{progress} {title} {start + 1}/{len(problems)}",
                )
                batch, groups = batch[skipped:], groups[skipped:]
                pending = [score_async(*pair, functions, pool) for pair in zip(batch, groups)]
                yield from zip(batch, groups, (scoring.result() for scoring in pending))
            done = max(0, done - len(problems))


def make_rows(problem: Problem, rollouts: Sequence[Rollout], scores: Scores) -> list[dict]:
    """A row per completion, with everything that the figures need."""
    rows = []
    for number, (rollout, rewards) in enumerate(zip(rollouts, scores)):
        prompt, text = problem.prompt_and_completion(rollout)
        rows.append(
            {
                "task": problem.task,
                "problem": problem.key,
                "language": problem.language,
                "prompt": prompt,
                "sample": number,
                "completion": text,
                "answer": completion.extract_answer(problem, text),
                "gold": completion.gold_answer(problem),
                "rewards": rewards,
                "finished": rollout.finished,
                "tokens": len(rollout.completion_ids),
                "logprob": sum(rollout.logprobs),
            }
        )
    return rows


@torch.inference_mode()
def reference_logprobs(
    reference: Transformer, rollouts: Sequence[Rollout], temperature: float
) -> list[float]:
    """The log-probability of each completion under another model, in nats."""
    logprobs = [0.0] * len(rollouts)
    rows = [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
    for chosen in by_prompt(rows, MICRO_BATCH):
        batch = collate([rows[b] for b in chosen]).to(reference.lm_head.weight.device)
        logp_B = token_logprobs(reference, batch, temperature).sum(-1)
        for b, logp in zip(chosen, logp_B.tolist()):
            logprobs[b] = logp
    return logprobs


def held_out(name: str, count: int) -> list[Problem]:
    """The first held-out problems of an embedded task, each once; all if there are fewer."""
    problems = {}
    for index in range(50 * count):
        problem = tasks.problem(name, "evaluation", index, "heldout")
        problems.setdefault(problem.key, problem)
        if len(problems) == count:
            break
    return list(problems.values())
