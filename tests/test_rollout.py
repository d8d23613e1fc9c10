import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mini import rollout
from r1mini.batch import collate, token_logprobs
from r1mini.rollout import Sampling, distribution, draw, sample, stream, uniforms
from r1mini.tokenizer import Tokenizer

PROMPTS = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]


@pytest.fixture(scope="module")
def stopping(tokens):
    """Every eighth token ends a completion: rows finish at all lengths, and leave the batch."""
    return Tokenizer(tokens.backend, range(0, tokens.vocab_size, 8))


def probabilities(p, **how):
    return distribution(torch.tensor([p]).log(), Sampling(**how))[0].tolist()


def tokens_of(groups):
    return [[r.completion_ids for r in group] for group in groups]


@pytest.mark.parametrize("how, expected", [
    ({}, [0.5, 0.25, 0.125, 0.125]),
    ({"temperature": 0.0}, [1, 0, 0, 0]),
    ({"temperature": 0.5}, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),  # squares: 16, 4, 1, 1 of 64
    ({"top_k": 1}, [1, 0, 0, 0]),
    ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_k": 9}, [0.5, 0.25, 0.125, 0.125]),
    ({"top_p": 0.5}, [1, 0, 0, 0]),  # 0.5 is reached by the first alone
    ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),  # the token that crosses it stays
    ({"min_p": 0.3}, [2 / 3, 1 / 3, 0, 0]),  # 0.125 < 0.3 * 0.5
    ({"min_p": 0.25}, [0.5, 0.25, 0.125, 0.125]),
    # Temperature comes first: squared, 0.25's share falls to 4/22 < 0.3 * 16/22.
    ({"temperature": 0.5, "min_p": 0.3}, [1, 0, 0, 0]),
    # Top-k comes before top-p: of (2/3, 1/3) the first reaches 0.6.
    ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
])
def test_distribution_that_is_sampled_from(how, expected):
    assert probabilities([0.5, 0.25, 0.125, 0.125], **how) == pytest.approx(expected, abs=1e-5)


def test_nucleus_does_not_depend_on_the_order_of_the_vocabulary():
    assert probabilities([0.125, 0.25, 0.125, 0.5], top_p=0.6) == pytest.approx([0, 1 / 3, 0, 2 / 3], abs=1e-5)


@pytest.mark.parametrize("name, value", [("max_new_tokens", 0), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0),
                                         ("top_p", 1.1), ("min_p", 1.0), ("temperature", float("nan"))])
def test_bad_sampling_settings_name_their_flag(name, value):
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        Sampling(**{name: value})


@given(st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0]), min_size=1, max_size=30).filter(any), st.floats(0, 0.999999))
def test_no_impossible_token_is_drawn(weights, uniform):
    p = torch.tensor([weights]) / sum(weights)
    token = draw(p, torch.tensor([min(uniform, 1 - 2**-24)])).item()
    assert weights[token] > 0


def test_drawn_frequencies_are_the_probabilities():
    # Evenly spaced uniform numbers hit each token as often as its probability says, to one in 1000.
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = draw(p.expand(1000, 4), torch.arange(1000) / 1000)
    assert (torch.bincount(drawn, minlength=4) - 1000 * p).abs().max() <= 1


def test_uniform_numbers_belong_to_seed_step_row_and_token():
    base = uniforms(0, 0, [5], 8)[0]
    assert uniforms(0, 0, [4, 5], 3)[1].equal(base[:3])  # neither other rows nor the length matter
    others = [uniforms(1, 0, [5], 8)[0], uniforms(0, 1, [5], 8)[0], uniforms(0, 0, [6], 8)[0]]
    assert not any(other.equal(base) for other in others)


@pytest.mark.filterwarnings("error")
def test_any_whole_number_is_a_seed():
    assert len({tuple(uniforms(seed, 0, [0], 2)[0].tolist()) for seed in (-2, -1, 0, 2**63, 2**64 - 3)}) == 5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_on_every_log_probability(model, stopping, temperature):
    how = Sampling(max_new_tokens=24, temperature=temperature)
    rows = [r for group in sample(model, stopping, PROMPTS, 8, how, seed=0) for r in group]
    assert len({len(r.completion_ids) for r in rows}) > 5
    batch = collate([(r.prompt_ids, r.completion_ids) for r in rows])
    logp_BT = token_logprobs(model, batch, temperature)
    sampled = torch.tensor([value for r in rows for value in r.logprobs])
    torch.testing.assert_close(sampled, logp_BT[batch.target_BT], atol=1e-5, rtol=0)


