import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mini.rl.corrections import on_policy_rows, sampler_correction, top_entropy
from r1mini.rl.grpo import group_advantages, kl_to_reference, policy_loss, token_weights


def close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), atol=1e-5, rtol=1e-5)


def loss_and_gradient(logp, old_logp, advantage, weight, **options):
    logp = torch.tensor(logp, requires_grad=True)
    loss, metrics = policy_loss(
        logp, torch.tensor(old_logp), torch.tensor(advantage), torch.tensor(weight), **options
    )
    loss.backward()
    return loss.item(), logp.grad, metrics


def test_advantages_are_divided_by_the_groups_sample_standard_deviation():
    # Mean 0.25; squared deviations 0.5625 + 3 * 0.0625 = 0.75; sample variance 0.75 / 3 = 0.25, deviation 0.5.
    # The 1e-4 added to the deviation: 0.75 / 0.5001 = 1.4997.
    close(
        group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])),
        [[0.75 / 0.5001] + [-0.25 / 0.5001] * 3],
    )


def test_groups_are_normalised_separately():
    close(
        group_advantages(torch.tensor([[0.0, 1.0], [100.0, 300.0]])),
        # Deviations of two values d apart: d / sqrt(2).
        [
            [-0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4)],
            [-100 / (20000**0.5 + 1e-4), 100 / (20000**0.5 + 1e-4)],
        ],
    )


@pytest.mark.parametrize(
    "rewards",
    [
        [0.0] * 4,
        [0.1 + 0.2, 0.3, 0.3, 0.3],  # equal except for the last bit of a double
        [1.1] * 7,  # the mean of seven 1.1 is not 1.1 in floats
        [1e6 + 0.1] * 3,
    ],
)
def test_group_of_equal_rewards_has_advantages_of_exactly_zero(rewards):
    assert group_advantages(torch.tensor([rewards])).tolist() == [[0.0] * len(rewards)]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 1.0, 1.1, 1.2]), min_size=2, max_size=8))
def test_advantages_sum_to_zero_and_keep_the_order_of_the_rewards(rewards):
    advantages = group_advantages(torch.tensor([rewards]))[0].tolist()
    assert sum(advantages) == pytest.approx(0, abs=1e-4)
    assert all(
        a > b
        for a, r in zip(advantages, rewards)
        for b, s in zip(advantages, rewards)
        if r > s + 0.05
    )


REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 1.0, 3.0]])


@pytest.mark.parametrize(
    "options, advantages",
    [
        # Means 0.25 and 2.
        ({"scale": "none"}, [[0.75, -0.25, -0.25, -0.25], [1.0, -1.0, -1.0, 1.0]]),
        # The other three: (1 - 0, 0 - 1/3 ...), (3 - 5/3, 1 - 7/3, ...).
        (
            {"baseline": "leave-one-out", "scale": "none"},
            [[1.0, -1 / 3, -1 / 3, -1 / 3], [4 / 3, -4 / 3, -4 / 3, 4 / 3]],
        ),
        # All eight: mean 9/8, sum of squares 21, variance (21 - 81/8) / 7 = 87/56, deviation 1.2464.
        (
            {"scale": "batch"},
            [
                [x / (math.sqrt(87 / 56) + 1e-4) for x in row]
                for row in ([0.75, -0.25, -0.25, -0.25], [1.0, -1.0, -1.0, 1.0])
            ],
        ),
        ({"baseline": "none", "scale": "none"}, REWARDS.tolist()),
    ],
)
def test_other_baselines_and_scales_by_hand(options, advantages):
    close(group_advantages(REWARDS, **options), advantages)


@pytest.mark.parametrize(
    "options", [{}, {"scale": "batch"}, {"scale": "none"}, {"baseline": "leave-one-out"}]
)
def test_group_of_equal_rewards_has_zero_advantages_with_every_baseline(options):
    assert (
        group_advantages(torch.tensor([[1.1] * 7, [0.0] * 6 + [1.0]]), **options)[0].tolist()
        == [0.0] * 7
    )


