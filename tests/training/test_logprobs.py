import copy

import pytest
import torch
from conftest import random_model

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import chunked_logprobs
from r1mini.training.logprobs import collate, token_logprobs, token_logprobs_and_entropy


def test_mask_comes_from_lengths_not_from_the_padding_token():
    batch = collate([([4], [0, 7, 0]), ([0, 0], [0])])
    assert batch.tokens_BT.tolist() == [[4, 0, 7, 0], [0, 0, 0, 0]]
    assert batch.target_BT.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]


def test_first_token_of_a_row_without_prompt_is_not_a_target():
    assert collate([([], [5, 6, 7])]).target_BT.tolist() == [[False, True, True]]


def test_empty_rows_are_refused_alone_and_are_not_targets_among_others():
    for rows in ([], [([], [])]):
        with pytest.raises(ValueError, match=f"{len(rows)} empty rows: nothing to train on"):
            collate(rows)
    assert collate([([], []), ([1], [2])]).target_BT.tolist() == [[False, False], [False, True]]


def test_column_t_holds_the_log_probability_of_token_t(model):
    rows = [([3, 4], [5, 6, 7]), ([8], [9])]
    logp_BT = token_logprobs(model, collate(rows), temperature=0.7)
    for b, (prompt, completion) in enumerate(rows):
        for t in range(len(prompt), len(prompt) + len(completion)):
            # From scratch: only the tokens before t, in their own row.
            logits_V = model(torch.tensor([(prompt + completion)[:t]]))[0, -1] / 0.7
            expected = logits_V.log_softmax(-1)[(prompt + completion)[t]]
            torch.testing.assert_close(logp_BT[b, t], expected, atol=1e-5, rtol=1e-5)


def test_log_probabilities_are_zero_except_at_targets(model):
    batch = collate([([3, 4], [5, 6, 7]), ([8], [9])])
    logp_BT, entropy_BT = token_logprobs_and_entropy(model, batch)
    assert (logp_BT != 0).equal(batch.target_BT) and (entropy_BT != 0).equal(batch.target_BT)


def test_entropy_of_a_uniform_model_is_the_log_of_its_vocabulary(model):
    uniform = copy.deepcopy(model)
    uniform.lm_head.weight.zero_()
    _, entropy_BT = token_logprobs_and_entropy(uniform, collate([([3], [5])]))
    torch.testing.assert_close(entropy_BT[0, 1], torch.tensor(float(model.config.vocab_size)).log())


def written_out(model, rows, temperature):
    """Each row alone, without padding, with all logits at once."""
    results = []
    for prompt, completion in rows:
        ids = torch.tensor([*prompt, *completion])
        logp_TV = (model(ids[None])[0] / temperature).log_softmax(-1)
        places = range(max(len(prompt), 1), len(ids))
        results += [
            (logp_TV[t - 1, ids[t]], -(logp_TV[t - 1].exp() * logp_TV[t - 1]).sum()) for t in places
        ]
    return (torch.stack(x) for x in zip(*results))


@pytest.mark.parametrize("logits", [2**25, 2000, 1])  # all at once, a few rows at a time, one
def test_chunked_values_and_gradients_match_full_logits(model, monkeypatch, logits):
    monkeypatch.setattr(chunked_logprobs, "MAX_LOGITS", logits)
    rows = [([3, 4], [5, 6, 7]), ([3, 4], [9]), ([8], [9, 2]), ([], [4, 4, 1]), ([8], [3])]
    model = copy.deepcopy(model).requires_grad_(True)
    results = []
    for both in (
        token_logprobs_and_entropy(model, collate(rows), 0.7),
        written_out(model, rows, 0.7),
    ):
        logp, entropy = (x[collate(rows).target_BT] if x.ndim == 2 else x for x in both)
        weight = torch.arange(1.0, len(logp) + 1)
        model.zero_grad()
        ((weight * logp).sum() + (weight.flip(0) * entropy).sum()).backward()
        results.append(
            (logp.detach(), entropy.detach(), *(p.grad.clone() for p in model.parameters()))
        )
    for got, wanted in zip(*results):
        tolerance = 1e-5 * max(1, wanted.abs().max().item())
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=2e-5)
    alone = token_logprobs(model, collate(rows), 0.7)[collate(rows).target_BT]
    torch.testing.assert_close(alone, results[1][0], atol=1e-5, rtol=1e-5)


