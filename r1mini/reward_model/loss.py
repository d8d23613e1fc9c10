"""The Bradley-Terry loss of preference pairs, and what their scores say about a reward model.

P(chosen over rejected) = sigmoid(score of chosen - score of rejected); the loss is -log P
(Bradley & Terry 1952; InstructGPT, arXiv 2203.02155, Eq. 1). Letters: P pairs.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import fmean

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """[P] -log sigmoid(chosen - rejected), in nats.

    >>> import torch
    >>> bradley_terry(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))
    tensor([0.6931, 0.1269])
    """
    return -F.logsigmoid(chosen_P - rejected_P)


def accuracy(margins: Sequence[float], prompts: Sequence[Hashable]) -> tuple[float, float | None]:
    """(share of pairs whose chosen answer scores higher, its standard error). A tie counts half.

    `margins`: chosen minus rejected. Pairs of one prompt are not independent, so the error is that
    of a mean over clusters; None for a single prompt.

    >>> accuracy([1.0, 2.0, -1.0, 0.0], ["a", "a", "b", "b"])
    (0.625, 0.375)
    """
    correct = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    mean, deviations = fmean(correct), {}
    for value, prompt in zip(correct, prompts):
        deviations[prompt] = deviations.get(prompt, 0.0) + value - mean
    count = len(deviations)
    if count < 2:
        return mean, None
    variance = sum(d * d for d in deviations.values()) * count / (count - 1)
    return mean, math.sqrt(variance) / len(correct)


def length_correlation(
    scores: Sequence[float], lengths: Sequence[int], prompts: Sequence[Hashable]
) -> float | None:
    """Pearson's correlation of score and length among the answers to a prompt: both without the
    prompt's mean, because scores of different prompts cannot be compared. None if one of them never
    varies."""
    x, y = within(scores, prompts), within(lengths, prompts)
    if not any(x) or not any(y):
        return None
    return sum(a * b for a, b in zip(x, y)) / math.sqrt(
        sum(a * a for a in x) * sum(b * b for b in y)
    )


def within(values: Sequence[float], prompts: Sequence[Hashable]) -> list[float]:
    """Each value minus the mean of its prompt.

    >>> within([1, 3, 5], ["a", "a", "b"])
    [-1.0, 1.0, 0.0]
    """
    of_prompt = {}
    for value, prompt in zip(values, prompts):
        of_prompt.setdefault(prompt, []).append(value)
    return [value - fmean(of_prompt[prompt]) for value, prompt in zip(values, prompts)]