def test_greedy_takes_the_likeliest_token_each_time(model, tokens):
    [[found]] = sample(model, tokens, PROMPTS[:1], 1, Sampling(max_new_tokens=5, temperature=0), seed=0)
    row = list(found.prompt_ids)
    for token in found.completion_ids:
        assert token == model(torch.tensor([row]))[0, -1].argmax().item()
        row.append(token)


@pytest.mark.parametrize("max_rows", [1, 4, 5])
def test_rows_sampled_side_by_side_do_not_change_a_completion(model, stopping, max_rows):
    how = Sampling(max_new_tokens=16)
    together = sample(model, stopping, PROMPTS, 3, how, seed=0, max_rows=99)
    assert tokens_of(sample(model, stopping, PROMPTS, 3, how, seed=0, max_rows=max_rows)) == tokens_of(together)


def test_other_prompts_beside_it_do_not_change_a_completion(model, tokens):
    how = Sampling(max_new_tokens=16)
    one = sample(model, tokens, PROMPTS, 2, how, seed=0)
    other = sample(model, tokens, ["a much longer prompt than the others\n", "y\n", PROMPTS[2]], 2, how, seed=0)
    assert tokens_of(one)[2] == tokens_of(other)[2]


def test_a_long_prompt_beside_it_does_not_cut_a_completion(model, tokens):
    # The context holds 128 tokens: a long prompt has little room, a short one beside it has much.
    long = tokens.decode([tokens.encode("a")[0]] * 126)
    short, _ = sample(model, tokens, ["x\n", long], 1, Sampling(max_new_tokens=40), seed=0)
    alone = sample(model, tokens, ["x\n"], 1, Sampling(max_new_tokens=40), seed=0)
    assert short[0].completion_ids == alone[0][0].completion_ids


def test_completion_ends_at_its_first_stop_token_or_at_the_limit(model, stopping):
    rows = [r for group in sample(model, stopping, PROMPTS, 20, Sampling(max_new_tokens=6), seed=0) for r in group]
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
    [[found]] = sample(ending, zero, ["x\n"], 1, Sampling(temperature=0), seed=0)
    assert (found.completion_ids, found.text, found.finished) == ((0,), "", True)
    assert tokens.end_id == 0  # the tokenizer's own end token


def test_prompt_that_leaves_room_for_one_token(model, tokens):
    a = tokens.encode("a")[0]
    [[found]] = sample(model, tokens, [tokens.decode([a] * 127)], 1, Sampling(max_new_tokens=9), seed=0)
    assert len(found.prompt_ids) == 127 and len(found.completion_ids) == 1


@pytest.mark.parametrize("count", [128, 500])
def test_prompt_that_leaves_no_room_is_refused(model, tokens, count):
    a = tokens.encode("a")[0]
    with pytest.raises(ValueError, match=f"prompt of {count} tokens.*context of 128"):
        sample(model, tokens, ["x\n", tokens.decode([a] * count)], 1, Sampling(), seed=0)


def test_empty_prompt_is_refused(model, tokens):
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        sample(model, tokens, [""], 1, Sampling(), seed=0)


def test_each_prompt_is_prefilled_once_whatever_fits_side_by_side(model, tokens, monkeypatch):
    prefilled = []
    real = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, ids, *rest: prefilled.append(len(ids)) or real(self, ids, *rest))
    prompts = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]
    for max_rows in (1, 3, 5, 24):
        prefilled.clear()
        found = sample(model, tokens, prompts, 8, Sampling(max_new_tokens=3), seed=0, max_rows=max_rows)
        assert sum(prefilled) == sum(len(group[0].prompt_ids) - 1 for group in found)


