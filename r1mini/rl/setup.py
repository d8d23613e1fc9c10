"""What a GRPO run needs before its first step: rewards, problems, and the memory of a step in the
worst case, when every completion reaches its limit."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from r1mini import rewards
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.problems import read_problems
from r1mini.infra import distributed
from r1mini.infra.device import autocast
from r1mini.model.config import ModelConfig
from r1mini.model.transformer import Transformer
from r1mini.records import Group, Problem, Rollout
from r1mini.reward_model.scoring import open_rewards, parameter_bytes
from r1mini.rewards.runner import Rewards, model_folders
from r1mini.rl.config import GRPOConfig
from r1mini.rl.learner import accumulate_gradient
from r1mini.rl.metrics import bf16_weights
from r1mini.rl.rollouts import problems_of_step
from r1mini.rl.samples import make_samples, minibatches
from r1mini.sampler import sampler
from r1mini.sampler.kv_cache import cache_bytes
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import memory


def build_rewards(cfg: GRPOConfig) -> Rewards:
    """The rewards of `--reward`, and the penalty of `--overlong-cache`. Reward models still have to
    be loaded."""
    loaded = open_rewards(cfg.reward, cfg.score_thinking)
    if cfg.overlong_cache:
        punishment = rewards.soft_overlong_punishment
        loaded.functions["overlong"] = partial(punishment, soft_punish_cache=cfg.overlong_cache)
        loaded.weights["overlong"] = 1.0
    return loaded


def load_problems(
    cfg: GRPOConfig, template: ChatTemplate, policy: Transformer, tokenizer: Tokenizer
) -> list[Problem]:
    """The problems of `--data`, checked; none without it."""
    if not cfg.data:
        return []
    return read_problems(
        cfg.data,
        template,
        lambda problem: sampler.encode_prompts(policy, tokenizer, [problem.prompt]),
        prompt_key=cfg.prompt_key,
        answer_key=cfg.answer_key,
        instruction=cfg.instruction,
        skip_bad=cfg.skip_bad,
        decontaminate=cfg.decontaminate,
        general=bool(model_folders(cfg.reward)),
    )


def memory_needed(cfg: GRPOConfig, device: torch.device, config: ModelConfig) -> dict[str, int]:
    """Bytes by purpose."""
    max_length = config.max_completion(cfg.max_new_tokens)
    tokens = max(cfg.learner_tokens, max_length)
    sizes = memory.training_bytes(config, tokens, cfg, reference=bool(cfg.beta))
    problems = -(-cfg.problems // distributed.world_size())
    rows = min(cfg.sampler_rows, problems * cfg.completions)
    bytes_per_number = 2 if device.type == "cuda" and cfg.bf16 else 4
    cache = cache_bytes(config, rows, max_length, bytes_per_number)
    if cache > sizes["learner"]:  # sampler and learner take turns
        del sizes["learner"]
        sizes["sampler"] = cache
    if folders := model_folders(cfg.reward):
        sizes["reward models"] = sum(parameter_bytes(folder, cfg.bf16) for folder in folders)
    return sizes


def fit_micro_batches(
    cfg: GRPOConfig, device: torch.device, config: ModelConfig, free: int | None
) -> GRPOConfig:
    """Replaces `--learner-tokens 0` with the largest number of tokens that fits."""
    if cfg.learner_tokens:
        return cfg

    def sizes(tokens: int) -> dict[str, int]:
        return memory_needed(replace(cfg, learner_tokens=tokens), device, config)

    tokens = memory.largest_fitting(sizes, free, device)
    print(f"using --learner-tokens {tokens}, the most that fit")
    return replace(cfg, learner_tokens=tokens)


def worst_case_step(
    cfg: GRPOConfig,
    policy: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    data: Sequence[Problem],
) -> None:
    """Sample and learn in a step where every prompt is the longest one (of the file, or of the
    first step) and every completion reaches its limit: decodes one block, then learns one
    micro-batch, without the optimizer."""
    texts = [problem.prompt for problem in data or problems_of_step(cfg, data, 0)]
    prompt = max(sampler.encode_prompts(policy, tokenizer, texts), key=len)
    prompts = [prompt] * -(-cfg.problems // distributed.world_size())
    params = SamplingParams(cfg.max_new_tokens, cfg.temperature)
    with autocast(policy.device, cfg.bf16):
        whole = distributed.gather_model(policy)
        sampler.dry_run(
            whole, tokenizer, prompts, cfg.completions, params, cfg.sampler_rows, cfg.compile
        )
    limit = policy.config.max_completion(cfg.max_new_tokens, len(prompt))
    size = len(minibatches(cfg, cfg.problems, "")[0])
    same_prompt = cfg.completions if cfg.minibatch_of == "problems" else size // cfg.problems
    rows = memory.longest_rows(cfg.learner_tokens, size, len(prompt), limit, max(1, same_prompt))
    rollouts = [
        Rollout(tuple(ids), tuple(completion), (0.0,) * len(completion), "", True)
        for ids, completion in rows
    ]
    weights = bf16_weights(policy) if cfg.bf16 else None  # as in a step
    group = Group(Problem("", "", "", ""), rollouts, [], ())
    samples = make_samples(cfg, policy, [group], torch.ones(1, len(rows)))
    accumulate_gradient(cfg, policy, reference, samples, cfg.learner_tokens)
    del weights
    policy.zero_grad()