MASK = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    "per, weights",
    [
        (
            "sequence",
            [1 / 3, 1 / 6, 1 / 15],
        ),  # each of 3 rows has 1/3, shared by its 1, 2 and 5 tokens
        ("token", [1 / 8] * 3),  # each of the 8 tokens has the same weight
        ("constant", [1 / 30] * 3),  # 3 rows of at most 10 tokens
        # Two micro-batches have 1/2 each: the first holds rows 0 and 1 with 3 tokens, the second row 2 with 5.
        ("microbatch", [1 / 6, 1 / 6, 1 / 10]),
    ],
)
def test_token_weights_by_hand(per, weights):
    got = token_weights(MASK, per, max_length=10, micro_batch_B=torch.tensor([0, 0, 1]))
    close(got, MASK * torch.tensor(weights)[:, None])


def test_masked_row_keeps_its_share_of_the_weight():
    # Like TRL's mask_truncated_completions: the second row has no gradient, and the first gets no extra weight for it.
    close(token_weights(torch.tensor([[1, 1], [0, 0]]), "sequence"), [[0.25, 0.25], [0.0, 0.0]])


def test_unknown_normaliser_names_the_keyword():
    with pytest.raises(ValueError, match="loss_per 'row': must be one of"):
        token_weights(MASK, "row")


def test_k3_by_hand():
    # pi_ref / pi = 2: 2 - ln 2 - 1; 1/2: 1/2 + ln 2 - 1; 1: 0.
    log2 = math.log(2)
    got = kl_to_reference(
        torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1 + log2, -1 - log2, -1.0])
    )
    close(got, [1 - log2, log2 - 0.5, 0.0])


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_k3_is_never_negative(logp, ref_logp):
    assert kl_to_reference(torch.tensor(logp), torch.tensor(ref_logp)).item() >= -1e-6


def test_k3_is_unbiased():
    # Its mean under pi is the exact divergence, sum of p log(p/q).
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    close((p * kl_to_reference(p.log(), q.log())).sum(), (p * (p / q).log()).sum().item())


def test_gradient_at_ratio_one_is_reinforce():
    loss, gradient, _ = loss_and_gradient(
        [[-1.0, -2.0], [-0.5, -3.0]],
        [[-1.0, -2.0], [-0.5, -3.0]],
        [2.0, -1.0],
        [[0.5, 0.25], [0.125, 0.125]],
    )
    # Loss -(sum of weight * A); gradient -(weight * A).
    assert loss == pytest.approx(-(0.75 * 2.0 - 0.25 * 1.0))
    close(gradient, [[-1.0, -0.5], [0.125, 0.125]])


@pytest.mark.parametrize(
    "ratio, advantage, objective, slope",
    [
        # e_low = 0.2, e_high = 0.5, so ratios are clipped to [0.8, 1.5]. The gradient of the ratio is the ratio itself.
        (2.0, 1.0, 1.5, 0.0),  # A > 0 and already more likely: clipped
        (2.0, -1.0, -2.0, -2.0),  # A < 0 and more likely: never clipped
        (0.5, 1.0, 0.5, 0.5),  # A > 0 and less likely: never clipped
        (0.5, -1.0, -0.8, 0.0),  # A < 0 and already less likely: clipped
        (1.4, 1.0, 1.4, 1.4),  # within the higher upper bound
    ],
)
def test_clip_is_the_pessimistic_bound_for_both_signs(ratio, advantage, objective, slope):
    loss, gradient, _ = loss_and_gradient(
        [[-1.0]], [[-1.0 - math.log(ratio)]], [advantage], [[1.0]], clip_low=0.2, clip_high=0.5
    )
    assert loss == pytest.approx(-objective, abs=1e-5)
    assert gradient.item() == pytest.approx(-slope, abs=1e-5)