def test_places_are_taken_by_the_next_as_soon_as_they_are_free(model, stopping, monkeypatch):
    used, real = [], rollout.Sampler.step

    def step(sampler, reach):
        used.append((len(sampler.rows), sum(map(bool, sampler.rows)), len(sampler.queue)))
        return real(sampler, reach)

    monkeypatch.setattr(rollout.Sampler, "step", step)
    found = sample(model, stopping, PROMPTS, 20, Sampling(max_new_tokens=40), seed=0, max_rows=8)
    assert all(places == busy == 8 for places, busy, waiting in used if waiting)
    assert all(busy >= rollout.CROWDED * places for places, busy, _ in used)
    assert sum(busy for _, busy, _ in used) == sum(len(r.completion_ids) for group in found for r in group)  # no step is wasted


def test_prompts_are_told_in_order_each_as_soon_as_it_is_done(model, stopping):
    told = []
    found = sample(model, stopping, PROMPTS * 3, 4, Sampling(max_new_tokens=30), seed=0, max_rows=5,
                   ready=lambda n, rollouts: told.append((n, rollouts)))
    assert told == list(enumerate(found))


@pytest.mark.parametrize("block", [2, 7, 64])
def test_looking_at_the_tokens_seldom_changes_no_completion(model, stopping, block):
    def drawn(block):
        sampler = rollout.Sampler(model, stopping, rollout.encode(model, stopping, PROMPTS), 6, Sampling(20), 0, places=5,
                                  block=block)
        found = {}
        with torch.inference_mode():
            while sampler.busy:
                found |= {(n, g): r.completion_ids for n, g, r in sampler.advance()[1]}
        return found

    assert drawn(block) == drawn(1)


@pytest.mark.parametrize("how", [Sampling(24), Sampling(24, temperature=0), Sampling(24, temperature=0.7, top_p=0.9)])
def test_stream_gives_the_tokens_that_sample_gives(model, stopping, how):
    for step, prompt in enumerate(PROMPTS * 3):
        [[expected]] = sample(model, stopping, [prompt], 1, how, seed=5, step=step)
        assert tuple(stream(model, stopping, prompt, how, seed=5, step=step)) == expected.completion_ids


def test_stream_gives_a_token_as_soon_as_it_is_drawn(model, tokens, monkeypatch):
    steps = []
    real = rollout.NextToken.logits
    monkeypatch.setattr(rollout.NextToken, "logits", lambda *args: steps.append(1) or real(*args))
    given_out = stream(model, tokens, "x\n", Sampling(max_new_tokens=9), seed=0)
    assert not steps
    for number in range(1, 4):
        next(given_out)
        assert len(steps) == number
    given_out.close()  # as Ctrl-C does
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("texts", [["a"], ["a", "b"], ["a", "Make 24\n", "b"]])
def test_prompts_of_one_token_need_no_prefill(model, tokens, texts):
    alone = [sample(model, tokens, [text], 2, Sampling(12), seed=0, first=n)[0] for n, text in enumerate(texts)]
    assert len(alone[0][0].prompt_ids) == 1
    assert tokens_of(sample(model, tokens, texts, 2, Sampling(12), seed=0)) == tokens_of(alone)


def test_stream_of_a_prompt_that_leaves_no_room_is_refused(model, tokens):
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        next(stream(model, tokens, "", Sampling(), seed=0))


def test_cache_grows_with_what_is_written_and_changes_nothing(model, tokens, monkeypatch):
    prompts = ["a\n", "Make 24\n"]
    whole = sample(model, tokens, prompts, 3, Sampling(40), seed=0)
    grown, real = [], rollout.KVCache.grow
    monkeypatch.setattr(rollout, "GROWTH", 4)
    monkeypatch.setattr(rollout.KVCache, "grow", lambda cache, slots: grown.append(slots) or real(cache, slots))
    assert sample(model, tokens, prompts, 3, Sampling(40), seed=0) == whole
    assert grown == [32, 48]


def test_later_part_of_a_list_is_sampled_as_in_the_whole(model, tokens):
    prompts = ["a\n", "b\n", "c\n"]
    whole = sample(model, tokens, prompts, 2, Sampling(6), seed=0)
    part = sample(model, tokens, prompts[1:], 2, Sampling(6), seed=0, first=1)
    assert [[r.completion_ids for r in group] for group in part] == [[r.completion_ids for r in group] for group in whole[1:]]
