"""Merges LoRA's adapters into their base model: `python -m r1mini.checkpoint --adapter runs/rl`.

The result is a plain model folder, which transformers, vLLM and --model can load. It takes memory
for the model twice, in fp32 on the CPU.
"""

import sys
from dataclasses import dataclass

from r1mini import checkpoint
from r1mini.config import option, run_script, validate


@dataclass(frozen=True)
class Config:
    adapter: str = option("", "folder of the adapters, or a hub id")
    base: str = option("", "their base model, if it is not where the folder says")
    dtype: str = option(
        "float32",
        "dtype of the merged weights; bfloat16 rounds small updates away",
        choices=("float32", "bfloat16"),
    )
    out: str = option("runs/merged", "folder for the merged model")


def main(cfg: Config) -> None:
    validate(cfg)
    if not checkpoint.is_adapter(cfg.adapter):
        raise ValueError(f"--adapter {cfg.adapter}: not a folder of LoRA's adapters")
    checkpoint.save_merged(cfg.out, cfg.adapter, cfg.dtype, cfg.base)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.checkpoint"
    run_script(main, Config, description=__doc__)
