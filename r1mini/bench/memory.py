"""The memory of a GRPO step by model size: `python -m r1mini.bench.memory`, for docs/lora.md.

Calculated as a run calculates it before it starts (training/memory.py), for Qwen2.5's shapes: full
fine-tuning and LoRA, with and without gradient checkpointing, by the tokens of a micro-batch.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from r1mini.config import option, run_script, validate
from r1mini.evaluation.figures import table_head, table_row
from r1mini.model.config import ModelConfig
from r1mini.rl.config import GRPOConfig
from r1mini.rl.setup import memory_needed
from r1mini.training.memory import GIB, USABLE

QWEN = {"rope_theta": 1e6, "attention_bias": True, "max_position_embeddings": 32_768}
SHAPES = {  # vocabulary, width, layers, query heads, key heads, MLP width, head size
    "0.5B": ModelConfig(151_936, 896, 24, 14, 2, 4864, 64, **QWEN),
    "1.5B": ModelConfig(151_936, 1536, 28, 12, 2, 8960, 128, **QWEN),
    "3B": ModelConfig(151_936, 2048, 36, 16, 2, 11_008, 128, **QWEN),
    "7B": ModelConfig(152_064, 3584, 28, 28, 4, 18_944, 128, tie_word_embeddings=False, **QWEN),
}
CARDS = (16, 24, 48, 80, 141)  # GiB


@dataclass(frozen=True)
class Config:
    shapes: tuple[str, ...] = option(tuple(SHAPES), "models", choices=tuple(SHAPES))
    rank: int = option(16, "rank of LoRA's adapters", bounds="1 <= x")
    tokens: tuple[int, ...] = option((1024, 8192), "tokens of a micro-batch", bounds="1 <= x")
    rows: int = option(
        16, "completions sampled in parallel, each as long as a micro-batch", bounds="1 <= x"
    )


def main(cfg: Config) -> None:
    validate(cfg)
    heads = [f"{tokens:,} tokens" for tokens in cfg.tokens]
    print(table_head(["model", "training", "gradient checkpointing", "base and optimizer", *heads]))
    for row in table(cfg):
        print(table_row(row))


def table(cfg: Config) -> Iterator[list[str]]:
    """A row for each model, kind of training and kind of backward pass."""
    for shape in cfg.shapes:
        for rank in (0, cfg.rank):
            for recompute in (False, True):
                cells = [step_bytes(cfg, shape, rank, recompute, tokens) for tokens in cfg.tokens]
                fixed = sum(cells[0][name] for name in ("weights", "gradients", "optimizer"))
                totals = [format_total(sum(sizes.values())) for sizes in cells]
                kind = f"LoRA, rank {rank}" if rank else "full fine-tuning"
                recomputed = "yes" if recompute else "–"
                yield [shape, kind, recomputed, f"{fixed / GIB:.1f}", *totals]


def step_bytes(cfg: Config, shape: str, rank: int, recompute: bool, tokens: int) -> dict[str, int]:
    """Bytes by purpose of a GRPO step with AdamW in bf16 on one GPU, without a KL term."""
    step = GRPOConfig(
        bf16=True,
        optimizer="adamw",
        lora_rank=rank,
        gradient_checkpointing=recompute,
        learner_tokens=tokens,
        max_new_tokens=tokens,
        sampler_rows=cfg.rows,
    )
    return memory_needed(step, torch.device("cuda"), SHAPES[shape])


def format_total(size: int) -> str:
    """
    >>> format_total(20 * 2**30), format_total(200 * 2**30)
    ('20.0 (24)', '200.0 (–)')
    """
    fitting = [card for card in CARDS if size <= USABLE * card * GIB]
    return f"{size / GIB:.1f} ({min(fitting, default='–')})"


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.bench.memory"
    run_script(main, Config, description=__doc__)
