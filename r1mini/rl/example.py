"""The numbers of the study guide (docs/guide.md): one GRPO step on one problem with 4 completions.

`python -m r1mini.rl.example` prints a table or more for each lesson. It calls the functions that
train_grpo.py calls and computes nothing of the algorithm itself. A test compares the tables with
those of the guide's pages.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r1mini import checkpoint
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import option, run_script, validate
from r1mini.model.transformer import Transformer
from r1mini.records import Batch, Group
from r1mini.rewards.rules import answer_error, format_error
from r1mini.rl import grpo
from r1mini.rl.config import GRPOConfig, resolve
from r1mini.rl.learner import Stats, update_minibatch
from r1mini.rl.rollouts import collect_groups
from r1mini.rl.samples import LossInputs, Sample, loss_inputs, make_samples
from r1mini.rl.setup import build_rewards
from r1mini.sampler.sampling import SamplingParams, next_token_probs
from r1mini.training.logprobs import collate, token_logprobs
from r1mini.training.optim import build_optimizers

SHOWN = 4  # tokens of a completion, where a table has one column for each
TEMPERATURES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Config:
    lesson: int = option(0, "print this lesson's tables alone (0: all)", bounds="0 <= x <= 7")
    seed: int = option(0, "seed of problem and completions; the guide has 0")
    task: str = option("kinetics", "task of the problem; the guide has kinetics")


@dataclass(frozen=True)
class Example:
    """Everything that one step computes, in the order in which it does."""

    cfg: GRPOConfig
    tokenizer: Tokenizer
    group: Group
    adv_NG: Tensor
    samples: Sequence[Sample]
    batch: Batch
    inputs: LossInputs
    logp_BT: Tensor  # of the learner, before the optimizer's step
    stats: Stats
    before: Transformer
    after: Transformer
    after_logp_BT: Tensor


def one_step(seed: int, task: str) -> Example:
    """One problem, 4 completions, one minibatch: the numbered calls of train_grpo.py, without a
    warm-up of the learning rate. ValueError if the group's rewards are all equal."""
    cfg = GRPOConfig(
        tasks=(task,), problems=1, completions=4, minibatches=1, seed=seed, progress=False
    )
    cfg = resolve(cfg)
    policy, tokenizer = checkpoint.load("base")
    rewards = build_rewards(cfg)
    groups, _ = collect_groups(cfg, policy, tokenizer, [], rewards, step=0)
    if groups[0].has_zero_variance:
        raise ValueError(f"--seed {seed}: all rewards are equal, so there is no update to show")
    rewards_NG = torch.tensor([group.rewards for group in groups])
    adv_NG = grpo.group_advantages(rewards_NG, baseline=cfg.baseline, scale=cfg.scale)
    samples = make_samples(cfg, policy, groups, adv_NG)

    # What `update_minibatch` computes on the way: the batch, log pi and the loss inputs.
    rows = list(range(len(samples)))
    batch = collate([sample.ids for sample in samples])
    inputs = loss_inputs(cfg, policy, samples, torch.ones(len(rows), dtype=torch.bool), [rows])
    with torch.no_grad():
        logp_BT = token_logprobs(policy, batch, cfg.temperature)
    after, stats = updated(cfg, policy, samples)
    with torch.no_grad():
        after_logp_BT = token_logprobs(after, batch, cfg.temperature)
    return Example(
        cfg,
        tokenizer,
        groups[0],
        adv_NG,
        samples,
        batch,
        inputs,
        logp_BT,
        stats,
        policy,
        after,
        after_logp_BT,
    )


def updated(
    cfg: GRPOConfig, policy: Transformer, samples: Sequence[Sample]
) -> tuple[Transformer, Stats]:
    """A copy of the policy after one optimizer step, and the metrics of the step."""
    policy = copy.deepcopy(policy)
    optimizers = build_optimizers(policy, cfg.optimizer, cfg.weight_decay, cfg.rest_lr)
    stats = update_minibatch(cfg, policy, None, optimizers, samples, cfg.learning_rate)
    return policy, stats


