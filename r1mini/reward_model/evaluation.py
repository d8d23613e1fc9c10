"""What a reward model has learned: the figures of held-out pairs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from r1mini.infra.device import autocast
from r1mini.model.reward_model import RewardModel
from r1mini.reward_model.data import Pair, micro_batches
from r1mini.reward_model.loss import accuracy, bradley_terry, length_correlation, within
from r1mini.training.logprobs import collate
from r1mini.training.scores import row_scores


def pair_scores(model: RewardModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P), fp32. An answer in several pairs is computed once."""
    rows = dict.fromkeys(row for pair in pairs for row in (pair.chosen, pair.rejected))
    index = {row: b for b, row in enumerate(rows)}
    scores_B = row_scores(model, collate(list(rows)).to(model.device))
    chosen = torch.tensor([index[pair.chosen] for pair in pairs], device=scores_B.device)
    rejected = torch.tensor([index[pair.rejected] for pair in pairs], device=scores_B.device)
    return scores_B[chosen], scores_B[rejected]


@torch.inference_mode()
def evaluate(model: RewardModel, pairs: Sequence[Pair], tokens: int, bf16: bool) -> dict[str, Any]:
    """The figures of held-out pairs. `tokens`: of a micro-batch."""
    margins, scores = [], {}  # scores: {(prompt, answer): score}
    for part in micro_batches(pairs, tokens):
        with autocast(model.device, bf16):
            sides = pair_scores(model, part)
        margins += (sides[0] - sides[1]).tolist()
        for name, scores_P in zip(("chosen", "rejected"), sides):
            answers = [(pair.prompt, getattr(pair, name)) for pair in part]
            scores.update(zip(answers, scores_P.tolist()))
    prompts = [prompt for prompt, _ in scores]
    lengths = [len(answer) for _, (_, answer) in scores]
    values = list(scores.values())
    mean, error = accuracy(margins, [pair.prompt for pair in pairs])
    margins_P = torch.tensor(margins)
    return {
        "held_out_pairs": len(pairs),
        "held_out_accuracy": mean,
        "held_out_accuracy_se": error,
        "held_out_loss": float(bradley_terry(margins_P, torch.zeros_like(margins_P)).mean()),
        "length_correlation": length_correlation(values, lengths, prompts),
        "score_mean": fmean(values),
        "score_std": math.sqrt(fmean(x * x for x in within(values, prompts))),
        **annotators(pairs),
    }


def annotators(pairs: Sequence[Pair]) -> dict[str, float]:
    """What the annotation allows, if the rows tell: how often a second annotation agrees with the
    first (`second_votes`: [for chosen, for rejected]), and the best accuracy that is possible
    (`chosen_is_likelier`; null: either is as likely). A tie counts half."""
    votes = [pair.columns.get("second_votes") for pair in pairs]
    likelier = [pair.columns.get("chosen_is_likelier", "unknown") for pair in pairs]
    figures = {}
    if all(are_votes(counts) for counts in votes):
        agreed = [(chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in votes]
        figures["annotator_agreement"] = fmean(agreed)
    if all(x is None or isinstance(x, bool) for x in likelier):
        figures["best_accuracy"] = fmean(0.5 if x is None else x for x in likelier)
    return figures


def are_votes(counts: Any) -> bool:
    """Whether a column is [for chosen, for rejected]."""
    return isinstance(counts, list) and [type(n) for n in counts] == [int, int]


def format_results(results: Mapping[str, Any]) -> str:
    text = (
        f"held out: {results['held_out_pairs']} pairs, accuracy {results['held_out_accuracy']:.3f}"
    )
    if (error := results["held_out_accuracy_se"]) is not None:
        text += f" ± {error:.3f}"
    if "best_accuracy" in results:
        text += f" (the best possible: {results['best_accuracy']:.3f})"
    if "annotator_agreement" in results:
        text += f"; two annotations agree on {results['annotator_agreement']:.3f}"
    correlated = results["length_correlation"]
    if correlated is not None:
        text += f"; correlation of score and length {correlated:+.2f}"
    spread = (
        f"{results['score_mean']:+.2f}, ± {results['score_std']:.2f} among the answers to a prompt"
    )
    return f"{text}; scores: {spread}"