# Two rows of 2 and 1 tokens, each token's ratio and advantage chosen, each weight 1/3. d(ratio)/d(logp) = ratio.
LN = math.log
VARIANTS = {
    # Row 0 (A = 1): 1.5 is clipped to 1.2, no slope; 0.5 stays. Row 1 (A = -2): 3 is bounded by delta = 2.5, no slope.
    "delta": (
        {"clip_low": 0.2, "clip_high": 0.2, "delta": 2.5},
        1.2 + 0.5 - 2 * 2.5,
        [0.0, 0.5, 0.0],
    ),
    # The sequence's ratio is the geometric mean: sqrt(1.5 * 0.5) = 0.8660 for both tokens of row 0, within 0.2; each
    # token's slope is the mean's, 0.8660 * 2 tokens * 1/2. Row 1: 3 with A < 0 is never clipped.
    "sequence": (
        {"ratio": "sequence", "clip_low": 0.2, "clip_high": 0.2},
        2 * 0.75**0.5 - 2 * 3,
        [0.75**0.5] * 2 + [-6.0],
    ),
    # min(ratio, 1 + 0.2) weighs A logp, logp = -1 everywhere, and is the slope itself: 1.2, 0.5 | 1.2 * -2.
    "cispo": ({"objective": "cispo", "clip_high": 0.2}, -1.2 - 0.5 + 2.4, [1.2, 0.5, -2.4]),
    # 4/t sigmoid(t (ratio - 1)) A, slope 4 s (1 - s) ratio A: s(0.5) = 0.62246, s(-0.5) = 0.37754, and for A < 0
    # with t = 2: s(4) = 0.98201, 4/2 * 0.98201 * -2 = -3.92806, slope 4 * 0.98201 * 0.01799 * 3 * -2 = -0.42391.
    "sapo": (
        {"objective": "sapo", "soft_up": 1.0, "soft_down": 2.0},
        4 * 0.6224593 + 4 * 0.3775407 - 3.9280552,
        [4 * 0.2350037 * 1.5, 4 * 0.2350037 * 0.5, -0.4239053],
    ),
    # The gradient at ratio 1, whatever the ratio is.
    "reinforce": ({"objective": "reinforce"}, 1 + 1 - 2, [1.0, 1.0, -2.0]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_objective_by_hand(name):
    options, objective, slopes = VARIANTS[name]
    loss, gradient, _ = loss_and_gradient(
        [[-1.0, -1.0], [-1.0, 7.0]],
        [[-1 - LN(1.5), -1 - LN(0.5)], [-1 - LN(3), 9.0]],
        [1.0, -2.0],
        [[1 / 3, 1 / 3], [1 / 3, 0.0]],
        **options,
    )
    assert loss == pytest.approx(-objective / 3, abs=1e-5)
    close(gradient, [[-slopes[0] / 3, -slopes[1] / 3], [-slopes[2] / 3, 0.0]])


@pytest.mark.parametrize(
    "estimate, value, slope",
    [
        # log(ref / pi) = ln 2. k1 = -ln 2, slope +1; k2 = (ln 2)^2 / 2, slope -ln 2; k3 = 1 - ln 2, slope 1 - 2.
        ("k1", -LN(2), 1.0),
        ("k2", LN(2) ** 2 / 2, -LN(2)),
        ("k3", 1 - LN(2), -1.0),
        # Multiplied by the ratio 3: value 3 (1 - ln 2), slope 3 (1 - ln 2) - 3.
        ("k3-weighted", 3 * (1 - LN(2)), 3 * (1 - LN(2)) - 3),
    ],
)
def test_kl_estimates_by_hand(estimate, value, slope):
    loss, gradient, _ = loss_and_gradient(
        [[-1.0]],
        [[-1 - LN(3)]],
        [0.0],
        [[1.0]],
        beta=0.1,
        kl=estimate,
        ref_logp_BT=torch.tensor([[-1 + LN(2)]]),
    )
    assert loss == pytest.approx(0.1 * value, rel=1e-5)
    assert gradient.item() == pytest.approx(0.1 * slope, rel=1e-5)


def test_policy_weight_multiplies_only_the_policy_term():
    loss, gradient, _ = loss_and_gradient(
        [[-1.0, -1.0]],
        [[-1.0, -1.0]],
        [1.0],
        [[0.5, 0.5]],
        beta=0.1,
        policy_weight_BT=torch.tensor([[2.0, 0.0]]),
        ref_logp_BT=torch.tensor([[-1 + LN(2)] * 2]),
    )
    assert loss == pytest.approx(-0.5 * 2 + 0.1 * (1 - LN(2)), rel=1e-5)
    close(gradient, [[-0.5 * 2 - 0.05, -0.05]])


CORRECTED = torch.tensor([[True, True, False]])


@pytest.mark.parametrize(
    "kind, weights",
    [
        # Ratios 2 and 4, their product 8; padding has ratio 1.
        ("none", [1, 1, 1]),
        ("token-truncate", [2, 3, 1]),
        ("token-mask", [2, 0, 1]),
        ("sequence-truncate", [3, 3, 3]),
        ("sequence-mask", [0, 0, 0]),
    ],
)
def test_sampler_correction_by_hand(kind, weights):
    learner, sampler = (
        torch.tensor([[-1.0, -1.0, -1.0]]),
        torch.tensor([[-1 - LN(2), -1 - LN(4), 50.0]]),
    )
    close(
        sampler_correction(learner, sampler, CORRECTED, kind, cap=3.0),
        [[float(w) for w in weights]],
    )


def test_top_entropy_keeps_the_tokens_with_the_highest_entropy():
    entropy, mask = (
        torch.tensor([[0.1, 0.9, 9.0], [0.5, 0.2, 0.3]]),
        torch.tensor([[True, True, False], [True] * 3]),
    )
    # Of .1 .9 .5 .2 .3 the highest 40 %: the 60 % quantile lies between .3 and .5.
    assert top_entropy(entropy, mask, 0.4).tolist() == [[False, True, False], [True, False, False]]
    assert top_entropy(torch.zeros(2, 3), mask, 1.0).tolist() == mask.tolist()


def test_unlikely_rows_with_negative_advantage_are_dropped():
    # log(sampler / learner) is 0.5 per token on both rows; only the row with A < 0 is dropped, and only above the limit.
    learner, sampler, mask = (
        torch.tensor([[-1.5, -1.5]] * 2),
        torch.tensor([[-1.0, -1.0]] * 2),
        torch.ones(2, 2, dtype=bool),
    )
    adv = torch.tensor([1.0, -1.0])
    assert on_policy_rows(learner, sampler, adv, mask, 0.4).tolist() == [[True], [False]]
    assert on_policy_rows(learner, sampler, adv, mask, 0.6).tolist() == [[True], [True]]


LOSSES = [
    {},
    {"ratio": "sequence"},
    {"delta": 1.5},
    {"objective": "cispo"},
    {"objective": "sapo"},
    {"objective": "reinforce"},
    {"beta": 0.1},
    {"beta": 0.1, "kl": "k3-weighted"},
]


def random_case(seed, **sizes):
    g = torch.Generator().manual_seed(seed)
    B, T = sizes.get("B", 6), sizes.get("T", 7)
    length_B = torch.randint(1, T + 1, (B,), generator=g)
    mask_BT = torch.arange(T)[None] < length_B[:, None]
    logp_BT = -3 * torch.rand(B, T, generator=g)
    old_BT, ref_BT = (logp_BT + 0.4 * torch.randn(B, T, generator=g) for _ in range(2))
    return mask_BT, logp_BT, old_BT, ref_BT, torch.randn(B, generator=g)


def gradient_of(mask_BT, logp_BT, old_BT, ref_BT, adv_B, per="sequence", parts=None, **options):
    """d(loss)/d(logp), micro-batch by micro-batch."""
    weight_BT, logp_BT = (
        token_weights(mask_BT, per, max_length=20),
        logp_BT.clone().requires_grad_(True),
    )
    ref = (lambda rows: ref_BT[rows]) if options.get("beta") else (lambda rows: None)
    for rows in parts or [range(len(adv_B))]:
        rows = list(rows)
        policy_loss(
            logp_BT[rows],
            old_BT[rows],
            adv_B[rows],
            weight_BT[rows],
            ref_logp_BT=ref(rows),
            **options,
        )[0].backward()
    return logp_BT.grad


@pytest.mark.parametrize("options", LOSSES, ids=str)
@pytest.mark.parametrize("per", ["sequence", "token", "constant"])
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_gradient_does_not_depend_on_split_order_or_padding(per, options, seed, order, cut):
    case = random_case(seed)
    whole = gradient_of(*case, per=per, **options)
    close(gradient_of(*case, per=per, parts=[order[:cut], order[cut:]], **options), whole)
    padded = [
        torch.nn.functional.pad(x, (0, 3), value=v)
        for x, v in zip(case[:4], (False, math.nan, -math.inf, math.inf))
    ]
    got = gradient_of(*padded, case[4], per=per, **options)
    close(got[:, :7], whole)
    assert not got[:, 7:].any()


@pytest.mark.parametrize("options", LOSSES[:6], ids=str)
@given(seed=st.integers(0, 10**6))
def test_ratio_one_gives_reinforce_and_zero_advantage_gives_no_gradient(options, seed):
    mask_BT, logp_BT, _, ref_BT, adv_B = random_case(seed)
    adv_B[0] = 0.0
    got = gradient_of(mask_BT, logp_BT, logp_BT, ref_BT, adv_B, per="token", **options)
    close(got, -token_weights(mask_BT, "token") * adv_B[:, None])
    assert not got[0].any()


@pytest.mark.parametrize("options", LOSSES, ids=str)
@pytest.mark.parametrize(
    "learner, old", [(-math.inf, -1.0), (-1.0, -math.inf), (-math.inf, -math.inf)]
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_tokens_of_zero_probability_never_give_nan(options, learner, old, advantage):
    reference = {"ref_logp_BT": torch.tensor([[-math.inf, -1.0]])} if options.get("beta") else {}
    loss, gradient, metrics = loss_and_gradient(
        [[learner, -1.0]], [[old, -1.0]], [advantage], [[0.5, 0.5]], **reference, **options
    )
    assert (
        math.isfinite(loss)
        and gradient.isfinite().all()
        and all(v.isfinite() for v in metrics.values())
    )


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: token_weights(MASK, "constant"), "max_length"),
        (lambda: token_weights(MASK, "microbatch"), "micro-batch"),
        (lambda: group_advantages(REWARDS, baseline="none"), "baseline 'none', scale 'group'"),
        (lambda: kl_to_reference(torch.zeros(1), torch.zeros(1), "k3-weighted"), "k3-weighted"),
    ],
)
def test_missing_argument_is_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: group_advantages(REWARDS, baseline="mean"), "baseline"),
        (lambda: group_advantages(REWARDS, scale="std"), "scale"),
        (lambda: kl_to_reference(torch.zeros(1), torch.zeros(1), "k4"), "kl"),
        (lambda: loss_and_gradient([[0.0]], [[0.0]], [1.0], [[1.0]], objective="ppo"), "objective"),
        (lambda: loss_and_gradient([[0.0]], [[0.0]], [1.0], [[1.0]], ratio="word"), "ratio"),
        (
            lambda: sampler_correction(
                torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=bool), "clip"
            ),
            "correction",
        ),
    ],
)
def test_unknown_choice_names_the_keyword_and_the_choices(call, name):
    with pytest.raises(ValueError, match=f"{name} .*: must be one of "):
        call()


