"""train_grpo.py with one function replaced by one that has a bug, in one line.

    python -m r1mini.experiments.grpo_bugs --bug temperature --out runs/temperature

Everything else is train_grpo.py, with all of its flags.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from r1mini.config import option, run_script, validate
from r1mini.rl.config import GRPOConfig
from r1mini.rl.samples import LossInputs, Sample, loss_inputs
from r1mini.sampler.sampling import inverse_cdf_sample

SAMPLED_AT = 0.7


def untrained_end_token(cfg: GRPOConfig, policy, samples: Sequence[Sample], *rest) -> LossInputs:
    """The end token has no weight in the loss."""
    inputs = loss_inputs(cfg, policy, samples, *rest)
    for b, sample in enumerate(samples):
        if sample.rollout.finished:
            inputs.weight_BT[b, sum(map(len, sample.ids)) - 1] = 0.0  # the bug
    return inputs


def sample_at_another_temperature(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Tokens are drawn at a temperature of `SAMPLED_AT`; their log-probabilities, and the loss, are
    those at `--temperature`. Sampler and learner agree, so nothing notices."""
    return inverse_cdf_sample(p_BV ** (1 / SAMPLED_AT), uniform_B)  # the bug


BUGS = {
    "end-token": ("r1mini.rl.learner.loss_inputs", untrained_end_token),
    "temperature": ("r1mini.sampler.sampling.inverse_cdf_sample", sample_at_another_temperature),
}


@dataclass(frozen=True)
class Config(GRPOConfig):
    bug: str = option("end-token", "what is broken", choices=tuple(BUGS))


def main(cfg: Config) -> dict:
    """Train a policy. Returns the summary of the run."""
    validate(cfg)
    with patch(*BUGS[cfg.bug]):
        return importlib.import_module("train_grpo").main(cfg)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.experiments.grpo_bugs"
    run_script(main, Config, description=__doc__)
