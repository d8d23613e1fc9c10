"""The flags of train_grpo.py, and its presets: the papers' settings."""

import dataclasses
from dataclasses import dataclass

from r1mini import tasks
from r1mini.config import PolicyOptions, option, validate
from r1mini.rewards.runner import check_terms
from r1mini.rl import corrections, grpo

RATIO = "objective!=reinforce and minibatches!=1"  # one minibatch: the policy has not moved
CLIP = "objective=clip and minibatches!=1"
SAPO = "objective=sapo and minibatches!=1"
LOGGED_TOKENS = 512  # of a completion, with --log-tokens


@dataclass(frozen=True)
class GRPOConfig(PolicyOptions):
    out: str = option("runs/grpo", "folder for the trained model, metrics and rollouts")
    tasks: tuple[str, ...] = option(
        tasks.REASONING,
        "tasks, taken in turn; list a task twice to sample it twice as often",
        when="!data",
    )
    data: str = option(
        "", "problem file instead of tasks: JSONL, JSON (either with .gz), CSV or Parquet"
    )
    instruction: str = option("", "text to append to each prompt of --data", when="data")
    # DEVIATES: R1 adds its rewards unweighted; here format counts half, and language twice.
    reward: str = option(
        "accuracy,format:0.5,language:2",
        "rewards to sum: name, file.py:function or name=FOLDER of a reward model, each with "
        ":weight (default 1) and @start, the share of the run from which on it counts (default 0)",
    )
    score_thinking: tuple[str, ...] = option(
        (),
        "reward models that score the whole completion, as R1 scores harmlessness; the others "
        "score the answer without the thinking",
    )
    steps: int = option(60, "sampling steps", bounds="1 <= x")
    sample_budget: int = option(
        0,
        "end the run after this many completions, including resampled ones (0: no limit)",
        bounds="0 <= x",
    )
    problems: int = option(
        32, "problems per sampling step (N); R1: 512, 32 per update", bounds="1 <= x"
    )
    completions: int = option(8, "completions per problem (G); R1: 16", bounds="1 <= x")
    minibatches: int = option(
        0,
        "optimizer steps per sampling step; R1: 16 (0: 8, or the number of completions if smaller; "
        "1 with --objective reinforce)",
        bounds="0 <= x",
    )
    minibatch_of: str = option(
        "completions",
        "unit of the minibatches: completions (R1), or problems, whose completions then share the "
        "computation of their prompt",
        choices=("completions", "problems"),
        when="minibatches!=1",
    )
    max_new_tokens: int = option(400, "length limit of a completion", bounds="1 <= x")
    temperature: float = option(
        1.0,
        "temperature of sampling and loss; R1: 1, and 0.7 in RL for all scenarios",
        bounds="0 < x",
    )

    # The objective: keywords of the functions in r1mini/rl/grpo.py; from --reference-every on, of
    # the learner.
    baseline: str = option(
        "group",
        "subtracted from each reward: the mean of its group (GRPO), leave-one-out (RLOO) or none",
        choices=grpo.BASELINES,
    )
    scale: str = option(
        "auto",
        "divide advantages by the standard deviation of the group (GRPO) or batch (Lite PPO), "
        "or not: none (Dr. GRPO); auto: group, but none with --baseline none",
        choices=("auto", *grpo.SCALES),
    )
    # DEVIATES: averaged per token and with a wider upper clip, as in DAPO; the KL term is off.
    loss_per: str = option(
        "token",
        "sequence (DeepSeekMath Eq. 3), token (DAPO), constant (Dr. GRPO) or microbatch (TRL's "
        "bnpo)",
        choices=grpo.LOSS_PER,
    )
    objective: str = option(
        "clip", "clip (PPO, GRPO), cispo, sapo or reinforce", choices=grpo.OBJECTIVES
    )
    ratio: str = option(
        "token", "ratio of each token, or of the sequence (GSPO)", choices=grpo.RATIOS, when=RATIO
    )
    clip_low: float = option(0.2, "lower clip of the ratio", bounds="0 <= x <= 1", when=CLIP)
    clip_high: float = option(
        0.28,
        "upper clip of the ratio; R1: 10",
        bounds="0 <= x",
        when="objective=clip|cispo and minibatches!=1",
    )
    delta: float = option(
        0.0,
        "upper bound of the ratio for negative advantages, above 1 + clip-high (0: none)",
        bounds="0 <= x",
        when=CLIP,
    )
    soft_up: float = option(
        1.0, "sapo: temperature of the gate for positive advantages", bounds="0 < x", when=SAPO
    )
    soft_down: float = option(
        1.05, "sapo: temperature of the gate for negative advantages", bounds="0 < x", when=SAPO
    )
    beta: float = option(
        0.0, "KL coefficient; R1: 0.001. 0 needs no reference model", bounds="0 <= x"
    )
    kl: str = option(
        "k3",
        "estimate of the KL: k1, k2, k3 (R1) or k3-weighted (by the ratio)",
        choices=grpo.KL_ESTIMATES,
        when="beta",
    )
    reference_every: int = option(
        25,
        "sampling steps between resets of the reference (0: never); R1: 25 (400 updates)",
        bounds="0 <= x",
        when="beta",
    )
    reference_mix: float = option(
        1.0,
        "weight of the policy in the new reference; the rest is the old reference",
        bounds="0 < x <= 1",
        when="beta and reference_every and reference_every<steps",
    )
    entropy_bonus: float = option(
        0.0, "coefficient of the mean entropy in the objective", bounds="0 <= x"
    )
    top_entropy: float = option(
        1.0,
        "train on only this fraction of the tokens, those with the highest entropy",
        bounds="0 < x <= 1",
    )
    off_policy_limit: float = option(
        0.0,
        "mask completions of negative advantage whose log-probability fell by more than this, in "
        "nats per token (0: off)",
        bounds="0 <= x",
    )
    correction: str = option(
        "none",
        "importance weight, learner over sampler, per token or sequence, truncated or masked",
        choices=corrections.CORRECTIONS,
    )
    correction_cap: float = option(
        3.0, "largest importance weight", bounds="0 < x", when="correction!=none"
    )

    # Sampling.
    resample: int = option(
        0,
        "times per step to replace groups of equal rewards with new problems (DAPO)",
        bounds="0 <= x < 256",
    )
    overlong: str = option(
        "keep",
        "completions cut at the limit: keep, or mask (leave them out of the loss)",
        choices=("keep", "mask"),
    )
    overlong_cache: int = option(
        0,
        "length of the soft-penalty window before the limit, in tokens (DAPO Eq. 13; 0: off)",
        bounds="0 <= x < max_new_tokens",
    )
    learning_rate: float = option(
        4e-4,
        "peak learning rate; R1, with AdamW at 671B: 3e-6",
        bounds="0 <= x",
        when="!lora_learning_rate",
    )
    rest_lr: float = option(
        1.0,
        "with muon, learning rate of embeddings, head and norms, as a fraction of --learning-rate",
        bounds="0 <= x",
        when="optimizer=muon and !lora_rank",
    )
    learner_tokens: int = option(
        4096,
        "tokens per micro-batch; affects memory, never the gradient (0: as many as fit; the last "
        "bits then depend on the machine)",
        bounds="0 <= x",
    )
    sampler_rows: int = option(
        256, "completions sampled in parallel; affects memory, never a completion", bounds="1 <= x"
    )
    save_every: int = option(
        20,
        "steps between saved states; an interrupted run resumes from the last (0: save only on "
        "signals)",
        bounds="0 <= x",
    )
    show: int = option(1, "completions printed every 10 steps")
    log_tokens: int = option(
        1,
        "groups of each step whose tokens are logged in tokens.jsonl with their log-probabilities "
        f"before and after the update, at most {LOGGED_TOKENS} of each completion (0: none)",
        bounds="0 <= x",
    )


