import dataclasses

import pytest
import torch
from conftest import ROOT

from r1mini.bench import memory
from r1mini.config import parse
from r1mini.rl.config import PRESETS, GRPOConfig
from r1mini.rl.setup import memory_needed
from r1mini.training.memory import GIB, USABLE


@pytest.fixture
def two_layers(monkeypatch):
    """Qwen2.5-7B's shape with two layers: the whole would take seconds."""
    shape = dataclasses.replace(memory.SHAPES["7B"], num_hidden_layers=2)
    monkeypatch.setitem(memory.SHAPES, "7B", shape)


def total(rank, recompute=False, tokens=1024):
    return sum(memory.step_bytes(memory.Config(), "7B", rank, recompute, tokens).values())


def test_weights_gradients_and_moments_by_hand(two_layers):
    vocab, width, kv, mlp = 152_064, 3584, 512, 18_944
    linear = 2 * width * width + 2 * width * kv + 3 * width * mlp
    vectors = width + 2 * kv + 2 * width  # biases of q, k and v; two norms
    parameters = 2 * vocab * width + width + 2 * (linear + vectors)
    sizes = memory.step_bytes(memory.Config(), "7B", 0, False, 1024)
    assert sizes["weights"] == sizes["gradients"] == 4 * parameters
    assert sizes["optimizer"] == 8 * parameters
    # A and B of rank 16: in + out of q, o; k, v; gate, up, down
    own = 2 * 16 * (2 * 2 * width + 2 * (width + kv) + 3 * (width + mlp))
    sizes = memory.step_bytes(memory.Config(), "7B", 16, False, 1024)
    assert sizes["weights"] == 2 * parameters + 4 * own
    assert (sizes["gradients"], sizes["optimizer"]) == (4 * own, 8 * own)


def test_adapters_and_checkpointing_save_memory(two_layers):
    assert total(16) < total(0) / 2
    assert total(16, recompute=True, tokens=8192) < total(16, tokens=8192)


def test_rows_of_the_docs_are_the_printed_ones(capsys):
    memory.main(memory.Config(shapes=("0.5B",)))
    lines = capsys.readouterr().out.splitlines()
    page = (ROOT / "r1mini/docs/lora.md").read_text().splitlines()
    assert len(lines) == 6 and set(lines) <= set(page)


@pytest.mark.parametrize(
    ("preset", "shape", "card", "flags"),
    [
        ("small-gpu", "3B", 24, []),
        ("small-gpu", "0.5B", 24, ["--lora-rank", "0"]),
        ("lora-7b", "7B", 80, []),
    ],
)
def test_presets_fit_the_card_that_they_are_for(preset, shape, card, flags):
    cfg = parse(GRPOConfig, ["--preset", preset, *flags], PRESETS)
    sizes = memory_needed(cfg, torch.device("cuda"), memory.SHAPES[shape])
    assert sum(sizes.values()) <= USABLE * card * GIB
