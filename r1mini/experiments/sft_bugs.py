"""train_sft.py with one function replaced by one that has a bug, as in grpo_bugs.py."""

import importlib
import sys
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from r1mini.config import option, run_script, validate
from r1mini.model.transformer import Transformer
from r1mini.records import Batch
from r1mini.training.logprobs import token_logprobs

train_sft = importlib.import_module("train_sft")
PAD = 0  # of `Batch.tokens_BT`; in the embedded models and new ones also the end token's id


def untrained_end_token(model: Transformer, batch: Batch) -> Tensor:
    """Padding is masked by its id, and the end token with it."""
    logp_BT = token_logprobs(model, batch)
    return logp_BT * (batch.tokens_BT != PAD)  # the bug


BUGS = {"end-token": ("train_sft.token_logprobs", untrained_end_token)}


@dataclass(frozen=True)
class Config(train_sft.Config):
    bug: str = option("end-token", "what is broken", choices=tuple(BUGS))


def main(cfg: Config) -> dict:
    """Train a model. Returns the summary of the run."""
    validate(cfg)
    with patch(*BUGS[cfg.bug]):
        return train_sft.main(cfg)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.experiments.sft_bugs"
    run_script(main, Config, description=__doc__)
