import copy

import pytest
import safetensors.torch
import torch
from conftest import random_model
from test_model import CONFIGS, some_tokens

from r1mini.attention import KVCache, Packed
from r1mini.decode import NextToken, joined

close = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture(params=CONFIGS, scope="module")
def kind(request):
    return random_model(**CONFIGS[request.param]).requires_grad_(False)


def positions(lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def test_stretches_see_themselves_and_what_they_go_on_from(kind):
    a, b, c = (some_tokens(1, 12)[0, i : i + 4] for i in (0, 4, 8))
    # a; a and then b; a and then c; c alone
    lengths, after = [4, 4, 4, 4], [-1, 0, 0, -1]
    position_M = torch.cat([torch.arange(4), torch.arange(4, 8), torch.arange(4, 8), torch.arange(4)])
    got = kind.lm_head(kind.hidden(torch.cat([a, b, c, c]), position_M, Packed(lengths, after))).split(4)
    torch.testing.assert_close(torch.cat(got[:2]), kind(torch.cat([a, b])[None])[0], **close)
    torch.testing.assert_close(got[2], kind(torch.cat([a, c])[None])[0, 4:], **close)
    torch.testing.assert_close(got[3], kind(c[None])[0], **close)


def cache_of(model, rows, prompts, slots=9):
    """A cache whose rows go on from these prompts."""
    config = model.config
    cache = KVCache(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, rows, slots)
    attend = Packed([len(prompt) for prompt in prompts], keep=True)
    model.hidden(torch.cat(prompts), positions(attend.lengths), attend)
    cache.share([], attend.kept, attend.lengths)
    return cache


def test_decoded_logits_are_those_of_the_whole_rows(kind):
    prompts = [some_tokens(1, 7)[0], some_tokens(1, 3)[0] + 1]
    own = some_tokens(4, 5).flip(0)  # what each of four rows goes on with
    seats = [1, 0, 1, 1]
    cache, decoder = cache_of(kind, 4, prompts), NextToken(kind)
    cache.seat(seats)
    for t in range(5):
        position_B = torch.tensor([len(prompts[n]) + t for n in seats])
        got = decoder.logits(own[:, t], position_B, cache.step(torch.full((4,), t), reach=t + 1))
        for b, n in enumerate(seats):
            torch.testing.assert_close(got[b], kind(torch.cat([prompts[n], own[b, : t + 1]])[None])[0, -1], **close)


def test_rows_of_a_cache_have_lengths_of_their_own_and_come_and_go(kind):
    prompts = [some_tokens(1, 4)[0], some_tokens(1, 2)[0]]
    cache, decoder = cache_of(kind, 3, prompts, slots=2), NextToken(kind)
    cache.seat([0, 0, 1])
    step = lambda tokens, position, count: decoder.logits(torch.tensor(tokens), torch.tensor(position),
                                                          cache.step(torch.tensor(count), max(count) + 1))
    step([5, 6, 7], [4, 4, 2], [0, 0, 0])
    step([8, 9, 10], [5, 5, 3], [1, 1, 1])
    cache.keep([2, 0])
    cache.grow(6)
    assert cache.slots == 6
    attend = Packed([3], keep=True)
    new = some_tokens(1, 3)[0] + 2
    kind.hidden(new, torch.arange(3), attend)
    cache.share([1, 0], attend.kept, [3])  # the prompts change places, and one joins
    assert cache.lengths == [2, 4, 3]
    cache.seat([0, 2])  # the second place is another row's now
    got = step([11, 12], [4, 3], [2, 0])
    torch.testing.assert_close(got[0], kind(torch.cat([prompts[1], torch.tensor([7, 10, 11])])[None])[0, -1], **close)
    torch.testing.assert_close(got[1], kind(torch.cat([new, torch.tensor([12])])[None])[0, -1], **close)


def test_joined_projections_are_the_parts_and_stay_so():
    model = random_model(attention_bias=True)
    attention = model.model.layers[0].self_attn
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    before = [part.weight.clone() for part in parts]
    weight, bias = joined(parts)
    assert torch.cat(before).equal(weight) and len(bias) == len(weight)
    assert all(old.equal(part.weight) for old, part in zip(before, parts))
    with torch.no_grad():
        parts[1].weight.add_(1)
    assert weight[len(before[0]) :][: len(before[1])].equal(before[1] + 1)
    assert joined(parts)[0].data_ptr() == weight.data_ptr()  # nothing is copied again


def test_joined_projections_survive_training_and_saving(tmp_path):
    model = random_model()
    tokens_BT = some_tokens(1, 6)
    NextToken(model)
    copied = copy.deepcopy(model)
    safetensors.torch.save_file(model.state_dict() | {"lm_head.weight": model.lm_head.weight.detach().clone()}, tmp_path / "x")
    stepper = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(tokens_BT).sum().backward()
    stepper.step()
    weight, _ = joined((model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj))
    assert weight.equal(torch.cat([model.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.up_proj.weight]))
    assert not weight.equal(torch.cat([copied.model.layers[0].mlp.gate_proj.weight, copied.model.layers[0].mlp.up_proj.weight]))
    model.load_state_dict(copied.state_dict())
    torch.testing.assert_close(model(tokens_BT), copied(tokens_BT))
    assert weight.equal(joined((copied.model.layers[0].mlp.gate_proj, copied.model.layers[0].mlp.up_proj))[0])
