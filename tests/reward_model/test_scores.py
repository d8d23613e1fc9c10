"""The score of a row does not depend on the batch that it is in."""

import copy
from random import Random

import pytest
import torch

from r1mini.infra.device import autocast
from r1mini.training.logprobs import collate
from r1mini.training.scores import row_scores

CPU = torch.device("cpu")


def row(prompt, answer, seed, end=()):
    rng = Random(seed)
    ids = [rng.randrange(3, 320) for _ in range(prompt + answer)]
    return ids[:prompt], [*ids[prompt:], *end]


@pytest.fixture(scope="module")
def rows(tokens):
    """Rows of several lengths. In some, the end token (which is also the padding of many models)
    is in the prompt, ends the answer, or ends it twice."""
    eos = tokens.eos_id
    some = [row(5, 9, 0, [eos]), row(30, 1, 1, [eos, eos]), row(2, 40, 2), row(12, 3, 3, [eos])]
    prompt = [7, eos, eos, 9]
    return [*some, *((prompt, answer) for _, answer in some), ([], [eos]), ([8], [])]


@torch.no_grad()
def alone(model, row):
    """The head at the last token of the row, in a plain forward pass without padding."""
    ids = [token for segment in row for token in segment]
    return model(torch.tensor([ids]))[0, -1, 0].item()


@torch.no_grad()
def together(model, rows):
    return row_scores(model, collate(rows)).tolist()


def test_score_is_that_of_the_last_token(reward_model, rows):
    expected = [alone(reward_model, row) for row in rows]
    assert len({round(score, 4) for score in expected}) == len(rows)  # they tell rows apart
    assert [together(reward_model, [row])[0] for row in rows] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 4, 2, 0, 5, 7, 8, 6, 3, 1]])
def test_scores_do_not_depend_on_the_other_rows(reward_model, rows, order):
    scores = together(reward_model, [rows[i] for i in order])
    assert scores == pytest.approx([alone(reward_model, rows[i]) for i in order], abs=1e-5)


def test_shared_prompts_change_no_score(reward_model, rows):
    sharing = [row for row in rows if row[0] == rows[4][0]]
    batch = collate(sharing)
    assert len(sharing) == 4 and sum(batch.lengths) < sum(len(p) + len(a) for p, a in sharing)
    apart = [alone(reward_model, row) for row in sharing]
    assert together(reward_model, sharing) == pytest.approx(apart, abs=1e-5)


def test_head_is_computed_in_fp32(reward_model, rows):
    """bf16 has eight bits: a close pair of scores would become a tie."""
    batch = collate(rows)
    hidden = []
    with torch.no_grad(), autocast(CPU, True):
        hook = reward_model.model.norm.register_forward_hook(lambda *args: hidden.append(args[-1]))
        scores_B = row_scores(reward_model, batch)
        hook.remove()
    last_B = batch.flat_of_token_BT.amax(-1)
    expected_B = hidden[0][last_B].double() @ reward_model.score.weight[0].double()
    assert scores_B.dtype == torch.float32
    torch.testing.assert_close(scores_B.double(), expected_B, atol=1e-5, rtol=0)
    assert (scores_B != scores_B.bfloat16()).all()
    fp32_B = torch.tensor([alone(reward_model, row) for row in rows])
    assert 0 < (scores_B - fp32_B).abs().max() < 0.1  # the layers ran in bf16


def test_bf16_weights_give_fp32_scores(reward_model, rows):
    half = copy.deepcopy(reward_model).bfloat16()
    with torch.no_grad():
        scores_B = row_scores(half, collate(rows))
    assert scores_B.dtype == torch.float32 and (scores_B != scores_B.bfloat16()).any()
