import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import random_model
from torch._subclasses.fake_tensor import FakeTensorMode

from r1mini.config import TrainOptions, validate
from r1mini.training import optim


def names_of(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_layers_matrices_and_adamw_the_rest(tied):
    model = random_model(attention_bias=True, tie_word_embeddings=tied)
    adamw, muon = (
        names_of(model, optimizers) for optimizers in optim.build_optimizers(model, "muon", 0.1)
    )
    assert set(muon) == {name for name, p in model.named_parameters() if "proj.weight" in name}
    assert (
        adamw.keys() | muon.keys() == dict(model.named_parameters()).keys()
        and not adamw.keys() & muon.keys()
    )
    assert "model.embed_tokens.weight" in adamw and ("lm_head.weight" in adamw) != tied


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_norms_and_biases_are_never_decayed(kind):
    model = random_model(attention_bias=True)
    decay = {}
    for optimizers in optim.build_optimizers(model, kind, 0.1):
        decay |= names_of(model, optimizers)
    assert decay == {name: 0.1 if p.ndim == 2 else 0.0 for name, p in model.named_parameters()}


def test_orthogonalized_diagonal_matrix_by_hand():
    """Newton-Schulz acts on each singular value alone: x → a x + b x³ + c x⁵."""
    a, b, c = 3.4445, -4.775, 2.0315
    values = [0.6, 0.8]  # of diag(3, 4), whose norm is 5
    for _ in range(5):
        values = [a * x + b * x**3 + c * x**5 for x in values]
    expected = torch.zeros(2, 3)
    expected[0, 0], expected[1, 1] = values
    wide = torch.tensor([[3.0, 0, 0], [0, 4, 0]])
    for matrix, result in ((wide, expected), (wide.T, expected.T)):
        torch.testing.assert_close(
            optim.orthogonalize(matrix, torch.float32, (a, b, c), 5), result, atol=1e-5, rtol=0
        )
    assert all(0.68 < x < 1.15 for x in values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_but_for_the_dtype_of_newton_schulz(monkeypatch, dtype):
    def trained(muon):
        generator = torch.Generator().manual_seed(0)
        shapes = (24, 16), (16, 24), (16, 16)
        weights = [torch.nn.Parameter(torch.randn(x, generator=generator)) for x in shapes]
        optimizer = muon(weights, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(4):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return torch.cat([weight.flatten() for weight in weights]), optimizer.state_dict()

    orthogonalize = optim.orthogonalize
    monkeypatch.setattr(optim, "orthogonalize", lambda x, _, *rest: orthogonalize(x, dtype, *rest))
    (ours, our_state), (torchs, state) = trained(optim.Muon), trained(torch.optim.Muon)
    difference = (ours - torchs).abs().max() / 0.01  # in learning rates
    assert difference == 0 if dtype == torch.bfloat16 else 0 < difference < 0.1
    assert our_state["param_groups"] == state["param_groups"]
    for number, values in state["state"].items():
        assert our_state["state"][number].keys() == values.keys()
        assert our_state["state"][number]["momentum_buffer"].equal(values["momentum_buffer"])


def test_unknown_optimizer_names_the_flag():
    with pytest.raises(ValueError, match="--optimizer sgd: must be muon or adamw"):
        validate(TrainOptions(optimizer="sgd"))


def stepped(optimizers, model, steps=3, device="cpu"):
    """The model, and its optimizers' states, after steps with gradients that are a function of the
    step."""
    for step in range(steps):
        for number, p in enumerate(model.parameters()):
            p.grad = torch.randn(
                p.shape, generator=torch.Generator().manual_seed(100 * step + number)
            ).to(device)
        optim.step(optimizers, model.parameters(), 0.01 / (step + 1), 1.0)
    return [p.detach().cpu() for p in model.parameters()], [
        optimizer.state_dict() for optimizer in optimizers
    ]


def flat(states):
    return [(str(path), x) for path, x in torch.utils._pytree.tree_flatten_with_path(states)[0]]


def assert_same_bits(one, other):
    assert all(actual.equal(expected) for actual, expected in zip(one[0], other[0], strict=True))
    for (actual, x), (expected, y) in zip(flat(one[1]), flat(other[1]), strict=True):
        assert actual == expected and (
            torch.equal(x.cpu(), y.cpu()) if isinstance(x, torch.Tensor) else x == y
        )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_offloaded_state_is_bit_identical(kind, monkeypatch):
    """Each copy overwrites its source with garbage, so that a read from the wrong place or time is visible."""
    moves = []

    def moved(value):
        copied = value.clone()
        value.fill_(math.nan)
        return copied

    def to_device(self, value, device):
        moves.append("c")
        return moved(value) if value.ndim else value

    def to_cpu(self, value, out=None, pinned=False):
        moves.append(" ")
        return moved(value) if value.ndim else value

    model = random_model(attention_bias=True)
    other = copy.deepcopy(model)
    plain = stepped(optim.build_optimizers(model, kind, 0.1, adamw_scale=0.5), model)
    monkeypatch.setattr(optim.CPUOffload, "to_device", to_device)
    monkeypatch.setattr(optim.CPUOffload, "to_cpu", to_cpu)
    assert_same_bits(
        stepped(optim.build_optimizers(other, kind, 0.1, adamw_scale=0.5, state_on="cpu"), other),
        plain,
    )
    at_a_time = "".join(moves).split()
    assert max(map(len, at_a_time)) <= 3  # two moments and a step count of one parameter


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_offloaded_state_is_on_the_device_only_during_a_step(kind, monkeypatch):
    """On a fake CUDA device with shapes only: operators refuse tensors on different devices."""
    waited = []  # only for the stream that copies: another one may be capturing
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device: SimpleNamespace(synchronize=lambda: waited.append(device.type)),
    )
    with FakeTensorMode():
        shapes = {"embed": (8, 4), "proj": (4, 4), "norm": (4,)}
        model = torch.nn.ParameterDict(
            {name: torch.zeros(size, device="cuda") for name, size in shapes.items()}
        )
        first, resumed = (
            optim.build_optimizers(model, kind, 0.1, state_on="cpu") for _ in range(2)
        )
        for optimizers in (first, resumed):
            if optimizers is resumed:
                for optimizer, saved in zip(resumed, first):
                    optimizer.load_state_dict(saved.state_dict())
                assert where_moments_are(resumed) == ["cpu"]
            for _ in range(2):
                for p in model.parameters():
                    p.grad = torch.ones_like(p)
                for optimizer in optimizers:
                    optimizer.step()
            assert where_moments_are(optimizers) == ["cpu"] and {
                p.device.type for p in model.parameters()
            } == {"cuda"}
    assert waited == ["cuda"] * 4 * len(first)


def where_moments_are(optimizers):
    return sorted(
        {
            x.device.type
            for optimizer in optimizers
            for its in optimizer.state.values()
            for x in its.values()
            if x.ndim
        }
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_offloaded_moments_on_a_gpu_are_bit_identical_and_free_its_memory(kind):
    results, taken = [], []
    for where in ("device", "cpu"):
        model = random_model().cuda()
        optimizers = optim.build_optimizers(model, kind, 0.1, state_on=where)
        before = torch.cuda.memory_allocated()
        results.append(stepped(optimizers, model, device="cuda"))
        taken.append(torch.cuda.memory_allocated() - before)
    assert_same_bits(*results)
    assert taken[1] <= 0 < taken[0]
    assert all(
        x.is_pinned() for _, x in flat([o.state_dict()["state"] for o in optimizers]) if x.ndim
    )


@pytest.mark.parametrize(
    "fraction, warmup, final, share",
    [
        (0.1, 0.2, 0.5, 0.5),  # half of the warm-up
        (0.2, 0.2, 0.5, 1.0),
        (0.4, 0.2, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),  # a quarter of the cosine
        (1.0, 0.2, 0.5, 0.5),
        (0.7, 0.2, 1.0, 1.0),  # constant
        (0.0, 0.0, 0.5, 1.0),  # no warm-up
        (1.0, 1.0, 0.5, 1.0),  # only warm-up
    ],
)
def test_schedule_by_hand(fraction, warmup, final, share):
    assert optim.learning_rate_at(fraction, 3.0, warmup, final) == pytest.approx(3.0 * share)


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
