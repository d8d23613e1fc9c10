import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mini.sampler.sampling import (
    SamplingParams,
    inverse_cdf_sample,
    next_token_probs,
    row_uniforms,
)


def probabilities(p, **params):
    return next_token_probs(torch.tensor([p]).log(), SamplingParams(**params))[0].tolist()


@pytest.mark.parametrize(
    "params, expected",
    [
        ({}, [0.5, 0.25, 0.125, 0.125]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),  # squares: 16, 4, 1, 1 of 64
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.125, 0.125]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),  # the first alone reaches 0.5
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),  # the token that crosses it stays
        ({"min_p": 0.3}, [2 / 3, 1 / 3, 0, 0]),  # 0.125 < 0.3 * 0.5
        ({"min_p": 0.25}, [0.5, 0.25, 0.125, 0.125]),
        # Temperature comes first: squared, 0.25's share falls to 4/22 < 0.3 * 16/22.
        ({"temperature": 0.5, "min_p": 0.3}, [1, 0, 0, 0]),
        # Top-k comes before top-p: of (2/3, 1/3) the first reaches 0.6.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
    ],
)
def test_next_token_probabilities(params, expected):
    assert probabilities([0.5, 0.25, 0.125, 0.125], **params) == pytest.approx(expected, abs=1e-5)


def test_nucleus_does_not_depend_on_vocabulary_order():
    assert probabilities([0.125, 0.25, 0.125, 0.5], top_p=0.6) == pytest.approx(
        [0, 1 / 3, 0, 2 / 3], abs=1e-5
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("temperature", float("nan")),
    ],
)
def test_bad_sampling_settings_name_their_flag(name, value):
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        SamplingParams(**{name: value})


@given(
    st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0]), min_size=1, max_size=30).filter(any),
    st.floats(0, 0.999999),
)
def test_token_of_zero_probability_is_never_drawn(weights, uniform):
    p = torch.tensor([weights]) / sum(weights)
    token = inverse_cdf_sample(p, torch.tensor([min(uniform, 1 - 2**-24)])).item()
    assert weights[token] > 0


def test_sampled_frequencies_match_the_probabilities():
    # Evenly spaced uniform numbers hit each token as often as its probability says, to one in 1000.
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = inverse_cdf_sample(p.expand(1000, 4), torch.arange(1000) / 1000)
    assert (torch.bincount(drawn, minlength=4) - 1000 * p).abs().max() <= 1


def test_uniforms_are_a_function_of_seed_step_attempt_row_and_token():
    base = row_uniforms(0, 0, 0, [5], 8)[0]
    beside_another = row_uniforms(0, 0, 0, [4, 5], 3)[1]
    assert beside_another.equal(base[:3])  # other rows and the length do not matter
    others = [(1, 0, 0, [5]), (0, 1, 0, [5]), (0, 0, 1, [5]), (0, 0, 0, [6])]
    assert not any(row_uniforms(*key, 8)[0].equal(base) for key in others)


@pytest.mark.filterwarnings("error")
def test_any_integer_is_a_valid_seed():
    seeds = (-2, -1, 0, 2**63, 2**64 - 3)
    assert len({tuple(row_uniforms(seed, 0, 0, [0], 2)[0].tolist()) for seed in seeds}) == 5


def test_uniforms_of_steps_and_attempts_match_earlier_versions():
    key = np.array([7, ((3 + 2 * 2**24) << 32) | 5], dtype=np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).random(4, dtype=np.float32)
    assert row_uniforms(7, 3, 2, [5], 4)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("step, attempt", [(2**24, 0), (0, 256), (-1, 0), (0, -1)])
def test_step_or_attempt_out_of_range_is_refused(step, attempt):
    with pytest.raises(ValueError, match=f"step {step}, attempt {attempt}: must be below"):
        row_uniforms(0, step, attempt, [0], 1)
