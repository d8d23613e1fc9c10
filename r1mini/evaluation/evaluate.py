"""Held-out evaluation [R1 §3]: sample k completions per problem, score them, keep a row of each.

Problems come in sets: the held-out ones of an embedded task, or those of a file. All figures are
computed from the rows (figures.py).
"""

from collections.abc import Sequence

import torch

from r1mini import tasks
from r1mini.evaluation.figures import Figures, Row, average, summarise
from r1mini.evaluation.jobs import ProblemSets, Session, sample_and_score
from r1mini.infra.journal import Journal
from r1mini.model.transformer import Transformer
from r1mini.records import Problem, Rollout
from r1mini.rewards import completion, rules
from r1mini.rewards.runner import ALWAYS_LOGGED, Scores
from r1mini.training.logprobs import collate, token_logprobs
from r1mini.training.micro_batches import by_prompt

REWARDS = (*ALWAYS_LOGGED, "code")
MICRO_BATCH = 4096  # tokens per forward pass of the reference


def evaluate(
    session: Session, sets: ProblemSets, journal: Journal, reference: Transformer | None
) -> tuple[dict[str, Figures], list[Row]]:
    """({set: figures, ..., "mean": figures}, a row per completion).

    Samples the problems that are not yet in the journal. With a `reference`, the figures include
    the KL from it.
    """
    for problem, rollouts, scores in sample_and_score(session, sets, REWARDS, len(journal.parts)):
        rows = make_rows(problem, rollouts, scores)
        if reference is not None:
            logprobs = reference_logprobs(reference, rollouts, session.params.temperature)
            rows = [row | {"reference_logprob": x} for row, x in zip(rows, logprobs)]
        journal.add(rows)
    groups = iter(journal.parts)
    results = {
        title: summarise([next(groups) for _ in problems]) for title, problems in sets.items()
    }
    results["mean"] = average(list(results.values()))
    return results, [row for group in journal.parts for row in group]


def make_rows(problem: Problem, rollouts: Sequence[Rollout], scores: Scores) -> list[dict]:
    """A row per completion, with everything that the figures need. Only rows of a task that has a
    utility have a "utility"."""
    rows, general = [], has_utility(problem)
    for number, (rollout, rewards) in enumerate(zip(rollouts, scores)):
        prompt, text = problem.prompt_and_completion(rollout)
        utility = {"utility": answer_utility(problem, text, rollout.finished)} if general else {}
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
                **utility,
                "finished": rollout.finished,
                "tokens": len(rollout.completion_ids),
                "logprob": sum(rollout.logprobs),
            }
        )
    return rows


def has_utility(problem: Problem) -> bool:
    return problem.task in tasks.TASKS and tasks.TASKS[problem.task].utility is not None


def answer_utility(problem: Problem, text: str, finished: bool) -> float:
    """How good the answer to a general prompt is, 0 to 1; 0 for a completion that was cut off or
    has a format error."""
    well_formed = finished and rules.format_error(problem, text) is None
    answer = completion.parse(text)[1] if well_formed else None
    return tasks.TASKS[problem.task].utility(problem, answer)


@torch.inference_mode()
def reference_logprobs(
    reference: Transformer, rollouts: Sequence[Rollout], temperature: float
) -> list[float]:
    """The log-probability of each completion under another model, in nats."""
    logprobs = [0.0] * len(rollouts)
    rows = [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
    for chosen in by_prompt(rows, MICRO_BATCH):
        batch = collate([rows[b] for b in chosen]).to(reference.device)
        logp_B = token_logprobs(reference, batch, temperature).sum(-1)
        for b, logp in zip(chosen, logp_B.tolist()):
            logprobs[b] = logp
    return logprobs
