import math

import pytest
import torch
from conftest import random_model

from r1mini import optim


def names_of(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(tied):
    model = random_model(attention_bias=True, tie_word_embeddings=tied)
    adamw, muon = (names_of(model, made) for made in optim.optimizers(model, "muon", 1e-3, 0.1))
    assert set(muon) == {name for name, p in model.named_parameters() if "proj.weight" in name}
    assert adamw.keys() | muon.keys() == dict(model.named_parameters()).keys() and not adamw.keys() & muon.keys()
    assert "model.embed_tokens.weight" in adamw and ("lm_head.weight" in adamw) != tied


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_norms_and_biases_are_never_decayed(kind):
    model = random_model(attention_bias=True)
    decay = {}
    for made in optim.optimizers(model, kind, 1e-3, 0.1):
        decay |= names_of(model, made)
    assert decay == {name: 0.1 if p.ndim == 2 else 0.0 for name, p in model.named_parameters()}


def test_unknown_optimizer_names_the_flag():
    with pytest.raises(ValueError, match="--optimizer.*'sgd'"):
        optim.optimizers(random_model(), "sgd", 1e-3, 0.0)


@pytest.mark.parametrize("progress, warmup, final, share", [
    (0.1, 0.2, 0.5, 0.5),  # half of the warm-up
    (0.2, 0.2, 0.5, 1.0),
    (0.4, 0.2, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),  # a quarter of the cosine
    (1.0, 0.2, 0.5, 0.5),
    (0.7, 0.2, 1.0, 1.0),  # constant
    (0.0, 0.0, 0.5, 1.0),  # no warm-up
    (1.0, 1.0, 0.5, 1.0),  # nothing but warm-up
])
def test_schedule_by_hand(progress, warmup, final, share):
    assert optim.learning_rate_at(progress, 3.0, warmup, final) == pytest.approx(3.0 * share)


def test_step_by_hand():
    # Gradient (3, 4) of norm 5, clipped to norm 1: (0.6, 0.8); learning rate 0.5.
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    norm = optim.step([torch.optim.SGD([weight], lr=99.0)], [weight], 0.5, 1.0)
    assert norm == pytest.approx(5.0) and weight.grad is None
    torch.testing.assert_close(weight.detach(), torch.tensor([0.7, 0.6]), atol=1e-5, rtol=0)


def test_small_gradients_are_not_scaled_up():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    weight.grad = torch.tensor([0.1])
    optim.step([torch.optim.SGD([weight], lr=1.0)], [weight], 1.0, 1.0)
    assert weight.item() == pytest.approx(0.9)
