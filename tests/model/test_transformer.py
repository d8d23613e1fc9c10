import math

import pytest
import torch
from conftest import CONFIGS, random_model, shape, some_tokens

from r1mini.model.attention import PackedAttention
from r1mini.model.init import init_weights
from r1mini.model.rope import rope_frequency, rope_tables, rotate
from r1mini.model.transformer import RMSNorm, Transformer


@pytest.fixture(params=CONFIGS, scope="module")
def kind(request):
    return random_model(**CONFIGS[request.param]).requires_grad_(False)


def test_attention_is_causal(kind):
    tokens_BT = some_tokens(1, 8)
    changed = tokens_BT.clone()
    changed[0, 5] += 1
    before, after = kind(tokens_BT)[0], kind(changed % 320)[0]
    torch.testing.assert_close(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:], atol=1e-3)


def test_grouped_query_heads_share_keys_and_values():
    grouped = random_model(num_key_value_heads=2)
    full = Transformer(shape(num_key_value_heads=4))
    state = grouped.state_dict()
    for name in state:
        if "k_proj" in name or "v_proj" in name:  # key head j serves query heads 2j and 2j+1
            state[name] = state[name].view(2, 8, -1).repeat_interleave(2, 0).reshape(32, -1)
    full.load_state_dict(state)
    tokens_BT = some_tokens(2, 9)
    torch.testing.assert_close(grouped(tokens_BT), full(tokens_BT), atol=1e-4, rtol=1e-4)


def attention_by_loops(attention, x_TD, theta):
    """One row of one attention layer, written out: softmax over the past, one head and one query at
    a time."""
    T, C = len(x_TD), attention.head_dim
    H, K = attention.q_proj.out_features // C, attention.k_proj.out_features // C

    def turned(
        vector, position
    ):  # channels i and i + C/2 form a plane that is rotated by position / theta^(2i/C)
        out = vector.clone()
        for i in range(C // 2):
            angle = position * theta ** (-2 * i / C)
            x, y = vector[i], vector[i + C // 2]
            out[i] = x * math.cos(angle) - y * math.sin(angle)
            out[i + C // 2] = y * math.cos(angle) + x * math.sin(angle)
        return out

    rows = []
    for t in range(T):
        heads = []
        for h in range(H):
            part = slice(h * C, (h + 1) * C)
            shared = slice(h // (H // K) * C, (h // (H // K) + 1) * C)
            query = turned(attention.q_norm(attention.q_proj(x_TD[t])[part]), t)
            keys = [
                turned(attention.k_norm(attention.k_proj(x_TD[s])[shared]), s) for s in range(t + 1)
            ]
            weight = torch.stack([query @ key / C**0.5 for key in keys]).softmax(0)
            heads.append(sum(weight[s] * attention.v_proj(x_TD[s])[shared] for s in range(t + 1)))
        rows.append(attention.o_proj(torch.cat(heads)))
    return torch.stack(rows)


def test_attention_matches_a_loop_implementation(kind):
    attention = kind.model.layers[0].self_attn
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_tables(torch.arange(5), *rope_frequency(kind.config))
    got = attention.o_proj(
        PackedAttention([5])(0, *attention.qkv(x_TD, cos[:, None], sin[:, None])).flatten(1)
    )
    torch.testing.assert_close(
        got, attention_by_loops(attention, x_TD, 10_000.0), atol=1e-4, rtol=1e-4
    )


def test_rotation_by_hand():
    # Two channels rotate by one radian per position.
    cos, sin = rope_tables(torch.arange(3), *rope_frequency(shape(head_dim=2)))
    got = rotate(torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2), cos, sin)[0, 0]
    torch.testing.assert_close(got, torch.tensor([[math.cos(p), math.sin(p)] for p in range(3)]))


def test_scaled_frequencies_by_hand():
    # Two planes, 1 and 0.01 radians per position: over 200 pi positions they rotate 100 times and once.
    def scaled(**scaling):
        scaling = {"factor": 4.0, "original_max_position_embeddings": 200 * math.pi, **scaling}
        frequency, factor = rope_frequency(shape(head_dim=4, rope_scaling=scaling))
        return [*frequency.tolist(), factor]

    assert scaled(rope_type="linear") == pytest.approx([0.25, 0.0025, 1])
    llama3 = {"rope_type": "llama3", "high_freq_factor": 1.5}
    assert scaled(**llama3, low_freq_factor=1.2) == pytest.approx([1, 0.0025, 1])
    assert scaled(**llama3, low_freq_factor=0.5) == pytest.approx(
        [1, 0.5 * 0.01 + 0.5 * 0.0025, 1]
    )  # halfway up the ramp
    # YaRN: planes 0 to 2 (by number, whole or not) turn 100 to 0.01 times; the ramp between them is
    # at 1/2 on plane 1.
    yarn = {"rope_type": "yarn", "beta_fast": 100, "beta_slow": 0.01, "truncate": False}
    temperature = 0.1 * math.log(4) + 1
    assert scaled(**yarn) == pytest.approx([1, 0.5 * 0.01 + 0.5 * 0.0025, temperature])
    assert scaled(**yarn, attention_factor=1.5)[2] == 1.5
    assert scaled(**yarn, attn_factor=1 / temperature)[2] == pytest.approx(
        1
    )  # as in DeepSeek-R1-0528-Qwen3-8B
    assert scaled(**yarn, mscale=2.0, mscale_all_dim=1.0)[2] == pytest.approx(
        (0.2 * math.log(4) + 1) / temperature
    )
    assert scaled(**{**yarn, "factor": 1.0}) == pytest.approx([1, 0.01, 1])
    # Truncated, the ramp begins at plane 0 (turns 50 times: 0.15 rounded down) and ends at 2 (0.1
    # times: 1.5 rounded up).
    assert scaled(**{**yarn, "beta_fast": 50, "beta_slow": 0.1, "truncate": True})[
        :2
    ] == pytest.approx([1, 0.00625])


def test_attention_factor_scales_queries_and_keys():
    position, frequency = torch.arange(3), torch.tensor([1.0])
    plain, longer = rope_tables(position, frequency, 1.0), rope_tables(position, frequency, 1.5)
    for one, other in zip(plain, longer):
        torch.testing.assert_close(one * 1.5, other)


def test_rope_frequencies_are_exact_in_any_dtype():
    model = random_model()
    before = rope_frequency(model.config)[0]
    for moved in (model.bfloat16(), model.half(), model.to(torch.float64)):
        assert moved.rope_bits.view(torch.float32).equal(before)


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # Root mean square of (1, 7) is sqrt(50 / 2) = 5.
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([0.2, 14.0]))


def test_tied_embeddings_share_one_parameter():
    assert "lm_head.weight" not in dict(random_model(tie_word_embeddings=True).named_parameters())
    assert "lm_head.weight" in dict(random_model(tie_word_embeddings=False).named_parameters())


def test_initial_weights_depend_only_on_the_seed_and_scale_residual_projections():
    one, same, other = (
        Transformer(shape(hidden_size=128, intermediate_size=256)) for _ in range(3)
    )
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        init_weights(model, seed)
    assert one.lm_head.weight.equal(same.lm_head.weight) and not one.lm_head.weight.equal(
        other.lm_head.weight
    )
    mlp = one.model.layers[0].mlp
    assert mlp.up_proj.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert mlp.down_proj.weight.std().item() == pytest.approx(
        0.2 / 2, rel=0.05
    )  # 1/sqrt(2 * 2 layers)
