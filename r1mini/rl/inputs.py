"""The inputs of a GRPO run: rewards with their weights, and the problems of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from r1mini import rewards
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.problems import read_problems
from r1mini.model.transformer import Transformer
from r1mini.records import Problem
from r1mini.rewards.runner import load_rewards
from r1mini.rl.config import GRPOConfig
from r1mini.sampler.sampler import encode_prompts


@dataclass(frozen=True)
class Rewards:
    """Rewards by name, and the weights of those that count; the others are only logged."""

    functions: Mapping[str, rewards.Reward]
    weights: Mapping[str, float]

    @staticmethod
    def from_config(cfg: GRPOConfig) -> Rewards:
        functions, weights = load_rewards(cfg.reward)
        if cfg.overlong_cache:
            punishment = rewards.soft_overlong_punishment
            functions["overlong"] = partial(punishment, soft_punish_cache=cfg.overlong_cache)
            weights["overlong"] = 1.0
        return Rewards(functions, weights)


def load_problems(
    cfg: GRPOConfig, template: ChatTemplate, policy: Transformer, tokenizer: Tokenizer
) -> list[Problem]:
    """The problems of `--data`, checked; none without it."""
    if not cfg.data:
        return []
    return read_problems(
        cfg.data,
        template,
        lambda problem: encode_prompts(policy, tokenizer, [problem.prompt]),
        prompt_key=cfg.prompt_key,
        answer_key=cfg.answer_key,
        instruction=cfg.instruction,
        skip_bad=cfg.skip_bad,
        decontaminate=cfg.decontaminate,
    )
