import copy

import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mini.batch import by_length, collate, shuffled, token_logprobs

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def test_mask_comes_from_lengths_so_the_padding_token_may_be_a_target():
    batch = collate([([4], [0, 7, 0]), ([0, 0], [0])])
    assert batch.tokens_BT.tolist() == [[4, 0, 7, 0], [0, 0, 0, 0]]
    assert batch.target_BT.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]


def test_first_token_of_a_row_without_prompt_is_no_target():
    assert collate([([], [5, 6, 7])]).target_BT.tolist() == [[False, True, True]]


def test_column_t_holds_the_log_probability_of_token_t(model):
    rows = [([3, 4], [5, 6, 7]), ([8], [9])]
    logp_BT, _ = token_logprobs(model, collate(rows), temperature=0.7)
    for b, (prompt, completion) in enumerate(rows):
        for t in range(len(prompt), len(prompt) + len(completion)):
            # From scratch: the tokens before t alone, in a row of their own.
            logits_V = model(torch.tensor([(prompt + completion)[:t]]))[0, -1] / 0.7
            expected = logits_V.log_softmax(-1)[(prompt + completion)[t]]
            torch.testing.assert_close(logp_BT[b, t], expected, atol=1e-5, rtol=1e-5)


def test_log_probabilities_are_zero_off_the_targets(model):
    batch = collate([([3, 4], [5, 6, 7]), ([8], [9])])
    logp_BT, entropy_BT = token_logprobs(model, batch)
    assert (logp_BT != 0).equal(batch.target_BT) and (entropy_BT != 0).equal(batch.target_BT)


def test_entropy_of_a_uniform_model_is_the_log_of_its_vocabulary(model):
    uniform = copy.deepcopy(model)
    uniform.lm_head.weight.zero_()
    _, entropy_BT = token_logprobs(uniform, collate([([3], [5])]))
    torch.testing.assert_close(entropy_BT[0, 1], torch.tensor(float(model.config.vocab_size)).log())


@given(LENGTHS, st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    groups = by_length(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)


@given(LENGTHS, st.integers(1, 8))
def test_shuffling_keeps_every_row_and_depends_on_the_seed_alone(lengths, window):
    batches = shuffled(lengths, 100, "seed", window)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches == shuffled(lengths, 100, "seed", window)


def test_another_seed_gives_another_order():
    assert shuffled([5] * 50, 10, "1") != shuffled([5] * 50, 10, "2")
