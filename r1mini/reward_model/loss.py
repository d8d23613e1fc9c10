"""The Bradley-Terry loss of preference pairs, and what their scores say about a reward model.

P(chosen over rejected) = sigmoid(score of chosen - score of rejected); the loss is -log P
(Bradley & Terry 1952; InstructGPT, arXiv 2203.02155, Eq. 1). Letters: P pairs.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import correlation, fmean

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """[P] -log sigmoid(chosen - rejected), in nats.

    >>> import torch
    >>> bradley_terry(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))
    tensor([0.6931, 0.1269])
    """
    return -F.logsigmoid(chosen_P - rejected_P)


def accuracy(margins: Sequence[float], prompts: Sequence[Hashable]) -> tuple[float, float]:
    """(share of pairs whose chosen answer scores higher, its standard error). A tie counts half.

    `margins`: chosen minus rejected. Pairs of one prompt are not independent, so the error is that
    of a mean over clusters.

    >>> accuracy([1.0, 2.0, -1.0, 0.0], ["a", "a", "b", "b"])
    (0.625, 0.2651650429449553)
    """
    correct = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    mean, deviations = fmean(correct), {}
    for value, prompt in zip(correct, prompts):
        deviations[prompt] = deviations.get(prompt, 0.0) + value - mean
    return mean, math.sqrt(sum(d * d for d in deviations.values())) / len(correct)


def length_correlation(scores: Sequence[float], lengths: Sequence[int]) -> float | None:
    """Pearson's correlation of score and length; None if one of them never varies."""
    if len(set(scores)) < 2 or len(set(lengths)) < 2:
        return None
    return correlation(scores, lengths)
