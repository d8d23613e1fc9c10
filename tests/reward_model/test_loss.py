"""The Bradley-Terry loss and the figures of a reward model, by hand."""

import math

import pytest
import torch

from r1mini.reward_model.loss import accuracy, bradley_terry, length_correlation


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_loss_and_gradient_by_hand():
    margins = [0.0, 1.5, -2.0]
    chosen_P = torch.tensor([0.3, 2.0, -1.0], requires_grad=True)
    rejected_P = torch.tensor([0.3, 0.5, 1.0], requires_grad=True)
    loss_P = bradley_terry(chosen_P, rejected_P)
    assert loss_P.tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in margins])
    assert loss_P.tolist() == pytest.approx([0.693147, 0.201413, 2.126928], abs=1e-6)
    loss_P.sum().backward()
    slopes = [-(1 - sigmoid(margin)) for margin in margins]
    assert slopes == pytest.approx([-0.5, -0.182426, -0.880797], abs=1e-6)
    assert chosen_P.grad.tolist() == pytest.approx(slopes)
    assert rejected_P.grad.tolist() == pytest.approx([-slope for slope in slopes])


def test_loss_depends_on_the_difference_alone():
    chosen_P, rejected_P = torch.tensor([1.0, -3.0]), torch.tensor([0.25, 2.0])
    shifted = bradley_terry(chosen_P + 64.0, rejected_P + 64.0)
    assert shifted.equal(bradley_terry(chosen_P, rejected_P))


def test_extreme_margins_stay_finite():
    chosen_P = torch.tensor([500.0, -500.0], requires_grad=True)
    loss_P = bradley_terry(chosen_P, torch.zeros(2))
    loss_P.sum().backward()
    assert loss_P.tolist() == [0.0, 500.0] and chosen_P.grad.tolist() == [0.0, -1.0]


def test_accuracy_counts_a_tie_half():
    mean, _ = accuracy([0.1, -0.1, 0.0, 2.0], list("abcd"))
    assert mean == 2.5 / 4


def test_standard_error_of_clusters_by_hand():
    # Right, right, wrong | right | wrong, wrong: the mean is 1/2, and the deviations of the three
    # prompts add up to 1/2, 1/2 and -1.
    margins, prompts = [1.0, 1.0, -1.0, 1.0, -1.0, -1.0], list("aaabcc")
    mean, error = accuracy(margins, prompts)
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt((0.25 + 0.25 + 1) * 3 / 2) / 6)
    assert accuracy(margins, "a" * 6) == (0.5, None)  # one prompt has no spread


def test_standard_error_of_independent_pairs_is_that_of_a_share():
    margins = [1.0] * 3 + [-1.0]
    _, error = accuracy(margins, range(4))
    assert error == pytest.approx(math.sqrt(0.75 * 0.25 / 4 * 4 / 3))
    _, dependent = accuracy(margins * 2, [*range(4)] * 2)  # each pair twice tells nothing new
    assert dependent == pytest.approx(error)


def test_length_correlation_by_hand():
    same = "aaaa"
    assert length_correlation([1.0, 2.0, 3.0], [10, 20, 30], same[:3]) == pytest.approx(1)
    assert length_correlation([1.0, 2.0, 3.0], [30, 20, 10], same[:3]) == pytest.approx(-1)
    assert length_correlation([1.0, 0.0, 1.0, 0.0], [5, 5, 9, 9], same) == pytest.approx(0)
    assert length_correlation([1.0, 2.0], [7, 7], same[:2]) is None
    assert length_correlation([1.0, 1.0], [7, 8], same[:2]) is None
    # The longer answer scores higher at both prompts, although the prompt of long answers is the
    # one of low scores.
    assert length_correlation([5.0, 6.0, 1.0, 2.0], [1, 2, 8, 9], "aabb") == pytest.approx(1)
