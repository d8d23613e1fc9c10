import copy

import pytest
import torch

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.sampler import sampler as sampler_module
from r1mini.sampler.cuda_graphs import EagerRunner
from r1mini.sampler.decode import FusedDecoder
from r1mini.sampler.kv_cache import KVCache
from r1mini.sampler.sampler import Sampler, encode_prompts, sample, stream
from r1mini.sampler.sampling import SamplingParams
from r1mini.training.logprobs import collate, token_logprobs

PROMPTS = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]


@pytest.fixture(scope="module")
def stopping(tokens):
    """One token id in eight ends a completion, so rows finish at many lengths and leave the batch."""
    return Tokenizer(tokens.backend, range(0, tokens.vocab_size, 8))


def tokens_of(groups):
    return [[r.completion_ids for r in group] for group in groups]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_on_every_log_probability(model, stopping, temperature):
    params = SamplingParams(max_new_tokens=24, temperature=temperature)
    rows = [r for group in sample(model, stopping, PROMPTS, 8, params, seed=0) for r in group]
    assert len({len(r.completion_ids) for r in rows}) > 5
    batch = collate([(r.prompt_ids, r.completion_ids) for r in rows])
    logp_BT = token_logprobs(model, batch, temperature)
    sampled = torch.tensor([value for r in rows for value in r.logprobs])
    torch.testing.assert_close(sampled, logp_BT[batch.target_BT], atol=1e-5, rtol=0)


def test_greedy_always_takes_the_most_likely_token(model, tokens):
    [[rollout]] = sample(
        model, tokens, PROMPTS[:1], 1, SamplingParams(max_new_tokens=5, temperature=0), seed=0
    )
    row = list(rollout.prompt_ids)
    for token in rollout.completion_ids:
        assert token == model(torch.tensor([row]))[0, -1].argmax().item()
        row.append(token)


@pytest.mark.parametrize("max_rows", [1, 4, 5])
def test_completion_does_not_depend_on_max_rows(model, stopping, max_rows):
    params = SamplingParams(max_new_tokens=16)
    together = sample(model, stopping, PROMPTS, 3, params, seed=0, max_rows=99)
    assert tokens_of(
        sample(model, stopping, PROMPTS, 3, params, seed=0, max_rows=max_rows)
    ) == tokens_of(together)


def test_completion_does_not_depend_on_other_prompts(model, tokens):
    params = SamplingParams(max_new_tokens=16)
    one = sample(model, tokens, PROMPTS, 2, params, seed=0)
    other = sample(
        model,
        tokens,
        ["a much longer prompt than the others\n", "y\n", PROMPTS[2]],
        2,
        params,
        seed=0,
    )
    assert tokens_of(one)[2] == tokens_of(other)[2]


def test_long_prompt_does_not_shorten_other_completions(model, tokens):
    # The context has 128 tokens: a long prompt leaves little room, and a short one in the same batch leaves much.
    long = tokens.decode([tokens.encode("a")[0]] * 126)
    short, _ = sample(model, tokens, ["x\n", long], 1, SamplingParams(max_new_tokens=40), seed=0)
    alone = sample(model, tokens, ["x\n"], 1, SamplingParams(max_new_tokens=40), seed=0)
    assert short[0].completion_ids == alone[0][0].completion_ids


def test_completion_ends_at_its_first_stop_token_or_at_the_limit(model, stopping):
    rows = [
        r
        for group in sample(model, stopping, PROMPTS, 20, SamplingParams(max_new_tokens=6), seed=0)
        for r in group
    ]
    assert {r.finished for r in rows} == {True, False}
    for r in rows:
        assert not stopping.stop_ids & set(r.completion_ids[:-1])
        assert r.finished == (r.completion_ids[-1] in stopping.stop_ids)
        assert r.finished or len(r.completion_ids) == 6
        assert len(r.logprobs) == len(r.completion_ids)


def test_end_token_is_in_the_completion_but_not_in_its_text(model, tokens):
    ending = copy.deepcopy(model)
    ending.lm_head.weight.zero_()  # all logits equal: greedy takes token 0
    zero = Tokenizer(tokens.backend, [0])
    [[rollout]] = sample(ending, zero, ["x\n"], 1, SamplingParams(temperature=0), seed=0)
    assert (rollout.completion_ids, rollout.text, rollout.finished) == ((0,), "", True)
    assert tokens.eos_id == 0  # the tokenizer's own end token


def test_prompt_that_leaves_room_for_one_token_is_sampled(model, tokens):
    a = tokens.encode("a")[0]
    [[rollout]] = sample(
        model, tokens, [tokens.decode([a] * 127)], 1, SamplingParams(max_new_tokens=9), seed=0
    )
    assert len(rollout.prompt_ids) == 127 and len(rollout.completion_ids) == 1


@pytest.mark.parametrize("count", [128, 500])
def test_prompt_as_long_as_the_context_is_refused(model, tokens, count):
    a = tokens.encode("a")[0]
    with pytest.raises(ValueError, match=f"prompt of {count} tokens.*context of 128"):
        sample(model, tokens, ["x\n", tokens.decode([a] * count)], 1, SamplingParams(), seed=0)


def test_empty_prompt_is_refused(model, tokens):
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        sample(model, tokens, [""], 1, SamplingParams(), seed=0)