def table(head: str, *rows: Sequence[object]) -> str:
    """Markdown; `head` has the columns' names, separated by " | "."""
    names = head.split(" | ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`".replace("\n", "⏎").replace("|", "\\|")


def token_texts(example: Example, ids: Sequence[int]) -> list[str]:
    """Each token's text; a line's end is ⏎, and the stop token has its name."""
    decode = example.tokenizer.backend.decode
    return [code(decode([i], skip_special_tokens=False)) for i in ids]


def problem_and_tokens(example: Example) -> list[str]:
    problem, ids = example.group.problem, example.group.rollouts[0].prompt_ids
    fields = [(name, code(getattr(problem, name))) for name in ("task", "key", "language")]
    tokens = [("text", *token_texts(example, ids)), ("id", *ids)]
    positions = " | ".join(map(str, range(len(ids))))
    return [
        table("field | value", *fields, ("prompt", code(problem.prompt))),
        table(f"position | {positions}", *tokens),
    ]


def fixed(value: float | Tensor, digits: int) -> str:
    """With so many decimals, and no minus before a zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def sampling(example: Example) -> list[str]:
    rollouts = example.group.rollouts
    completions = [(i, code(rollout.text)) for i, rollout in enumerate(rollouts, 1)]
    summary = [
        (
            i,
            len(rollout.completion_ids),
            token_texts(example, rollout.completion_ids)[0],
            fixed(rollout.logprobs[0], 3),
            fixed(sum(rollout.logprobs), 2),
        )
        for i, rollout in enumerate(rollouts, 1)
    ]
    return [
        table("completion | text, without its end token", *completions),
        table("completion | tokens | first token | its log-probability | sum of all", *summary),
        unlikely_tokens(example),
        first_token_probs(example),
    ]


def unlikely_tokens(example: Example, with_after: bool = False) -> str:
    """The tokens of the best completion that were least likely, in their order."""
    rollout, b = example.group.rollouts[best(example)], best(example)
    by_logprob = sorted(range(len(rollout.logprobs)), key=rollout.logprobs.__getitem__)
    places = sorted(by_logprob[:SHOWN])
    texts = token_texts(example, [rollout.completion_ids[place] for place in places])
    columns = [len(rollout.prompt_ids) + place for place in places]
    logp_BT = {"log-probability": example.logp_BT}
    if with_after:
        logp_BT = {"log-probability before": example.logp_BT, "after": example.after_logp_BT}
    rows = [(name, *(fixed(x, 3) for x in x_BT[b, columns])) for name, x_BT in logp_BT.items()]
    if not with_after:
        rows.insert(0, ("its place", *(place + 1 for place in places)))
        rows.append(("probability", *(fixed(x, 3) for x in example.logp_BT[b, columns].exp())))
    return table(f"token of completion {b + 1} | " + " | ".join(texts), *rows)


def best(example: Example) -> int:
    """Index of the completion with the largest reward."""
    rewards = example.group.rewards
    return rewards.index(max(rewards))


def first_logits(example: Example, policy: Transformer) -> Tensor:
    """[1, V] the logits of the token after the prompt."""
    prompt_ids = example.group.rollouts[0].prompt_ids
    with torch.no_grad():
        return policy(torch.tensor([prompt_ids]))[:, -1]


def first_tokens(example: Example) -> list[int]:
    """The most likely tokens after the prompt, before the optimizer's step."""
    return sorted(first_logits(example, example.before)[0].topk(SHOWN).indices.tolist())


def first_token_probs(example: Example) -> str:
    """The probabilities of these tokens at three temperatures."""
    rows = [(x, *probs_of_first(example, example.before, x)) for x in TEMPERATURES]
    return table("temperature | " + " | ".join(token_texts(example, first_tokens(example))), *rows)


def probs_of_first(example: Example, policy: Transformer, temperature: float) -> list[str]:
    params = SamplingParams(temperature=temperature)
    [p_V] = next_token_probs(first_logits(example, policy), params)
    return [fixed(p, 3) for p in p_V[first_tokens(example)]]


def rewards(example: Example) -> list[str]:
    group, rows = example.group, []
    for i, (rollout, scores) in enumerate(zip(group.rollouts, group.scores), 1):
        reasons = [f(group.problem, rollout.text) for f in (answer_error, format_error)]
        values = ("–" if score is None else fixed(score, 1) for score in scores.values())
        rows.append(
            (
                i,
                *values,
                group.rewards[i - 1],
                *(code(reason) if reason else "–" for reason in reasons),
            )
        )
    names = " | ".join(group.scores[0])
    return [
        table(f"completion | {names} | reward | accuracy: why not 1 | format: why not 1", *rows)
    ]


def advantages(example: Example) -> list[str]:
    rewards_NG = torch.tensor([example.group.rewards])
    variants = {
        "GRPO: `group`, `group`": example.adv_NG,
        "Dr. GRPO: `group`, `none`": grpo.group_advantages(rewards_NG, scale="none"),
        "RLOO: `leave-one-out`, `none`": grpo.group_advantages(
            rewards_NG, baseline="leave-one-out", scale="none"
        ),
    }
    count = len(example.group.rewards)
    head = "baseline, scale | " + " | ".join(f"completion {i + 1}" for i in range(count))
    rows = [(name, *(fixed(x, 3) for x in adv_NG[0])) for name, adv_NG in variants.items()]
    return [table(head, ("reward", *example.group.rewards), *rows)]


def tensors(example: Example) -> list[str]:
    batch, inputs = example.batch, example.inputs
    B, T = batch.tokens_BT.shape
    sizes = [
        ("rows B", B),
        ("columns T", T),
        ("tokens with padding, B · T", B * T),
        ("packed tokens M", len(batch.token_of_flat_M)),
        ("targets Q", len(batch.target_Q)),
        ("lengths of the segments", ", ".join(map(str, batch.lengths))),
        ("parent of each segment", ", ".join(map(str, batch.parent))),
    ]
    rows = [
        (i + 1, fixed(sampler, 3), fixed(learner, 3), fixed(gap, 4))
        for i, (sampler, learner, gap) in enumerate(
            zip(
                inputs.sampler_logp_BT.sum(-1),
                example.logp_BT.sum(-1),
                (inputs.sampler_logp_BT - example.logp_BT).abs().amax(-1),
            )
        )
    ]
    head = "completion | sampler: sum of log pi | learner: sum of log pi | largest gap of a token"
    return [table("of the batch | value", *sizes), table(head, *rows)]


def loss_of(example: Example, logp_BT: Tensor, rows: slice, columns: slice, loss_per: str) -> float:
    """The part of the loss that these rows and columns contribute: the loss is a sum of them."""
    cfg, inputs = example.cfg, example.inputs
    weight_BT = grpo.token_weights(inputs.mask_BT, loss_per)
    loss, _ = grpo.policy_loss(
        logp_BT[rows, columns],
        inputs.old_logp_BT[rows, columns],
        inputs.adv_B[rows],
        weight_BT[rows, columns],
        clip_low=cfg.clip_low,
        clip_high=cfg.clip_high,
    )
    return loss.item()


def loss(example: Example) -> list[str]:
    cfg, everything, parts = example.cfg, slice(None), []
    start = len(example.group.rollouts[0].prompt_ids)
    first = slice(start, start + 1)  # the first token of each completion
    for b, sample in enumerate(example.samples):
        row = slice(b, b + 1)
        values = [sample.advantage, example.inputs.weight_BT[b].max().item()]
        values.append(loss_of(example, example.logp_BT, row, first, cfg.loss_per))
        values += [
            loss_of(example, example.logp_BT, row, everything, kind)
            for kind in (cfg.loss_per, "sequence")
        ]
        numbers = (fixed(value, digits) for value, digits in zip(values, (3, 5, 5, 4, 4)))
        parts.append((b + 1, len(sample.rollout.completion_ids), *numbers))
    totals = [
        loss_of(example, example.logp_BT, everything, everything, kind)
        for kind in (cfg.loss_per, "sequence")
    ]
    parts.append(("all", "", "", "", "", *(fixed(total, 4) for total in totals)))
    head = "completion | tokens | A | weight of a token | loss of a token | loss | `sequence`: loss"
    return [table(head, *parts), ratios(example)]


def ratios(example: Example) -> str:
    """What a second update with the same group would meet: the policy has moved."""
    cfg, rows = example.cfg, []
    mask_BT, adv_B, old_BT = example.inputs.mask_BT, example.inputs.adv_B, example.logp_BT
    ratio_BT = grpo.log_ratio(example.after_logp_BT, old_BT, mask_BT).exp()
    kl_BT = grpo.kl_to_reference(example.after_logp_BT, old_BT)  # the reference: the base model
    for b in range(len(example.samples)):
        row = slice(b, b + 1)
        _, metrics = grpo.policy_loss(
            example.after_logp_BT[row],
            old_BT[row],
            adv_B[row],
            example.inputs.weight_BT[row],
            clip_low=cfg.clip_low,
            clip_high=cfg.clip_high,
        )
        clipped = sum(int(metrics[f"clip_ratio/{side}_mean"]) for side in ("low", "high"))
        ratio_Q, kl_Q = ratio_BT[b][mask_BT[b]], kl_BT[b][mask_BT[b]]
        values = (ratio_Q.min(), ratio_Q.max())
        rows.append((b + 1, *(fixed(x, 2) for x in values), clipped, fixed(kl_Q.mean(), 5)))
    head = "completion | smallest ratio | largest ratio | tokens clipped | mean KL (k3) to the base"
    return table(head, *rows)


def optimizer_step(example: Example) -> list[str]:
    cfg, norm = example.cfg, example.stats["grad_norm"]
    values = [
        ("loss", fixed(example.stats["loss"], 4)),
        ("gradient norm", fixed(norm, 3)),
        ("factor of the clip", fixed(min(1.0, cfg.max_grad_norm / norm), 3)),
        ("learning rate", cfg.learning_rate),
    ]
    before_B, after_B = example.logp_BT.sum(-1), example.after_logp_BT.sum(-1)
    rows = [
        (b + 1, fixed(sample.advantage, 3), *(fixed(x, 2) for x in numbers))
        for b, (sample, *numbers) in enumerate(
            zip(example.samples, before_B, after_B, after_B - before_B)
        )
    ]
    texts = token_texts(example, first_tokens(example))
    first = [
        (name, *probs_of_first(example, policy, cfg.temperature))
        for name, policy in (("before", example.before), ("after", example.after))
    ]
    return [
        table("of the update | value", *values),
        table("completion | A | log-probability before | after | change", *rows),
        unlikely_tokens(example, with_after=True),
        table("probability of the first token | " + " | ".join(texts), *first),
        other_updates(example),
    ]


def other_updates(example: Example) -> str:
    """The same step with other advantages: who changes whose log-probability?"""
    cfg, rows = example.cfg, []
    adv_G = [sample.advantage for sample in example.samples]
    variants = {"all": adv_G, "all, A twice as large": [2 * A for A in adv_G]}
    for alone in (1, 2):
        name = f"completion {alone + 1} alone"
        variants[name] = [A if g == alone else 0.0 for g, A in enumerate(adv_G)]
    for name, advantages in variants.items():
        samples = [replace(sample, advantage=A) for sample, A in zip(example.samples, advantages)]
        policy, stats = updated(cfg, example.before, samples)
        with torch.no_grad():
            logp_BT = token_logprobs(policy, example.batch, cfg.temperature)
        change_B = (logp_BT - example.logp_BT).sum(-1)
        rows.append((name, fixed(stats.get("grad_norm", 0.0), 3), *(fixed(x, 2) for x in change_B)))
    head = "update from | gradient norm | change of 1 | of 2 | of 3 | of 4"
    return table(head, *rows)


LESSONS: dict[str, Callable[[Example], list[str]]] = {
    "Problem, prompt and tokens": problem_and_tokens,
    "Sampling and log-probabilities": sampling,
    "Rewards by rules": rewards,
    "Groups and advantages": advantages,
    "From rows to tensors": tensors,
    "The loss": loss,
    "The optimizer's step": optimizer_step,
}


def main(cfg: Config) -> None:
    validate(cfg)
    example = one_step(cfg.seed, cfg.task)
    for number, (title, lesson) in enumerate(LESSONS.items(), 1):
        if cfg.lesson in (0, number):
            print(f"{number}. {title}\n\n" + "\n\n".join(lesson(example)) + "\n")


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.rl.example"
    run_script(main, Config, description=__doc__)
