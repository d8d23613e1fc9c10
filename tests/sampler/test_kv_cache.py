import pytest
import torch
from conftest import CONFIGS, random_model, some_tokens

from r1mini.model.attention import PackedAttention
from r1mini.sampler.decode import FusedDecoder
from r1mini.sampler.kv_cache import KVCache

close = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture(params=CONFIGS, scope="module")
def kind(request):
    return random_model(**CONFIGS[request.param]).requires_grad_(False)


def positions(lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def cache_of(model, rows, prompts, capacity=9):
    """A cache whose rows continue these prompts."""
    cache = KVCache(model.config, rows, capacity)
    attend = PackedAttention([len(prompt) for prompt in prompts], keep_kv=True)
    model.hidden(torch.cat(prompts), positions(attend.lengths), attend)
    cache.add_prompts([], attend.kept_kv, attend.lengths)
    return cache


def test_decoded_logits_equal_those_of_full_rows(kind):
    prompts = [some_tokens(1, 7)[0], some_tokens(1, 3)[0] + 1]
    own = some_tokens(4, 5).flip(0)  # what each of four rows continues with
    prompt_B = [1, 0, 1, 1]
    cache, decoder = cache_of(kind, 4, prompts), FusedDecoder(kind)
    cache.assign_prompts(prompt_B)
    for t in range(5):
        position_B = torch.tensor([len(prompts[n]) + t for n in prompt_B])
        got = decoder.logits(
            own[:, t], position_B, cache.attention(torch.full((4,), t), length=t + 1)
        )
        for b, n in enumerate(prompt_B):
            torch.testing.assert_close(
                got[b], kind(torch.cat([prompts[n], own[b, : t + 1]])[None])[0, -1], **close
            )


def test_cache_rows_have_their_own_lengths_and_can_be_replaced(kind):
    prompts = [some_tokens(1, 4)[0], some_tokens(1, 2)[0]]
    cache, decoder = cache_of(kind, 3, prompts, capacity=2), FusedDecoder(kind)
    cache.assign_prompts([0, 0, 1])
    step = lambda tokens, position, count: decoder.logits(
        torch.tensor(tokens),
        torch.tensor(position),
        cache.attention(torch.tensor(count), max(count) + 1),
    )
    step([5, 6, 7], [4, 4, 2], [0, 0, 0])
    step([8, 9, 10], [5, 5, 3], [1, 1, 1])
    cache.select_rows([2, 0])
    cache.grow(6)
    assert cache.capacity == 6
    attend = PackedAttention([3], keep_kv=True)
    new = some_tokens(1, 3)[0] + 2
    kind.hidden(new, torch.arange(3), attend)
    cache.add_prompts([1, 0], attend.kept_kv, [3])  # the prompts change places, and one is added
    assert cache.lengths == [2, 4, 3]
    cache.assign_prompts([0, 2])  # the second row now belongs to another prompt
    got = step([11, 12], [4, 3], [2, 0])
    torch.testing.assert_close(
        got[0], kind(torch.cat([prompts[1], torch.tensor([7, 10, 11])])[None])[0, -1], **close
    )
    torch.testing.assert_close(
        got[1], kind(torch.cat([new, torch.tensor([12])])[None])[0, -1], **close
    )