def test_each_prompt_is_prefilled_once_for_any_max_rows(model, tokens, monkeypatch):
    prefilled = []
    real = type(model).hidden
    monkeypatch.setattr(
        type(model),
        "hidden",
        lambda self, ids, *rest: prefilled.append(len(ids)) or real(self, ids, *rest),
    )
    prompts = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]
    for max_rows in (1, 3, 5, 24):
        prefilled.clear()
        rollouts = sample(
            model, tokens, prompts, 8, SamplingParams(max_new_tokens=3), seed=0, max_rows=max_rows
        )
        assert sum(prefilled) == sum(len(group[0].prompt_ids) - 1 for group in rollouts)


def test_idle_slots_are_refilled_at_once(model, stopping, monkeypatch):
    used, real = [], Sampler.decode_step

    def decode_step(sampler, length):
        used.append((len(sampler.slots), sum(map(bool, sampler.slots)), len(sampler.waiting)))
        return real(sampler, length)

    monkeypatch.setattr(Sampler, "decode_step", decode_step)
    rollouts = sample(
        model, stopping, PROMPTS, 20, SamplingParams(max_new_tokens=40), seed=0, max_rows=8
    )
    assert all(slots == busy == 8 for slots, busy, waiting in used if waiting)
    assert all(busy >= EagerRunner.shrink_below * slots for slots, busy, _ in used)
    assert sum(busy for _, busy, _ in used) == sum(
        len(r.completion_ids) for group in rollouts for r in group
    )  # no step is wasted


def test_prompts_are_reported_in_order_each_as_soon_as_it_is_done(model, stopping):
    reported = []
    rollouts = sample(
        model,
        stopping,
        PROMPTS * 3,
        4,
        SamplingParams(max_new_tokens=30),
        seed=0,
        max_rows=5,
        on_finished=lambda n, rollouts: reported.append((n, rollouts)),
    )
    assert reported == list(enumerate(rollouts))


@pytest.mark.parametrize("block", [2, 7, 64])
def test_block_size_changes_no_completion(model, stopping, block):
    def drawn(block):
        sampler = Sampler(
            model,
            stopping,
            encode_prompts(model, stopping, PROMPTS),
            6,
            SamplingParams(20),
            0,
            max_rows=5,
            steps_per_sync=block,
        )
        with torch.inference_mode():
            while sampler.has_unfinished:
                sampler.draw_tokens()
        return tokens_of(sampler.groups)

    assert drawn(block) == drawn(1)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(24),
        SamplingParams(24, temperature=0),
        SamplingParams(24, temperature=0.7, top_p=0.9),
    ],
)
def test_stream_gives_the_tokens_that_sample_gives(model, stopping, params):
    for step, prompt in enumerate(PROMPTS * 3):
        [[expected]] = sample(model, stopping, [prompt], 1, params, seed=5, step=step)
        assert (
            tuple(stream(model, stopping, prompt, params, seed=5, step=step))
            == expected.completion_ids
        )


def test_stream_gives_a_token_as_soon_as_it_is_drawn(model, tokens, monkeypatch):
    steps = []
    real = FusedDecoder.logits
    monkeypatch.setattr(FusedDecoder, "logits", lambda *args: steps.append(1) or real(*args))
    tokens_out = stream(model, tokens, "x\n", SamplingParams(max_new_tokens=9), seed=0)
    assert not steps
    for number in range(1, 4):
        next(tokens_out)
        assert len(steps) == number
    tokens_out.close()  # like Ctrl-C
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("texts", [["a"], ["a", "b"], ["a", "Make 24\n", "b"]])
def test_prompts_of_one_token_need_no_prefill(model, tokens, texts):
    alone = [
        sample(model, tokens, [text], 2, SamplingParams(12), seed=0, first_prompt=n)[0]
        for n, text in enumerate(texts)
    ]
    assert len(alone[0][0].prompt_ids) == 1
    assert tokens_of(sample(model, tokens, texts, 2, SamplingParams(12), seed=0)) == tokens_of(
        alone
    )


def test_stream_refuses_a_prompt_as_long_as_the_context(model, tokens):
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        next(stream(model, tokens, "", SamplingParams(), seed=0))


def test_growing_the_cache_changes_no_completion(model, tokens, monkeypatch):
    prompts = ["a\n", "Make 24\n"]
    whole = sample(model, tokens, prompts, 3, SamplingParams(40), seed=0)
    grown, real = [], KVCache.grow
    monkeypatch.setattr(sampler_module, "INITIAL_CAPACITY", 4)
    monkeypatch.setattr(
        KVCache, "grow", lambda cache, capacity: grown.append(capacity) or real(cache, capacity)
    )
    assert sample(model, tokens, prompts, 3, SamplingParams(40), seed=0) == whole
    assert grown == [32, 48]


def test_later_part_of_a_prompt_list_gives_the_same_rollouts(model, tokens):
    prompts = ["a\n", "b\n", "c\n"]
    whole = sample(model, tokens, prompts, 2, SamplingParams(6), seed=0)
    part = sample(model, tokens, prompts[1:], 2, SamplingParams(6), seed=0, first_prompt=1)
    assert [[r.completion_ids for r in group] for group in part] == [
        [r.completion_ids for r in group] for group in whole[1:]
    ]