# R1's numbers (Nature, Methods): a sampling step draws 8,192 outputs, 16 per question, and learns
# from them in 16 updates of 512. Counts of updates in the paper are divided by 16 here. It gives no
# clip for R1-Zero (R1's is used), no number of steps for R1's first RL (for its second: --steps 106
# --temperature 0.7), no Adam betas and no gradient clip. Left out: R1-Zero's length limit is
# doubled after 8,200 updates.
PAPER = {
    "problems": 512,
    "completions": 16,
    "minibatches": 16,
    "max_new_tokens": 32_768,
    "loss_per": "sequence",
    "clip_low": 1.0,
    "clip_high": 10.0,
    "beta": 0.001,
    "optimizer": "adamw",
    "learning_rate": 3e-6,
    "warmup": 0.0,
    "final_lr": 1.0,
}
PRESETS = {
    "r1-zero-paper": {**PAPER, "steps": 650, "reward": "accuracy,format"},
    "r1-paper": {**PAPER, "reward": "accuracy,format,language"},
    # One paper's objective each; sizes and learning rate stay as they are.
    "grpo": {"loss_per": "sequence", "clip_high": 0.2, "beta": 0.04},  # DeepSeekMath §4.2
    "dapo": {"loss_per": "token", "clip_high": 0.28, "resample": 3, "overlong_cache": 50},
    "dr-grpo": {"loss_per": "constant", "scale": "none", "clip_high": 0.2},
    # GSPO §5.1
    "gspo": {"loss_per": "sequence", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    # ScaleRL: ratios up to 5
    "cispo": {"loss_per": "token", "objective": "cispo", "clip_high": 4.0},
    # Up to 3 billion parameters in 24 GB: 6 GB of bf16 weights, 10 GB for 1,024 tokens. All weights
    # of 0.5 billion fit, too: --lora-rank 0.
    "small-gpu": {
        "lora_rank": 16,
        "problems": 16,
        "completions": 8,
        "minibatches": 2,
        "max_new_tokens": 1024,
        "optimizer": "adamw",
        "learning_rate": 1e-6,
        "final_lr": 1.0,
        "bf16": True,
        "learner_tokens": 1024,
        "sampler_rows": 128,
    },
    # 7 billion parameters in 80 GB: 15 GB of bf16 weights, 52 GB for 4,096 tokens.
    "lora-7b": {
        "lora_rank": 16,
        "problems": 32,
        "completions": 8,
        "minibatches": 2,
        "max_new_tokens": 4096,
        "optimizer": "adamw",
        "learning_rate": 1e-6,
        "final_lr": 1.0,
        "bf16": True,
        "learner_tokens": 4096,
        "sampler_rows": 128,
    },
}


def resolve(cfg: GRPOConfig) -> GRPOConfig:
    """The configuration with its automatic values filled in, and checked. Raises ValueError."""
    validate(cfg)
    usable = tasks.usable(cfg.tasks, judged=not cfg.data)
    units = cfg.problems * (cfg.completions if cfg.minibatch_of == "completions" else 1)
    minibatches = cfg.minibatches or (1 if cfg.objective == "reinforce" else min(8, units))
    scale = cfg.scale
    if scale == "auto":
        scale = "none" if cfg.baseline == "none" else "group"
    cfg = dataclasses.replace(cfg, tasks=usable, minibatches=minibatches, scale=scale)
    check_combinations(cfg, units)
    return cfg


def check_combinations(cfg: GRPOConfig, units: int) -> None:
    """Checks that involve several flags. Raises ValueError."""
    terms = check_terms(cfg.reward, cfg.score_thinking)
    if all(term.start for term in terms):
        raise ValueError(f"--reward {cfg.reward}: no reward counts from the start of the run")
    if cfg.baseline == "none":
        if cfg.scale != "none":
            raise ValueError(
                f"--baseline none --scale {cfg.scale}: without a baseline, equal rewards have no "
                "deviation to divide by; use --scale none"
            )
        if cfg.resample:
            raise ValueError(
                "--baseline none --resample: without a baseline, a group of equal rewards teaches "
                "something"
            )
    elif cfg.completions < 2:
        raise ValueError(
            f"--completions {cfg.completions}: must be at least 2 with --baseline {cfg.baseline}"
        )
    if cfg.minibatches > units:
        raise ValueError(
            f"--minibatches {cfg.minibatches}: must be at most {units}, the {cfg.minibatch_of} of "
            "a step (--problems, --completions)"
        )
    if 0 < cfg.delta <= 1 + cfg.clip_high:
        raise ValueError(
            f"--delta {cfg.delta}: must be 0 or above 1 + --clip-high, which is {1 + cfg.clip_high}"
        )
    if cfg.objective == "reinforce" and cfg.minibatches > 1:
        raise ValueError(
            f"--objective reinforce --minibatches {cfg.minibatches}: without a ratio only the "
            "first update of a step is unbiased; use --minibatches 1"
        )
    if cfg.loss_per == "microbatch" and not cfg.learner_tokens:
        raise ValueError(
            "--loss-per microbatch --learner-tokens 0: the gradient depends on the "
            "micro-batches; give a number of tokens"
        )
    if cfg.sample_budget >= cfg.steps * cfg.problems * cfg.completions * (cfg.resample + 1):
        raise ValueError(
            f"--sample-budget {cfg.sample_budget}: has no effect with --steps {cfg.steps}, which "
            "ends the run earlier"
        )


def fraction_done(cfg: GRPOConfig, step: int, spent: int) -> float:
    """The fraction of the run that is done after this step, in steps or in completions spent."""
    by_steps = (step + 1) / cfg.steps
    by_budget = min(1.0, spent / cfg.sample_budget) if cfg.sample_budget else 0.0
    return max(by_steps, by_budget)