def test_adjacent_rows_with_the_same_prompt_compute_it_once(model):
    batch = collate([([1, 2], [3, 4]), ([1, 2], [5]), ([6], [7]), ([1, 2], [8])])
    assert (batch.lengths, batch.parent) == ((2, 2, 1, 2, 3), (-1, 0, 0, -1, -1))
    assert batch.tokens_BT.flatten()[batch.token_of_flat_M].tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        1,
        2,
        8,
    ]
    # Every token is computed somewhere, at its position in its row.
    for b, length in enumerate((4, 3, 2, 3)):
        for t in range(length):
            source = int(batch.token_of_flat_M[batch.flat_of_token_BT[b, t]])
            assert source % 4 == t and batch.tokens_BT.flatten()[source] == batch.tokens_BT[b, t]


def test_gradient_checkpointing_gives_the_same_gradients(model):
    rows = [([3, 4], [5, 6, 7]), ([3, 4], [9]), ([8], [9, 2])]
    results, passes = [], []
    for again in (False, True):
        copied = copy.deepcopy(model).requires_grad_(True)
        copied.gradient_checkpointing = again
        copied.model.layers[0].register_forward_pre_hook(
            lambda *_, again=again: passes.append(again)
        )
        token_logprobs(copied, collate(rows)).sum().backward()
        results.append([p.grad for p in copied.parameters()])
    assert passes == [False, True, True]
    assert all(one.equal(other) for one, other in zip(*results))


def test_gradients_are_bit_identical_with_several_threads(model):
    """Every completion attends to its prompt's last token: their contributions to its gradient must
    be added in a fixed order."""
    rows = [([1, 2, 3 + n], [4, 5 + i]) for n in range(3) for i in range(16)]
    copied, gradients = copy.deepcopy(model).requires_grad_(True), []
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(8):
            copied.zero_grad()
            token_logprobs(copied, collate(rows)).sum().backward()
            gradients.append([p.grad.clone() for p in copied.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(
        one.equal(other) for again in gradients[1:] for one, other in zip(gradients[0], again)
    )


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "attention_bias": True}])
def test_compiled_layers_serve_all_batch_shapes(options):
    plain = random_model(**options).requires_grad_(True)
    compiled, programs = copy.deepcopy(plain), []

    def count(graph, inputs):
        assert not any(
            "scaled_dot_product" in str(node.target) for node in graph.graph.nodes
        )  # attention is not compiled
        programs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled.compile_layers(count)
    for rows in (
        [([3, 4], [5, 6, 7])],
        [([3, 4], [5, 6]), ([3, 4], [9])],
        [([1], [2] * 30), ([], [4, 4, 1]), ([8], [9, 2])],
    ):
        results = []
        for model in (plain, compiled):
            model.zero_grad()
            token_logprobs(model, collate(rows)).sum().backward()
            results.append([p.grad for p in model.parameters()])
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(programs) == 2  # before attention and after it, of all layers alike


def test_prefill_and_learner_compile_once_each(tokens):
    model, programs, stops = (
        random_model(vocab_size=tokens.vocab_size),
        [],
        Tokenizer(tokens.backend, range(0, 400, 8)),
    )
    torch._dynamo.reset()
    model.compile_layers(lambda graph, inputs: programs.append(graph) or graph.forward)
    for texts, rows in (
        (["Make 24\n", "x\n"], [([3, 4], [5, 6, 7])]),
        (["y"], [([1], [2] * 9), ([1], [4])]),
        (["a", "b" * 20], [([8], [9])]),
    ):
        sample(model, stops, texts, 3, SamplingParams(6), seed=0)
        token_logprobs(model, collate(rows)).sum().backward()
    assert len(programs) == 4  # without gradients and with them, before attention and after it
