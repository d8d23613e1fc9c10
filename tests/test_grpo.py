import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mini.grpo import group_advantages, kl_to_reference, policy_loss, token_weights


def close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), atol=1e-5, rtol=1e-5)


def loss_and_gradient(logp, old_logp, advantage, weight, **options):
    logp = torch.tensor(logp, requires_grad=True)
    loss, metrics = policy_loss(logp, torch.tensor(old_logp), torch.tensor(advantage), torch.tensor(weight), **options)
    loss.backward()
    return loss.item(), logp.grad, metrics


def test_advantages_are_deviations_in_units_of_the_groups_sample_deviation():
    # Mean 0.25; squared deviations 0.5625 + 3 * 0.0625 = 0.75; sample variance 0.75 / 3 = 0.25, deviation 0.5.
    # The 1e-4 added to the deviation: 0.75 / 0.5001 = 1.4997.
    close(group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])), [[0.75 / 0.5001] + [-0.25 / 0.5001] * 3])


def test_groups_are_normalised_apart():
    close(group_advantages(torch.tensor([[0.0, 1.0], [100.0, 300.0]])),
          # Deviations of two values d apart: d / sqrt(2).
          [[-0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4)], [-100 / (20000**0.5 + 1e-4), 100 / (20000**0.5 + 1e-4)]])


@pytest.mark.parametrize("rewards", [
    [0.0] * 4,
    [0.1 + 0.2, 0.3, 0.3, 0.3],  # equal but for the last bit of a double
    [1.1] * 7,  # the mean of seven 1.1 is not 1.1 in floats
    [1e6 + 0.1] * 3,
])
def test_flat_group_has_advantages_of_exactly_zero(rewards):
    assert group_advantages(torch.tensor([rewards])).tolist() == [[0.0] * len(rewards)]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 1.0, 1.1, 1.2]), min_size=2, max_size=8))
def test_advantages_sum_to_zero_and_keep_the_order_of_the_rewards(rewards):
    advantages = group_advantages(torch.tensor([rewards]))[0].tolist()
    assert sum(advantages) == pytest.approx(0, abs=1e-4)
    assert all(a > b for a, r in zip(advantages, rewards) for b, s in zip(advantages, rewards) if r > s + 0.05)


def test_token_weights_by_hand():
    # Per sequence: each of 3 rows has 1/3, shared by its tokens. Per token: 1 of 8 tokens each.
    close(token_weights(torch.tensor([1, 2, 5]), "sequence"), [1 / 3, 1 / 6, 1 / 15])
    close(token_weights(torch.tensor([1, 2, 5]), "token"), [1 / 8] * 3)


def test_unknown_normaliser_names_the_flag():
    with pytest.raises(ValueError, match="--loss-per.*'row'"):
        token_weights(torch.tensor([1]), "row")


def test_k3_by_hand():
    # pi_ref / pi = 2: 2 - ln 2 - 1; 1/2: 1/2 + ln 2 - 1; 1: 0.
    log2 = math.log(2)
    got = kl_to_reference(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1 + log2, -1 - log2, -1.0]))
    close(got, [1 - log2, log2 - 0.5, 0.0])


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_k3_is_never_negative(logp, ref_logp):
    assert kl_to_reference(torch.tensor(logp), torch.tensor(ref_logp)).item() >= -1e-6


def test_k3_is_unbiased():
    # Its mean under pi is the exact divergence, sum of p log(p/q).
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    close((p * kl_to_reference(p.log(), q.log())).sum(), (p * (p / q).log()).sum().item())


def test_ratio_of_one_gives_the_reinforce_gradient():
    loss, gradient, _ = loss_and_gradient([[-1.0, -2.0], [-0.5, -3.0]], [[-1.0, -2.0], [-0.5, -3.0]], [2.0, -1.0],
                                          [[0.5, 0.25], [0.125, 0.125]])
    # Loss -(sum of weight * A); gradient -(weight * A).
    assert loss == pytest.approx(-(0.75 * 2.0 - 0.25 * 1.0))
    close(gradient, [[-1.0, -0.5], [0.125, 0.125]])


@pytest.mark.parametrize("ratio, advantage, objective, slope", [
    # e_low = 0.2, e_high = 0.5, so ratios are clipped to [0.8, 1.5]. The gradient of the ratio is the ratio itself.
    (2.0, 1.0, 1.5, 0.0),  # good and likelier already: clipped
    (2.0, -1.0, -2.0, -2.0),  # bad and likelier: never clipped
    (0.5, 1.0, 0.5, 0.5),  # good and less likely: never clipped
    (0.5, -1.0, -0.8, 0.0),  # bad and less likely already: clipped
    (1.4, 1.0, 1.4, 1.4),  # within the higher bound alone
])
def test_clip_is_the_pessimistic_bound_for_either_sign(ratio, advantage, objective, slope):
    loss, gradient, _ = loss_and_gradient([[-1.0]], [[-1.0 - math.log(ratio)]], [advantage], [[1.0]],
                                          clip_low=0.2, clip_high=0.5)
    assert loss == pytest.approx(-objective, abs=1e-5)
    assert gradient.item() == pytest.approx(-slope, abs=1e-5)


def test_clip_metrics_are_the_weight_of_the_tokens_that_are_clipped():
    old = [[-1.0 - math.log(r) for r in (2.0, 0.5, 1.0)]] * 2
    _, _, metrics = loss_and_gradient([[-1.0] * 3] * 2, old, [1.0, -1.0], [[0.1, 0.2, 0.3], [0.05, 0.15, 0.2]])
    assert metrics["clip_ratio/high_mean"].item() == pytest.approx(0.1)  # row 0, ratio 2
    assert metrics["clip_ratio/low_mean"].item() == pytest.approx(0.15)  # row 1, ratio 1/2


def test_kl_enters_the_loss_with_beta():
    log2 = math.log(2)
    loss, gradient, metrics = loss_and_gradient([[-1.0]], [[-1.0]], [0.0], [[0.5]],
                                                ref_logp_BT=torch.tensor([[-1 + log2]]), beta=0.1)
    # KL = 2 - ln 2 - 1. Its gradient is 1 - pi_ref/pi = -1: towards the reference.
    assert metrics["kl"].item() == pytest.approx(0.5 * (1 - log2), rel=1e-5)
    assert loss == pytest.approx(0.1 * 0.5 * (1 - log2), rel=1e-5)
    assert gradient.item() == pytest.approx(0.5 * 0.1 * -1.0, rel=1e-5)


@pytest.mark.parametrize("at_padding", [-math.inf, -1e30, 1e30])
def test_tokens_of_weight_zero_contribute_nothing_whatever_they_hold(at_padding):
    loss, gradient, metrics = loss_and_gradient(
        [[-1.0, at_padding, at_padding]], [[-1.0, 0.0, at_padding]], [1.0], [[1.0, 0.0, 0.0]],
        ref_logp_BT=torch.tensor([[-1.0, 0.0, at_padding]]), beta=0.5)
    assert loss == pytest.approx(-1.0)
    assert gradient.tolist() == [[-1.0, 0.0, 0.0]]
    assert metrics["kl"].item() == 0.0


def test_ratio_that_overflows_stays_finite():
    loss, gradient, _ = loss_and_gradient([[-1.0]], [[-1000.0]], [-1.0], [[1.0]])
    assert math.isfinite(loss) and gradient.isfinite().all()
