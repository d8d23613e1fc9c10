"""GRPO, as the paper's algorithm: R1-Zero, reasoning RL, RL for all scenarios. [R1 §2.2] [R1 §2.3.2] [R1 §2.3.4]

Each step samples G completions of N problems, scores them by rules, compares each with its group, and steps the
policy. Everything random is a function of (seed, step, row), so an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from r1mini import checkpoint, diagnose, distributed, grpo, memory, optim, rewards, score, state, tasks, template
from r1mini.ahead import Ahead, InTurn
from r1mini.batch import by_prompt, collate, targets, token_logprobs, token_logprobs_and_entropy
from r1mini.config import autocast, option, refuse_moot, require, run
from r1mini.config import device as pick_device
from r1mini.data import fingerprint
from r1mini.model import ModelConfig, Transformer
from r1mini.problems import pick, read_problems
from r1mini.records import Group, Problem, Rollout
from r1mini.rollout import Sampling, encode, rehearse, sample

LOGS = ("metrics.jsonl", "rollouts.jsonl")


@dataclass(frozen=True)
class Config:
    out: str = option("runs/grpo", "folder for the trained model, metrics and rollouts")
    model: str = option("base", "model folder or embedded model to start from")
    tasks: tuple[str, ...] = option(tasks.REASONING, "tasks, taken in turn; a name given twice is taken twice as often")
    data: str = option("", "file of problems instead: JSONL, JSON, either with .gz, CSV or Parquet, of a known layout")
    prompt_key: str = option("", "column of the data's prompts, where it is none of a known layout")
    answer_key: str = option("", "column of its answers")
    instruction: str = option("", "text that is added to each of its prompts")
    template: str = option("auto", "how its prompts become the model's text: chat (the template in the model folder), r1-zero, "
                                   "plain; auto: chat if there is one, else plain, and prompts that are text stay as they are")
    skip_bad: bool = option(False, "leave out and count what is wrong in the data, instead of stopping at its line")
    decontaminate: tuple[str, ...] = option((), "evaluation files; data sharing ten words in a row with them is left out")
    # DEVIATES: R1 adds its rewards unweighted; here format counts half, being met most of the time, and language twice.
    reward: str = option("accuracy,format:0.5,language:2", "rewards with their weights, summed; also file.py:function[:weight]")
    steps: int = option(60, "sampling steps")
    sample_budget: int = option(0, "completions, refills included, after which the run ends before its last step (0: none)")
    problems: int = option(32, "problems per sampling step (N); R1: 512, 32 to an update")
    completions: int = option(8, "completions per problem (G); R1: 16")
    minibatches: int = option(8, "optimizer steps per sampling step; R1: 16")
    minibatch_of: str = option("completions", "what minibatches are drawn from: completions (R1), or problems, whose prompts are "
                                              "then computed once for all their completions")
    max_new_tokens: int = option(400, "length limit of a completion")
    temperature: float = option(1.0, "of sampling and of learning alike; R1: 1, and 0.7 for all scenarios")
    # The objective: each choice is a keyword of r1mini/grpo.py.
    baseline: str = option("group", "compared with: group's mean (GRPO), leave-one-out (RLOO, with --scale none), none")
    scale: str = option("group", "unit of advantages: deviation of the group (GRPO), batch (Lite PPO) or none (Dr. GRPO)")
    # DEVIATES: the loss is averaged per token and the upper clip is wider, as in DAPO; the KL term is off.
    loss_per: str = option("token", "sequence (DeepSeekMath Eq. 3), token (DAPO), constant (Dr. GRPO), microbatch (bnpo)")
    objective: str = option("clip", "clip (PPO, GRPO), cispo, sapo or reinforce")
    ratio: str = option("token", "ratio of each token, or of the sequence (GSPO)")
    clip_low: float = option(0.2, "lower clip of the ratio")
    clip_high: float = option(0.28, "upper clip of the ratio; R1: 10")
    delta: float = option(0.0, "bound of the ratio for negative advantages, over 1 + clip-high (0: none)")
    soft_up: float = option(1.0, "sapo: temperature of the gate for positive advantages")
    soft_down: float = option(1.05, "sapo: temperature of the gate for negative advantages")
    beta: float = option(0.0, "KL coefficient; R1: 0.001. 0 needs no reference model")
    kl: str = option("k3", "estimate of the KL: k1, k2, k3 (R1) or k3-weighted (by the ratio)")
    reference_every: int = option(25, "sampling steps to a new reference (0: never); R1: 25, which are 400 updates")
    reference_mix: float = option(1.0, "share of the policy in the new reference")
    entropy_bonus: float = option(0.0, "coefficient of the mean entropy in the objective")
    top_entropy: float = option(1.0, "learn from this share of the tokens, those of the highest entropy")
    off_policy_limit: float = option(0.0, "leave out bad completions this much less likely per token (0: off)")
    correction: str = option("none", "weigh by learner over sampler: none, token-truncate, token-mask or sequence-…")
    correction_cap: float = option(3.0, "largest weight of the correction")
    # The sampling side.
    resample: int = option(0, "times that groups with equal rewards are replaced by new problems in a step (DAPO)")
    overlong: str = option("keep", "completions cut at the limit: keep, or mask (they teach nothing)")
    overlong_cache: int = option(0, "tokens before the limit over which the reward falls by up to 1 (DAPO Eq. 13; 0: off)")
    # DEVIATES: Muon, where R1 uses AdamW.
    optimizer: str = option("muon", "muon (matrices; AdamW for the rest) or adamw")
    optimizer_on: str = option("device", "where its moments are between steps: device, or cpu (slower, the same bits)")
    learning_rate: float = option(4e-4, "peak learning rate; R1, by AdamW at 671B: 3e-6")
    rest_lr: float = option(1.0, "under muon, the rate of embeddings, head and norms (AdamW) as a share")
    warmup: float = option(0.05, "share of the run to warm up over")
    final_lr: float = option(0.1, "last learning rate as a share of the peak; R1: 1 (constant)")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    learner_tokens: int = option(4096, "tokens per micro-batch; changes memory, never the gradient (0: as many as fit; "
                                      "the last bits then depend on the machine)")
    sampler_rows: int = option(256, "completions sampled side by side; changes memory, never a completion")
    ahead: bool = option(False, "asynchronous, one step off-policy: sample a step while the updates of the one before are made, from "
                                "the weights that these start from; with a --correction, threads for each of both")
    seed: int = option(0, "seed of problems and sampling")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    deterministic: bool = option(False, "on CUDA, kernels that give the same bits each time; slower (a CPU's always do)")
    progress: bool = option(True, "show progress bars")
    bf16: bool = option(False, "compute in bfloat16 over fp32 weights, sampler and learner alike")
    gradient_checkpointing: bool = option(False, "compute each layer again in the backward pass: less memory, a third more time")
    compile: bool = option(False, "torch.compile the learner (CPU: needs a C++ compiler)")
    save_every: int = option(20, "steps between saved states; an interrupted run goes on from the last (0: only signals save)")
    keep: int = option(2, "saved states that are kept: where the last is damaged, the one before it is gone on from")
    allow_changes: bool = option(False, "go on with other flags or data than the run in --out had, as with fewer tokens at a time "
                                        "after it ran out of memory; each change is told")
    show: int = option(1, "completions printed every 10 steps")


# R1's numbers (Nature, Methods): a sampling step draws 8,192 outputs, 16 to a question, and learns from them in 16 updates
# of 512. What the paper counts in updates is a 16th here. It names no clip for R1-Zero: R1's is taken; no number of steps
# for R1's first RL (its second: --steps 106 --temperature 0.7); neither Adam's betas nor a clip of gradients. Left out:
# R1-Zero's length limit is doubled after 8,200 updates.
PAPER = {"problems": 512, "completions": 16, "minibatches": 16, "max_new_tokens": 32_768, "loss_per": "sequence",
         "clip_low": 1.0, "clip_high": 10.0, "beta": 0.001, "optimizer": "adamw",
         "learning_rate": 3e-6, "warmup": 0.0, "final_lr": 1.0}
PRESETS = {
    "r1-zero-paper": {**PAPER, "steps": 650, "reward": "accuracy,format"},
    "r1-paper": {**PAPER, "reward": "accuracy,format,language"},
    # One paper's objective each; sizes and learning rate stay as they are.
    "grpo": {"loss_per": "sequence", "clip_high": 0.2, "beta": 0.04},  # DeepSeekMath §4.2
    "dapo": {"loss_per": "token", "clip_high": 0.28, "resample": 3, "overlong_cache": 50},
    "dr-grpo": {"loss_per": "constant", "scale": "none", "clip_high": 0.2},
    "gspo": {"loss_per": "sequence", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},  # GSPO §5.1
    "cispo": {"loss_per": "token", "objective": "cispo", "clip_high": 4.0},  # ScaleRL: ratios up to 5
    # A model of 0.5 billion parameters in 24 GB: 8 GB of weights, gradients and Adam, 4 GB for the passes over 1024 tokens.
    "small-gpu": {"problems": 16, "completions": 8, "minibatches": 2, "max_new_tokens": 1024, "optimizer": "adamw",
                  "learning_rate": 1e-6, "final_lr": 1.0, "bf16": True, "learner_tokens": 1024, "sampler_rows": 128},
}


def problems_of_step(cfg: Config, data: Sequence[Problem], step: int, attempt: int = 0) -> list[Problem]:
    """Of the file's problems, or made by the tasks. A function of (seed, step, attempt): no problem is replayed or skipped
    by a resume."""
    seed = f"{cfg.seed} attempt {attempt}" if attempt else cfg.seed
    indices = range(step * cfg.problems, (step + 1) * cfg.problems)
    if data:
        return [pick(data, seed, index) for index in indices]
    return [tasks.problem(cfg.tasks[index % len(cfg.tasks)], seed, index, "train") for index in indices]


def main(cfg: Config) -> dict:
    out, weighting = Path(cfg.out), score.weights(cfg.reward)
    check(cfg)
    settings = asdict(cfg) | fingerprint(cfg.data)
    if state.has_finished(out, settings):
        print(f"{out}: this run has finished already; nothing to do")
        return checkpoint.read_record(out / "run.json")
    functions = score.functions(cfg.reward)
    if cfg.overlong_cache:
        weighting["overlong"] = 1.0
        functions["overlong"] = partial(rewards.soft_overlong_punishment, soft_punish_cache=cfg.overlong_cache)
    device = pick_device(cfg.device, cfg.threads, cfg.deterministic)
    free = memory.available(device)
    policy, tokens = checkpoint.load(cfg.model, device, fits=partial(fits, cfg, device))
    context = policy.config.max_position_embeddings
    if not cfg.learner_tokens:
        cfg = replace(cfg, learner_tokens=memory.most_tokens(
            lambda n: needs(replace(cfg, learner_tokens=n), device, policy.config), free, device))
        print(f"--learner-tokens {cfg.learner_tokens} fit")

    form = template.load(cfg.model, cfg.template)
    tokens = form.fit(tokens)
    room = lambda problem: encode(policy, tokens, [problem.prompt])
    data = read_problems(cfg.data, form, room, prompt_key=cfg.prompt_key, answer_key=cfg.answer_key,
                         instruction=cfg.instruction, skip_bad=cfg.skip_bad, decontaminate=cfg.decontaminate) if cfg.data else []
    reference = distributed.shard(copy.deepcopy(policy).requires_grad_(False)) if cfg.beta else None
    snapshot = copy.deepcopy(policy).requires_grad_(False) if cfg.ahead else None
    policy.gradient_checkpointing = cfg.gradient_checkpointing
    if cfg.compile:
        policy.compile_layers()
    policy = distributed.shard(policy)
    steppers = optim.optimizers(policy, cfg.optimizer, cfg.learning_rate, cfg.weight_decay, cfg.rest_lr, cfg.optimizer_on)
    memory.rehearse(partial(worst, cfg, policy, reference, tokens, data, device), needs(cfg, device, policy.config), free, device)
    distributed.agree("what --data holds", settings.get("data_sha256"))
    state.start_run(out, settings)
    besides = {name: model for name, model in {"reference": reference, "snapshot": snapshot}.items() if model is not None}
    resumed = state.resume(out, settings, policy, steppers, LOGS, besides)
    started = time.perf_counter() - resumed["seconds"]
    rows, skipped = checkpoint.read_metrics(out / "metrics.jsonl", *diagnose.NEEDED), optim.Skipped()
    spent = resumed.get("spent", 0)
    draw = lambda model, step, spent: collect(cfg, data, distributed.whole(model), tokens, functions, weighting, step, spent, device)
    source = Ahead(draw, policy, snapshot) if snapshot is not None else InTurn(draw, policy)
    keeper = state.Keeper(out, settings, resumed["step"], LOGS, lambda: (
        {"seconds": time.perf_counter() - started, "spent": spent}, state.files(policy, tokens, steppers, besides)))

    metrics_log, rollouts_log = (distributed.log(out / name) for name in LOGS)
    with metrics_log, rollouts_log, keeper:
        for step in range(resumed["step"], cfg.steps):
            begun = time.perf_counter()
            # 1. Sample a group of completions of each problem from the policy; 2. score them by rules.
            (groups, drawn), sampling = source.take(step, spent)
            rewards_NG = torch.tensor([group.rewards for group in groups])
            flat = [r for group in groups for r in group.rollouts]
            if step == 0:
                print(diagnose.first_look(groups[0], weighting), flush=True)
                if cfg.max_new_tokens > context:
                    print(f"--- --max-new-tokens {cfg.max_new_tokens}: the model's context of {context} tokens is the limit")

            # 3. Advantages: each completion against its group. [R1 Eq. 3]
            adv_NG = grpo.group_advantages(rewards_NG, baseline=cfg.baseline, scale=cfg.scale)
            keeper.hold()  # from here on, what a state has changes
            spent += len(drawn) * cfg.completions

            # 4. Renew the reference every so many steps (R1: 25, or 400 updates). [R1 §2.2.1]
            if reference is not None and cfg.reference_every and step and step % cfg.reference_every == 0:
                for mine, theirs in zip(reference.parameters(), policy.parameters()):
                    mine.lerp_(theirs.detach(), cfg.reference_mix)

            # 5. Update the policy, one minibatch of rollouts after another. [R1 Eq. 1]
            progress = max((step + 1) / cfg.steps, min(1.0, spent / cfg.sample_budget) if cfg.sample_budget else 0.0)
            rate = optim.learning_rate_at(progress, cfg.learning_rate, cfg.warmup, cfg.final_lr)
            before = diagnose.rounded(policy) if cfg.bf16 else None
            updates = learn(cfg, policy, reference, steppers, rate, flat, adv_NG.flatten(), step, skipped, device)
            learned, updating = source.beside(updates, step + 1 if progress < 1 else None, spent)

            rows.append({"step": step, **diagnose.sampling_metrics(drawn),
                         **diagnose.learning_metrics(learned, rate, time.perf_counter() - begun, sampling, updating),
                         "num_tokens": (rows[-1]["num_tokens"] if rows else 0) + sum(
                             len(r.prompt_ids) + len(r.completion_ids) for group in drawn for r in group.rollouts),
                         "seconds": round(time.perf_counter() - started, 3)})
            if cfg.bf16 and "loss" in rows[-1]:
                rows[-1]["weights/moved_in_bf16"] = diagnose.moved(before, diagnose.rounded(policy))
            metrics_log.write(json.dumps(rows[-1]) + "\n")
            metrics_log.flush()
            write_rollouts(rollouts_log, step, groups, adv_NG)
            report(cfg, rows, groups)
            if step % 5 == 4 or progress == 1:
                for sentence in diagnose.causes(rows, cfg, weighting, context):
                    print(f"{out.name}: {sentence}", flush=True)
            if progress == 1:
                break
            keeper.done(step + 1)

    checkpoint.save(out, distributed.whole(policy), tokens)
    summary = {"steps": len(rows), "seconds": round(time.perf_counter() - started, 1)}
    state.finish_run(out, **summary)
    print(f"{out}: {summary['steps']} steps, {summary['seconds']:.0f} s; now: python sample.py --model {out}")
    return summary


def fits(cfg: Config, device: torch.device, shape: ModelConfig) -> None:
    """Refuses a run that would end for want of memory when all completions go to their limit."""
    memory.require(needs(cfg, device, shape), device, cfg)


def needs(cfg: Config, device: torch.device, shape: ModelConfig) -> dict[str, int]:
    """Bytes by what they are for, when all completions go to their limit."""
    ranks = distributed.ranks()
    longest = min(cfg.max_new_tokens, shape.max_position_embeddings)
    parts = memory.training(shape, max(cfg.learner_tokens, longest), optimizer=cfg.optimizer, optimizer_on=cfg.optimizer_on,
                            reference=bool(cfg.beta), gradient_checkpointing=cfg.gradient_checkpointing, ranks=ranks)
    rows = min(cfg.sampler_rows, -(-cfg.problems // ranks) * cfg.completions)
    sampler = memory.sampling(shape, rows, longest, 2 if device.type == "cuda" and cfg.bf16 else 4)
    if cfg.ahead:  # they work side by side
        parts |= {"sampler": sampler, "snapshot": parts["gradients"]}
    elif sampler > parts["learner"]:  # they take turns
        del parts["learner"]
        parts["sampler"] = sampler
    return parts


def worst(cfg: Config, policy: Transformer, reference: Transformer | None, tokens, data: Sequence[Problem],
          device: torch.device) -> None:
    """Samples and learns as a step whose prompts are all the longest one (of the file, or of the tasks' first step), and
    whose completions all go to their limit: one token of each, then one micro-batch, and no optimizer."""
    ids = max(encode(policy, tokens, [problem.prompt for problem in data or problems_of_step(cfg, data, 0)]), key=len)
    problems, how = -(-cfg.problems // distributed.ranks()), Sampling(cfg.max_new_tokens, cfg.temperature)
    with autocast(device, cfg.bf16):
        sampler = rehearse(distributed.whole(policy), tokens, [ids] * problems, cfg.completions, how, cfg.sampler_rows)
    if not cfg.ahead:  # else both work at the same time
        del sampler
    limit = min(cfg.max_new_tokens, policy.config.max_position_embeddings - len(ids))
    size = len(split(cfg, cfg.problems, "")[0])
    group = cfg.completions if cfg.minibatch_of == "problems" else max(1, size // cfg.problems)  # as many share a prompt
    rows = memory.longest_rows(cfg.learner_tokens, size, len(ids), limit, group)
    rollouts = [Rollout(tuple(given), tuple(made), (0.0,) * len(made), "", True) for given, made in rows]
    before = diagnose.rounded(policy) if cfg.bf16 else None  # noqa: F841  as in a step, it is there meanwhile
    gradient(cfg, policy, reference, rollouts, start(cfg, policy, rollouts, device), torch.ones(len(rows)), device)
    policy.zero_grad()


def split(cfg: Config, groups: int, seed: str) -> list[list[int]]:
    """The numbers of a step's completions, in random minibatches of completions or of whole groups.

    >>> split(Config(completions=2, minibatches=2, minibatch_of="problems"), 3, "seed")
    [[0, 1, 2, 3], [4, 5]]
    """
    size = cfg.completions if cfg.minibatch_of == "problems" else 1
    units = groups * cfg.completions // size
    order = Random(seed).sample(range(units), units)
    return [[unit * size + i for unit in order[k :: cfg.minibatches] for i in range(size)] for k in range(cfg.minibatches)]


def collect(cfg: Config, data: Sequence[Problem], policy: Transformer, tokens, functions: Mapping[str, rewards.Reward],
            weighting: Mapping[str, float], step: int, spent: int, device: torch.device) -> tuple[list[Group], list[Group]]:
    """(the groups to learn from, every group drawn for them). A group whose rewards are all equal is replaced by one of
    another problem of its task, `resample` times at most [DAPO §3.2], and not past the budget of completions, of which
    `spent` are gone."""
    how = Sampling(cfg.max_new_tokens, cfg.temperature)
    groups: dict[int, Group] = {}
    drawn: list[Group] = []
    slots = list(range(cfg.problems))
    for attempt in range(cfg.resample + 1):
        fresh = problems_of_step(cfg, data, step, attempt)
        part = distributed.part(len(slots))
        problems = [fresh[n] for n in slots[part]]
        scoring = []  # of the problems that are sampled already, beside the sampling of the others
        with score.pool() as pool, autocast(device, cfg.bf16):
            sampled = sample(policy, tokens, [p.prompt for p in problems], cfg.completions, how, seed=cfg.seed,
                             step=step + attempt * 2**24, first=part.start, max_rows=cfg.sampler_rows,
                             progress=f"step {step} sampling" if cfg.progress else None,
                             ready=lambda i, rollouts: scoring.append(judge(
                                 cfg, problems[i], rollouts, functions, pool, policy.config.max_position_embeddings)))
            scored = [finish() for finish in scoring]
        for n, (rollouts, scores) in zip(slots, distributed.gather(list(zip(sampled, scored)))):
            group = Group(problem := fresh[n], rollouts, scores, score.totals(problem, scores, weighting))
            drawn.append(group)
            if attempt == 0 or not group.flat:
                groups[n] = group
        slots = [n for n, group in groups.items() if group.flat]
        if cfg.sample_budget:
            slots = slots[: max(0, cfg.sample_budget - spent - len(drawn) * cfg.completions) // cfg.completions]
        if not slots:
            break
    return list(groups.values()), drawn


def judge(cfg: Config, problem: Problem, rollouts: Sequence[Rollout], functions: Mapping[str, rewards.Reward], pool,
          context: int) -> Callable[[], score.Scores]:
    """Begins with every reward of a problem's completions; the result waits for them."""
    longest = min(cfg.max_new_tokens, context - len(rollouts[0].prompt_ids))
    return score.begin(problem, rollouts, functions, pool, max_completion_len=longest)


def start(cfg: Config, policy: Transformer, rollouts: Sequence[Rollout], device: torch.device
          ) -> list[tuple[Sequence[float], Sequence[float]]]:
    """(log-probabilities, entropies) of each rollout's tokens under the policy that the step's updates start from. The
    sampler's own serve, unless its gap to the learner is to be corrected or entropies are asked for."""
    if cfg.correction == "none" and cfg.top_entropy == 1:
        return [(r.logprobs, [0.0] * len(r.logprobs)) for r in rollouts]
    found = {}
    rows = [(r.prompt_ids, r.completion_ids) for r in rollouts]
    for part, _ in distributed.share(by_prompt(rows, cfg.learner_tokens)):
        batch = collate([rows[b] for b in part]).to(device)
        with torch.no_grad(), autocast(device, cfg.bf16):
            logp_BT, entropy_BT = distributed.through(token_logprobs_and_entropy, policy, batch, cfg.temperature)
        for b, logp_T, entropy_T, target_T in zip(part, logp_BT, entropy_BT, batch.target_BT):
            found[b] = (logp_T[target_T].tolist(), entropy_T[target_T].tolist())
    found = dict(distributed.gather(list(found.items())))
    return [found[b] for b in range(len(rollouts))]


def learn(cfg: Config, policy: Transformer, reference: Transformer | None, steppers: Sequence[torch.optim.Optimizer], rate: float,
          rollouts: Sequence[Rollout], adv_B: Tensor, step: int, skipped: optim.Skipped, device: torch.device
          ) -> Iterator[dict[str, Any]]:
    """A step's updates, one after another: what each of them did."""
    old = start(cfg, policy, rollouts, device)
    for chosen in split(cfg, len(rollouts) // cfg.completions, f"{cfg.seed} {step}"):
        found = update(cfg, policy, reference, steppers, rate, [rollouts[i] for i in chosen], [old[i] for i in chosen],
                       adv_B[chosen], device)
        bad = [chosen[b] for b in found.get("bad", range(len(chosen)))]
        skipped(found.get("grad_norm"), f"{Path(cfg.out).name}: step {step}", lambda bad=bad: (
            "problem {} sample {}".format(*divmod(i, cfg.completions)) for i in bad))
        yield found


def update(cfg: Config, policy: Transformer, reference: Transformer | None,
           steppers: Sequence[torch.optim.Optimizer], rate: float, rollouts: Sequence[Rollout],
           old: Sequence[tuple[Sequence[float], Sequence[float]]], adv_B: Tensor, device: torch.device
           ) -> dict[str, Any]:
    """One optimizer step on a minibatch; none without advantages, nor where loss or gradient is not finite."""
    found = memory.in_halves(lambda tokens: gradient(replace(cfg, learner_tokens=tokens), policy, reference, rollouts, old, adv_B,
                                                     device),
                             cfg.learner_tokens, policy, cfg, exact=cfg.loss_per != "microbatch")
    if not found["tokens"]:
        return found
    return {**found, "grad_norm": optim.step(steppers, policy.parameters(), rate, cfg.max_grad_norm, found["loss"])}


def gradient(cfg: Config, policy: Transformer, reference: Transformer | None, rollouts: Sequence[Rollout],
             old: Sequence[tuple[Sequence[float], Sequence[float]]], adv_B: Tensor, device: torch.device) -> dict[str, Any]:
    """Adds a minibatch's gradient, in micro-batches of at most `learner_tokens`, and returns its figures; `bad`, the rows to
    blame if the loss is not finite. Weights are computed over the whole minibatch first, so the cut does not change the
    gradient. Rows that cannot contribute cost no pass."""
    rows = [(r.prompt_ids, r.completion_ids) for r in rollouts]
    target_BT, adv_B = targets(rows), adv_B.cpu()
    sampler_BT, old_BT, entropy_BT = (on_targets(rows, target_BT) for rows in (
        [r.logprobs for r in rollouts], [logps for logps, _ in old], [entropies for _, entropies in old]))
    kept_B = torch.tensor([r.finished or cfg.overlong == "keep" for r in rollouts])
    mask_BT = target_BT & kept_B[:, None]

    everyone = cfg.beta or cfg.entropy_bonus or cfg.loss_per == "microbatch"
    live = [b for b in range(len(rollouts)) if kept_B[b] and (everyone or adv_B[b] != 0)]
    sums: dict[str, Any] = {"loss": 0.0, "gap": 0.0, "tokens": 0}
    if not live:
        return sums
    parts = [[live[i] for i in part] for part in by_prompt([rows[b] for b in live], cfg.learner_tokens)]
    part_B = torch.zeros(len(rollouts), dtype=torch.long)
    for number, part in enumerate(parts):
        part_B[part] = number
    # A row that is left out keeps its share of the weight: the others do not count for more. (Not so in bnpo, as in TRL.)
    weight_BT = grpo.token_weights(mask_BT if cfg.loss_per == "microbatch" else target_BT, cfg.loss_per,
                                   longest=min(cfg.max_new_tokens, policy.config.max_position_embeddings),
                                   part_B=part_B) * kept_B[:, None]
    bonus_BT = cfg.entropy_bonus * grpo.token_weights(target_BT, "token") * kept_B[:, None]
    correction_BT = grpo.sampler_correction(old_BT, sampler_BT, mask_BT, cfg.correction, cap=cfg.correction_cap)
    factor_BT = grpo.top_entropy(entropy_BT, mask_BT, cfg.top_entropy) * correction_BT

    told, bad = [], []
    for part, counted in distributed.share(parts):
        batch = collate([rows[b] for b in part]).to(device)
        cut = lambda x_BT: x_BT[part, : batch.tokens_BT.shape[1]].to(device, non_blocking=True)
        with autocast(device, cfg.bf16):
            if cfg.entropy_bonus:
                logp_BT, entropy_now_BT = distributed.through(token_logprobs_and_entropy, policy, batch, cfg.temperature)
            else:
                logp_BT = distributed.through(token_logprobs, policy, batch, cfg.temperature)
            ref_logp_BT = None
            if reference is not None:
                with torch.no_grad():
                    ref_logp_BT = distributed.through(token_logprobs, reference, batch, cfg.temperature)
        adv_b = adv_B[part].to(device, non_blocking=True)
        on_policy_B1 = grpo.on_policy_rows(logp_BT, cut(sampler_BT), adv_b, cut(mask_BT), cfg.off_policy_limit or math.inf)
        loss, metrics = grpo.policy_loss(
            logp_BT, cut(old_BT), adv_b, cut(weight_BT), objective=cfg.objective, ratio=cfg.ratio,
            clip_low=cfg.clip_low, clip_high=cfg.clip_high, delta=cfg.delta or math.inf, soft_up=cfg.soft_up,
            soft_down=cfg.soft_down, factor_BT=cut(factor_BT) * on_policy_B1, ref_logp_BT=ref_logp_BT, beta=cfg.beta,
            kl=cfg.kl)
        if cfg.entropy_bonus:
            loss = loss - (cut(bonus_BT) * entropy_now_BT).sum()
        loss = counted * loss
        loss.backward()
        gap_BT = (logp_BT.detach() - cut(sampler_BT)).abs()
        metrics |= {"loss": loss.detach(), "tokens": batch.target_BT.sum(), "gap_mean": gap_BT.sum()}
        told.append((counted, metrics, gap_BT.max(), part, logp_BT.detach().isfinite().all(-1)))
    # Read only now: sooner, a GPU would have nothing to do until the next micro-batch is there.
    for counted, metrics, gap, part, finite_B in told:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + counted * float(value)
        sums["gap"] = max(sums["gap"], float(gap))
        sums["loss"] += 0.0 * float(gap)  # clamps can hide what is no number
        bad += [b for b, finite in zip(part, finite_B.tolist()) if not finite]
    sums = distributed.summed(sums, largest=["gap"])
    for name in metrics.keys() - {"loss", "tokens"}:
        sums[name] /= sums["tokens"]
    if cfg.correction != "none":
        sums["sampling/importance_sampling_ratio/mean"] = float(correction_BT[mask_BT].mean())
    return sums if math.isfinite(sums["loss"]) else {**sums, "bad": sorted({*distributed.gather(bad)}) or live}


def on_targets(rows: Sequence[Sequence[float]], target_BT: Tensor) -> Tensor:
    """Values of the target tokens, row after row, as a `_BT` tensor with zeros elsewhere."""
    values = torch.tensor([value for row in rows for value in row])
    return torch.zeros(target_BT.shape).masked_scatter(target_BT, values)


def check(cfg: Config) -> None:
    for field in dataclasses.fields(cfg):
        if isinstance(value := getattr(cfg, field.name), float):
            require(cfg, **{field.name: math.isfinite(value)})
    if cfg.clip_low > 1:
        raise ValueError(f"--clip-low {cfg.clip_low}: at most 1, which is no clip at all: a ratio is never below 0")
    require(cfg, steps=cfg.steps >= 1, sample_budget=cfg.sample_budget >= 0, problems=cfg.problems >= 1,
            completions=cfg.completions >= (1 if cfg.baseline == "none" else 2),
            minibatches=1 <= cfg.minibatches <= cfg.problems * (cfg.completions if cfg.minibatch_of == "completions" else 1),
            temperature=cfg.temperature > 0,
            clip_low=cfg.clip_low >= 0, clip_high=cfg.clip_high >= 0,
            delta=cfg.delta == 0 or cfg.delta > 1 + cfg.clip_high, soft_up=cfg.soft_up > 0, soft_down=cfg.soft_down > 0,
            beta=cfg.beta >= 0, reference_every=cfg.reference_every >= 0, reference_mix=0 < cfg.reference_mix <= 1,
            top_entropy=0 < cfg.top_entropy <= 1, off_policy_limit=cfg.off_policy_limit >= 0,
            correction_cap=cfg.correction_cap > 0, resample=0 <= cfg.resample < 256,
            entropy_bonus=cfg.entropy_bonus >= 0, max_new_tokens=cfg.max_new_tokens >= 1,
            overlong_cache=0 <= cfg.overlong_cache < cfg.max_new_tokens, learning_rate=cfg.learning_rate >= 0,
            rest_lr=cfg.rest_lr >= 0, warmup=0 <= cfg.warmup < 1, final_lr=cfg.final_lr >= 0,
            weight_decay=cfg.weight_decay >= 0, max_grad_norm=cfg.max_grad_norm > 0,
            learner_tokens=cfg.learner_tokens >= 0, sampler_rows=cfg.sampler_rows >= 1, save_every=cfg.save_every >= 0,
            keep=cfg.keep >= 1)
    for flag, known in (("loss-per", grpo.WEIGHTS), ("objective", grpo.OBJECTIVES), ("ratio", grpo.RATIOS),
                        ("kl", grpo.ESTIMATES), ("correction", grpo.CORRECTIONS), ("overlong", ("keep", "mask")),
                        ("minibatch-of", ("completions", "problems"))):
        grpo.one_of(flag, getattr(cfg, flag.replace("-", "_")), known)
    grpo.group_advantages(torch.zeros(1, 2), baseline=cfg.baseline, scale=cfg.scale)  # refuses what does not go together
    tasks.require(cfg.tasks)
    refuse_moot(cfg, moot(cfg))
    if cfg.loss_per == "microbatch" and not cfg.learner_tokens:
        raise ValueError("--loss-per microbatch --learner-tokens 0: the gradient depends on the cut; give a number")
    if cfg.ahead and cfg.correction == "none":
        raise ValueError("--ahead --correction none: the rollouts are of weights a step older than the learner's; add "
                         "--correction token-truncate, or another")
    if cfg.ahead and distributed.ranks() > 1:
        raise ValueError(f"--ahead: not on {distributed.ranks()} ranks")
    if cfg.baseline == "none" and cfg.resample:
        raise ValueError("--baseline none --resample: without a baseline a group of equal rewards teaches something too")
    if cfg.objective == "reinforce" and cfg.minibatches > 1:
        raise ValueError(f"--objective reinforce --minibatches {cfg.minibatches}: without a ratio only the first update of "
                         "a step is right; use --minibatches 1")


def moot(cfg: Config) -> dict[str, str]:
    """Flags that have no effect beside the others, and why. Typed, they are refused; a preset's are dropped."""
    needs = {
        "ratio": (cfg.objective != "reinforce", "reinforce has no ratio"),
        "delta": (cfg.objective == "clip", f"--objective {cfg.objective} has no such bound"),
        "clip_low": (cfg.objective == "clip", f"--objective {cfg.objective} does not clip from below"),
        "clip_high": (cfg.objective in ("clip", "cispo"), f"--objective {cfg.objective} does not clip"),
        "soft_up": (cfg.objective == "sapo", f"--objective {cfg.objective} has no gate"),
        "soft_down": (cfg.objective == "sapo", f"--objective {cfg.objective} has no gate"),
        "tasks": (not cfg.data, "the problems are those of --data"),
        **dict.fromkeys(("prompt_key", "answer_key", "instruction", "template", "skip_bad", "decontaminate"),
                        (cfg.data, "there is no --data")),
        "kl": (cfg.beta, "--beta 0 computes no KL"),
        "reference_every": (cfg.beta, "--beta 0 has no reference"),
        "reference_mix": (cfg.beta and 0 < cfg.reference_every < cfg.steps, "the reference is never renewed"),
        "correction_cap": (cfg.correction != "none", "--correction none has no weight to cap"),
        "optimizer_on": (cfg.device != "cpu", "--device cpu is where they are"),
        "deterministic": (cfg.device != "cpu", "--device cpu gives the same bits anyway"),
        "ahead": (cfg.steps > 1, "--steps 1 has no next step to sample"),
        "rest_lr": (cfg.optimizer == "muon", f"--optimizer {cfg.optimizer} has one rate for all"),
        "sample_budget": (cfg.sample_budget < cfg.steps * cfg.problems * cfg.completions * (cfg.resample + 1),
                          "--steps ends the run before"),
    }
    if cfg.minibatches == 1:
        needs |= dict.fromkeys(("ratio", "delta", "clip_low", "clip_high", "soft_up", "soft_down"),
                               (False, "with --minibatches 1 every ratio is 1"))
        needs["minibatch_of"] = (False, "--minibatches 1 takes all")
    return {name: why for name, (met, why) in needs.items() if not met}


def write_rollouts(log, step: int, groups: Sequence[Group], adv_NG: Tensor) -> None:
    for n, group in enumerate(groups):
        for g, (rollout, scores, reward) in enumerate(zip(group.rollouts, group.scores, group.rewards)):
            prompt, completion = group.problem.split(rollout)
            log.write(json.dumps({
                "step": step, "problem": n, "sample": g, "task": group.problem.task, "prompt": prompt,
                "completion": completion, "tokens": len(rollout.completion_ids), "finished": rollout.finished,
                "rewards": scores, "reward": round(reward, 6), "advantage": round(float(adv_NG[n, g]), 6)},
                ensure_ascii=False) + "\n")
    log.flush()


def report(cfg: Config, rows: Sequence[Mapping[str, float]], groups: Sequence[Group]) -> None:
    row = rows[-1]
    means = {name.split("/")[1]: value for name, value in row.items() if re.fullmatch("rewards/.*/mean", name)}
    print(f"{Path(cfg.out).name} {row['step'] + 1}/{cfg.steps}: "
          + " ".join(f"{name} {value:.2f}" for name, value in means.items())
          + f" length {row['completions/mean_length']:.0f} cut {row['completions/clipped_ratio']:.2f} "
          f"flat {row['frac_reward_zero_std']:.2f} entropy {row['entropy']:.2f} "
          + (f"grad {row['grad_norm']:.2f} " if "grad_norm" in row else "no update ")
          + f"{row['step_time']:.1f} s (sample {row['time/sample']:.1f}, update {row['time/update']:.1f})", flush=True)
    if "grad_norm" not in row and not row.get("updates_skipped"):
        print(f"{Path(cfg.out).name}: step {row['step']} changes nothing: " + (
            "in every group all rewards are equal" if all(group.flat for group in groups) else
            "every completion whose reward differs was cut at the limit, and is masked"), flush=True)
    alike = row["step"] == 0 or not cfg.ahead  # the sampler's weights and the learner's
    if alike and (warning := diagnose.apart(row, cfg)):
        print(f"{Path(cfg.out).name}: {warning}", flush=True)
    if cfg.show and row["step"] and row["step"] % 10 == 0:  # the first step had its first look
        for group in groups[: cfg.show]:
            print(f"--- {group.problem.prompt}{group.rollouts[0].text}\n--- reward {group.rewards[0]:.2f}", flush=True)


if __name__ == "__main__":
    run(distributed.together(main), Config, PRESETS, __doc__, moot)