def test_clip_metrics_count_clipped_tokens():
    old = [[-1.0 - math.log(r) for r in (2.0, 0.5, 1.0)]] * 2
    _, _, metrics = loss_and_gradient(
        [[-1.0] * 3] * 2, old, [1.0, -1.0], [[0.1, 0.2, 0.3], [0.05, 0.15, 0.2]]
    )
    assert metrics["clip_ratio/high_mean"].item() == 1  # row 0, ratio 2
    assert metrics["clip_ratio/low_mean"].item() == 1  # row 1, ratio 1/2


def test_kl_enters_the_loss_with_beta():
    log2 = math.log(2)
    loss, gradient, metrics = loss_and_gradient(
        [[-1.0]], [[-1.0]], [0.0], [[0.5]], ref_logp_BT=torch.tensor([[-1 + log2]]), beta=0.1
    )
    # KL = 2 - ln 2 - 1. Its gradient is 1 - pi_ref/pi = -1: towards the reference.
    assert metrics["kl"].item() == pytest.approx(1 - log2, rel=1e-5)
    assert loss == pytest.approx(0.1 * 0.5 * (1 - log2), rel=1e-5)
    assert gradient.item() == pytest.approx(0.5 * 0.1 * -1.0, rel=1e-5)


@pytest.mark.parametrize("at_padding", [-math.inf, -1e30, 1e30])
def test_tokens_of_weight_zero_contribute_nothing(at_padding):
    loss, gradient, metrics = loss_and_gradient(
        [[-1.0, at_padding, at_padding]],
        [[-1.0, 0.0, at_padding]],
        [1.0],
        [[1.0, 0.0, 0.0]],
        ref_logp_BT=torch.tensor([[-1.0, 0.0, at_padding]]),
        beta=0.5,
    )
    assert loss == pytest.approx(-1.0)
    assert gradient.tolist() == [[-1.0, 0.0, 0.0]]
    assert metrics["kl"].item() == 0.0


def test_overflowing_ratio_gives_a_finite_loss():
    loss, gradient, _ = loss_and_gradient([[-1.0]], [[-1000.0]], [-1.0], [[1.0]])
    assert math.isfinite(loss) and gradient.isfinite().all()
