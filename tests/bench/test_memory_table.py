import pytest
from conftest import ROOT

from r1mini.bench import memory
from r1mini.config import parse
from r1mini.rl.config import PRESETS, GRPOConfig
from r1mini.rl.setup import memory_needed
from r1mini.training.memory import GIB, USABLE


def total(shape, rank, recompute=False, tokens=1024):
    return sum(memory.step_bytes(memory.Config(), shape, rank, recompute, tokens).values()) / GIB


def test_weights_gradients_and_moments_by_hand():
    sizes = memory.step_bytes(memory.Config(), "7B", 0, False, 1024)
    parameters = 7.616e9  # of Qwen2.5-7B, by its model card
    fixed = sum(sizes[name] for name in ("weights", "gradients", "optimizer"))
    assert fixed == pytest.approx(16 * parameters, rel=1e-3)
    sizes = memory.step_bytes(memory.Config(), "7B", 16, False, 1024)
    # 28 layers of rank 16: in + out of q, k, v, o, gate, up and down
    width, kv, mlp = 3584, 512, 18_944
    own = 28 * 16 * (2 * 2 * width + 2 * (width + kv) + 3 * (width + mlp))
    assert sizes["gradients"] == 4 * own and sizes["optimizer"] == 8 * own
    assert sizes["weights"] == pytest.approx(2 * parameters + 4 * own, rel=1e-3)


def test_adapters_and_checkpointing_save_memory():
    for shape in memory.SHAPES:
        assert total(shape, 16) < total(shape, 0)
        assert total(shape, 16, recompute=True, tokens=8192) < total(shape, 16, tokens=8192) / 2


def test_table_of_the_docs_is_the_printed_one(capsys):
    memory.main(memory.Config())
    assert capsys.readouterr().out in (ROOT / "r1mini/docs/lora.md").read_text()


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
    sizes = memory_needed(cfg, memory.torch.device("cuda"), memory.SHAPES[shape])
    assert sum(sizes.values()) <= USABLE * card * GIB
