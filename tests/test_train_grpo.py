import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import interrupt, jsonl, replace_rewards
from hypothesis import given
from hypothesis import strategies as st

import train_grpo
from r1mini import config, tasks
from r1mini.model.transformer import Transformer
from r1mini.records import Group, Problem, Rollout
from r1mini.rl import grpo, learner, metrics, setup
from r1mini.rl import rollouts as rl_rollouts
from r1mini.rl.config import resolve
from r1mini.rl.samples import make_samples
from r1mini.rl.samples import minibatches as split_minibatches
from r1mini.sampler import sampler
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import memory, optim
from r1mini.training import run_state as state
from r1mini.training.logprobs import collate, token_logprobs, token_logprobs_and_entropy

TIMES = ("seconds", "step_time", "time/sample", "time/reward", "time/update")


@pytest.fixture
def run(tiny_grpo):
    return tiny_grpo


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


# -- the update --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rollouts(model, tokens):
    prompts = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]
    rollouts = [
        r for group in sample(model, tokens, prompts, 4, SamplingParams(20), seed=0) for r in group
    ]
    # Completions of lengths 1 to 12, so that per-sequence and per-token weights differ.
    return [
        replace(r, completion_ids=r.completion_ids[:n], logprobs=r.logprobs[:n], finished=False)
        for n, r in enumerate(rollouts, 1)
    ]


ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0, -2.0, 0.0, 0.3, -0.3, 0.1, -0.1])


def gradient(model, rollouts, advantages=ADVANTAGES, **changes):
    """The change of every parameter by plain gradient descent with learning rate 1."""
    cfg = train_grpo.Config(**{"max_grad_norm": 1e9, **changes})
    policy = copy.deepcopy(model).requires_grad_(True)
    reference = copy.deepcopy(model) if cfg.beta else None
    if reference is not None:
        reference.model.norm.weight.mul_(1.5)
    group = Group(Problem("", "", "", ""), rollouts, [], ())
    samples = make_samples(cfg, policy, [group], advantages[None])
    sgd = torch.optim.SGD(policy.parameters(), lr=1.0)
    figures = learner.update_minibatch(cfg, policy, reference, [sgd], samples, 1.0)
    moved = torch.cat(
        [(q - p).flatten() for p, q in zip(model.parameters(), policy.parameters())]
    ).detach()
    return moved, figures


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_per", ["sequence", "token"])
def test_micro_batches_change_neither_gradient_nor_metrics(model, rollouts, loss_per, beta):
    whole, figures = gradient(model, rollouts, loss_per=loss_per, beta=beta, learner_tokens=10**6)
    for learner_tokens in (1, 60):
        cut, cut_figures = gradient(
            model, rollouts, loss_per=loss_per, beta=beta, learner_tokens=learner_tokens
        )
        torch.testing.assert_close(cut, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)
        assert cut_figures == pytest.approx(figures, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "loss_per, weight",
    [("sequence", lambda r: 1 / 12 / len(r.completion_ids)), ("token", lambda r: 1 / 78)],
)  # 1 + 2 + ... + 12 tokens
def test_first_update_is_the_weighted_policy_gradient(model, rollouts, loss_per, weight):
    got, _ = gradient(model, rollouts, loss_per=loss_per)
    policy = copy.deepcopy(model).requires_grad_(True)
    for r, advantage in zip(rollouts, ADVANTAGES):
        row = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        logp_TV = policy(row)[0].log_softmax(-1)
        start = len(r.prompt_ids)
        logp = sum(logp_TV[start + t - 1, token] for t, token in enumerate(r.completion_ids))
        (-weight(r) * advantage * logp).backward()
    expected = torch.cat([-p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_gap_between_sampler_and_learner_is_measured(model, rollouts):
    off = [replace(r, logprobs=tuple(logp - 0.25 for logp in r.logprobs)) for r in rollouts]
    assert gradient(model, rollouts)[1]["gap"] < 1e-4
    assert gradient(model, off)[1]["gap"] == pytest.approx(0.25, abs=1e-4)


def test_update_without_advantages_changes_nothing(model, rollouts):
    moved, figures = gradient(model, rollouts, torch.zeros(12))
    assert not moved.any() and figures["tokens"] == 0


def test_kl_pulls_towards_the_reference_even_without_advantages(model, rollouts):
    moved, figures = gradient(model, rollouts, torch.zeros(12), beta=0.1)
    assert moved.any() and figures["kl"] > 0
    assert figures["loss"] == pytest.approx(0.1 * figures["kl"], rel=1e-4)


@pytest.mark.parametrize("loss_per", ["sequence", "token", "constant"])
def test_masked_truncated_completions_have_no_gradient(model, rollouts, loss_per):
    cut = [replace(r, finished=n % 2 == 0) for n, r in enumerate(rollouts)]
    # Their weight is not redistributed to the others: the gradient is the same as with advantages of zero.
    silenced = torch.where(torch.arange(12) % 2 == 0, ADVANTAGES, 0.0)
    got, _ = gradient(model, cut, overlong="mask", loss_per=loss_per)
    torch.testing.assert_close(got, gradient(model, cut, silenced, loss_per=loss_per)[0])


def test_correction_weights_are_learner_over_sampler(model, rollouts):
    # The sampler gave every token half of the learner's probability, so its importance weight is 2.
    off = [replace(r, logprobs=tuple(logp - math.log(2) for logp in r.logprobs)) for r in rollouts]
    got, _ = gradient(model, off, correction="token-truncate")
    torch.testing.assert_close(got, 2 * gradient(model, rollouts)[0], rtol=1e-3, atol=1e-4)


def test_entropy_bonus_raises_entropy_even_without_advantages(model, rollouts):
    moved, _ = gradient(model, rollouts, torch.zeros(12), entropy_bonus=0.1)
    half, _ = gradient(model, rollouts, torch.zeros(12), entropy_bonus=0.05)
    assert moved.any()
    torch.testing.assert_close(moved, 2 * half, rtol=1e-3, atol=1e-6)
    policy = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(policy.parameters()) + 0.5 * moved, policy.parameters()
    )
    batch = collate([(r.prompt_ids, r.completion_ids) for r in rollouts])
    assert (
        token_logprobs_and_entropy(policy, batch)[1].sum()
        > token_logprobs_and_entropy(model, batch)[1].sum()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"top_entropy": 0.35},
        {"off_policy_limit": 0.001},
        {"objective": "cispo"},
        {"delta": 1.3},
        {"ratio": "sequence"},
        {"loss_per": "constant"},
    ],
    ids=str,
)
def test_micro_batches_change_no_gradient_for_any_choice_of_flags(model, rollouts, changes):
    drifted = [
        replace(r, logprobs=tuple(logp - 0.3 * (-1) ** t for t, logp in enumerate(r.logprobs)))
        for r in rollouts
    ]
    whole, _ = gradient(model, drifted, learner_tokens=10**6, **changes)
    cut, _ = gradient(model, drifted, learner_tokens=1, **changes)
    torch.testing.assert_close(cut, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


WIRED = [
    {"objective": "cispo", "clip_high": 0.1},
    {"objective": "sapo"},
    {"objective": "sapo", "soft_up": 3.0},
    {"objective": "sapo", "soft_down": 3.0},
    {"clip_low": 0.05},
    {"clip_high": 0.05},
    {"delta": 1.29},
    {"ratio": "sequence"},
    {"beta": 0.1},
    {"beta": 0.1, "kl": "k1"},
    {"beta": 0.1, "kl": "k2"},
    {"beta": 0.1, "kl": "k3-weighted"},
]


@pytest.mark.parametrize("changes", WIRED, ids=str)
def test_every_loss_flag_reaches_policy_loss(model, rollouts, changes):
    """The update's loss is `policy_loss` with that keyword, and differs from the loss without it."""
    drifted = [
        replace(r, logprobs=tuple(logp - 0.4 * (-1) ** t for t, logp in enumerate(r.logprobs)))
        for r in rollouts
    ]
    cfg = train_grpo.Config(**changes)
    batch = collate([(r.prompt_ids, r.completion_ids) for r in drifted])
    old_BT = torch.zeros(batch.target_BT.shape)
    old_BT[batch.target_BT] = torch.tensor([logp for r in drifted for logp in r.logprobs])
    reference = copy.deepcopy(model)
    reference.model.norm.weight.data.mul_(1.5)
    options = {name: changes[name] for name in changes if name != "beta"}
    expected, _ = grpo.policy_loss(
        token_logprobs(model, batch),
        old_BT,
        ADVANTAGES,
        grpo.token_weights(batch.target_BT, "token"),
        **{"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, **options},
        beta=cfg.beta,
        ref_logp_BT=token_logprobs(reference, batch) if cfg.beta else None,
    )
    _, figures = gradient(model, drifted, **changes)
    assert figures["loss"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    less = {name: value for name, value in changes.items() if name != list(changes)[-1]}
    assert figures["loss"] != pytest.approx(gradient(model, drifted, **less)[1]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"top_entropy": 0.35},
        {"off_policy_limit": 0.001},
        {"loss_per": "sequence"},
        {"loss_per": "constant"},
        {"loss_per": "constant", "max_new_tokens": 50},
        {"loss_per": "microbatch", "learner_tokens": 60},
        {"correction": "token-mask"},
        {"correction": "token-truncate", "correction_cap": 0.9},
    ],
    ids=str,
)
def test_every_token_weight_flag_changes_the_gradient(model, rollouts, changes):
    drifted = [
        replace(r, logprobs=tuple(logp - 0.4 * (-1) ** t for t, logp in enumerate(r.logprobs)))
        for r in rollouts
    ]
    # A row with negative advantage that has become less likely, but not enough to be clipped.
    drifted[6] = replace(rollouts[6], logprobs=tuple(logp + 0.1 for logp in rollouts[6].logprobs))
    less = {name: value for name, value in changes.items() if name != list(changes)[-1]}
    got, base = gradient(model, drifted, **changes)[0], gradient(model, drifted, **less)[0]
    assert (got - base).abs().max() > 1e-3 * base.abs().max()


@pytest.mark.parametrize(
    "baseline, scale",
    [
        ("group", "group"),
        ("group", "batch"),
        ("group", "none"),
        ("leave-one-out", "none"),
        ("none", "none"),
    ],
)
def test_logged_advantages_use_the_chosen_baseline_and_scale(run, tmp_path, baseline, scale):
    run("out", steps=1, baseline=baseline, scale=scale)
    rows = jsonl(tmp_path / "out/rollouts.jsonl")
    rewards_NG = torch.tensor([row["reward"] for row in rows]).view(3, 4)
    expected = grpo.group_advantages(rewards_NG, baseline=baseline, scale=scale)
    assert [row["advantage"] for row in rows] == pytest.approx(
        expected.flatten().tolist(), abs=1e-5
    )


def test_run_starts_with_a_first_look_and_ends_with_a_diagnosis(run, monkeypatch, capsys):
    replace_rewards(monkeypatch, lambda *_: {"accuracy": 0.0, "format": 1.0, "language": None})
    run("out", steps=3)
    out = capsys.readouterr().out
    assert "first look: countdown" in out and "accuracy (weight 1): 0.00 (no <answer>)" in out
    assert "out: in 100% of groups all rewards are equal and almost no answer is right" in out


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_rewarded_behaviour_is_learned(run, tmp_path, monkeypatch):
    replace_rewards(
        monkeypatch,
        lambda problem, text: {
            "accuracy": sum(c.isascii() for c in text) / max(1, len(text)),
            "format": 0.0,
            "language": None,
        },
    )
    run("out", steps=15, problems=8, learning_rate=5e-2, reward="accuracy")
    rewarded = [row["reward"] for row in jsonl(tmp_path / "out/metrics.jsonl")]
    assert sum(rewarded[-3:]) / 3 > rewarded[0] + 0.2


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw", "beta": 0.1, "reference_every": 2, "minibatches": 3}],
    ids=["muon", "adamw and a reference"],
)
@pytest.mark.parametrize(
    "where, call",
    [((rl_rollouts, "sample"), 5), ((metrics, "rollout_rows"), 4)],
    ids=["sampling", "logging"],
)
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(run, tmp_path, changes, where, call):
    # The reference is replaced in step 2, the state saved before step 3, the reference replaced again in step 4.
    changes = {"steps": 5, "save_every": 3, **changes}
    run("whole", **changes)
    # In step 4 before it samples, or in step 3 when only one of its logs has been written.
    with interrupt(*where, call):
        run("cut", **changes)
    # During sampling, the weights are those after a complete step and are saved; during logging, they are not.
    assert (
        state.latest_valid(tmp_path / "cut").name
        == {"sample": "step-00000004", "rollout_rows": "step-00000003"}[where[1]]
    )
    run("cut", **changes)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert (tmp_path / "cut/rollouts.jsonl").read_bytes() == (
        tmp_path / "whole/rollouts.jsonl"
    ).read_bytes()
    whole, cut = (
        [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in jsonl(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut and [row["step"] for row in whole] == [0, 1, 2, 3, 4]
    assert any(row["grad_norm"] for row in whole)


def test_run_interrupted_before_its_first_saved_state_starts_over(run, tmp_path):
    with interrupt(optim, "update", 1):
        run("out")
    assert state.latest_valid(tmp_path / "out") is None
    run("out")
    assert [row["step"] for row in jsonl(tmp_path / "out/metrics.jsonl")] == [0, 1]


def test_every_completion_is_trained_on_once_with_its_own_advantage(run, tmp_path, monkeypatch):
    learned, real = [], learner.update_minibatch

    def recording(*args):
        learned.append([(s.rollout.text, round(s.advantage, 6)) for s in args[4]])
        return real(*args)

    monkeypatch.setattr(learner, "update_minibatch", recording)
    run("out", steps=1, minibatches=5)
    assert [len(part) for part in learned] == [
        3,
        3,
        2,
        2,
        2,
    ]  # with no divisibility between these numbers
    rows = jsonl(tmp_path / "out/rollouts.jsonl")
    assert sorted(pair for part in learned for pair in part) == sorted(
        (r["completion"], r["advantage"]) for r in rows
    )


def test_every_step_uses_new_random_numbers(run, tmp_path, monkeypatch):
    same = rl_rollouts.problems_of_step(train_grpo.Config(problems=2), [], 0)
    monkeypatch.setattr(rl_rollouts, "problems_of_step", lambda cfg, data, step, attempt: same)
    run("out", learning_rate=0.0, problems=2)
    rows = jsonl(tmp_path / "out/rollouts.jsonl")
    assert not {r["completion"] for r in rows if r["step"] == 0} & {
        r["completion"] for r in rows if r["step"] == 1
    }


def test_groups_of_equal_rewards_are_resampled_from_the_same_task(run, tmp_path, monkeypatch):
    drawn = []

    def mostly_flat(
        problem, text
    ):  # the first problem drawn in each place always has equal rewards
        if problem.prompt not in drawn:
            drawn.append(problem.prompt)
        varied = drawn.index(problem.prompt) >= 3
        return {
            "accuracy": float(sum(map(ord, text)) % 2) if varied else 1.0,
            "format": 0.0,
            "language": None,
        }

    replace_rewards(monkeypatch, mostly_flat)
    run("out", steps=1, completions=8, resample=3, reward="accuracy")
    rows, metrics = jsonl(tmp_path / "out/rollouts.jsonl"), jsonl(tmp_path / "out/metrics.jsonl")[0]
    # The logs contain everything that was drawn; the update uses only what was kept.
    assert (
        metrics["groups_drawn"] >= 6
        and metrics["frac_reward_zero_std"] >= 3 / metrics["groups_drawn"]
    )
    assert len(rows) == 24 and all(any(r["advantage"] for r in rows[n : n + 8]) for n in (0, 8, 16))
    assert [r["task"] for r in rows[::8]] == ["countdown", "elements", "countdown"]
    assert not {r["prompt"] for r in rows} & set(drawn[:3])


def test_resampling_stops_at_its_budget_and_keeps_groups_of_equal_rewards(
    run, tmp_path, monkeypatch
):
    replace_rewards(
        monkeypatch, lambda problem, text: {"accuracy": 1.0, "format": 0.0, "language": None}
    )
    run("out", steps=1, resample=2, reward="accuracy")
    metrics = jsonl(tmp_path / "out/metrics.jsonl")[0]
    assert (
        metrics["groups_drawn"] == 9
        and metrics["frac_reward_zero_std"] == 1
        and "grad_norm" not in metrics
    )


def test_overlong_penalty_is_logged_as_a_reward(run, tmp_path):
    run("out", steps=1, overlong_cache=4)
    row, lines = jsonl(tmp_path / "out/metrics.jsonl")[0], jsonl(tmp_path / "out/rollouts.jsonl")
    # A random model hardly ever stops by itself: 6 tokens (truncated) cost 1, and so on down to 0 at 2 tokens.
    for line in lines:
        assert line["rewards"]["overlong"] == pytest.approx(min(0.0, (2 - line["tokens"]) / 4))
        assert line["reward"] == pytest.approx(
            line["rewards"]["accuracy"]
            + 0.1 * line["rewards"]["format"]
            + line["rewards"]["overlong"]
        )
    assert row["rewards/overlong/mean"] == pytest.approx(
        sum(line["rewards"]["overlong"] for line in lines) / len(lines)
    )


def test_overlong_penalty_respects_a_shorter_context(model, tokens, monkeypatch):
    prompt_ids = tuple(range(120))  # the context is 128
    rollout = Rollout(prompt_ids, (1,) * 8, (0.0,) * 8, "x", False)
    problem = tasks.problem("countdown", 0, 0, "train")
    cfg = train_grpo.Config(max_new_tokens=400, overlong_cache=4, reward="format", progress=False)

    def one_rollout(*args, on_finished, **kwargs):
        on_finished(0, [rollout])
        return [[rollout]]

    monkeypatch.setattr(rl_rollouts, "sample", one_rollout)
    [group] = rl_rollouts.sample_groups(
        cfg, model, tokens, [problem], setup.build_rewards(cfg), 0, 0
    )
    assert group.scores[0]["overlong"] == -1.0


def test_run_ends_when_its_sample_budget_is_spent(run, tmp_path, monkeypatch):
    replace_rewards(
        monkeypatch, lambda *_: {"accuracy": 0.0, "format": 0.0, "language": None}
    )  # all rewards equal
    summary = run("out", steps=9, resample=1, sample_budget=40, final_lr=0.0, warmup=0.0)
    rows = jsonl(tmp_path / "out/metrics.jsonl")
    # A step draws 3 groups of 4, then 3 more: 24 completions. The second step has 16 left: one group less.
    assert summary["steps"] == 2 == len(rows) and [row["groups_drawn"] for row in rows] == [6, 4]
    assert rows[0]["learning_rate"] > 0 == pytest.approx(rows[1]["learning_rate"])


def test_spent_budget_survives_a_resume_with_other_group_sizes(run, tmp_path, monkeypatch):
    replace_rewards(monkeypatch, lambda *_: {"accuracy": 0.0, "format": 0.0, "language": None})
    with interrupt(train_grpo, "collect_groups", 3):
        run("out", steps=9, save_every=1, sample_budget=60)
    # Two steps of 3 groups of 4 are done (24); then steps of 3 groups of 8: 48, 72.
    assert (
        run("out", steps=9, save_every=1, sample_budget=60, completions=8, allow_changes=True)[
            "steps"
        ]
        == 4
    )


def test_reference_is_mixed_with_the_policy(run, tmp_path, monkeypatch):
    seen = []
    real = learner.update_minibatch

    def looking(cfg, policy, reference, *rest):
        seen.append(
            (reference.model.norm.weight.clone(), policy.model.norm.weight.detach().clone())
        )
        return real(cfg, policy, reference, *rest)

    monkeypatch.setattr(learner, "update_minibatch", looking)
    run("out", steps=2, beta=0.1, reference_every=1, reference_mix=0.25, minibatches=1)
    (first, _), (second, policy) = seen
    torch.testing.assert_close(second, 0.75 * first + 0.25 * policy)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"delta": 2.0, "objective": "cispo"}, "--delta 2.0: has no effect"),
        ({"kl": "k1"}, "--kl k1: has no effect without --beta"),
        ({"reference_mix": 0.5}, "--reference-mix 0.5: has no effect"),
        ({"clip_low": 0.1, "objective": "sapo"}, "--clip-low 0.1: has no effect"),
        ({"soft_up": 2.0}, "--soft-up 2.0: has no effect"),
        (
            {"ratio": "sequence", "objective": "reinforce", "minibatches": 1},
            "--ratio sequence: has no effect",
        ),
        ({"correction_cap": 2.0}, "--correction-cap 2.0: has no effect"),
        ({"baseline": "none", "scale": "group"}, "--baseline none --scale group"),
        ({"baseline": "none", "scale": "batch"}, "--baseline none --scale batch"),
        ({"resample": 256}, "--resample"),
        ({"entropy_bonus": math.nan}, "--entropy-bonus"),
        (
            {"beta": 0.1, "reference_mix": 0.5, "reference_every": 9},
            "--reference-mix 0.5: has no effect",
        ),
        ({"baseline": "none", "scale": "none", "resample": 1}, "--baseline none --resample"),
        ({"objective": "reinforce", "minibatches": 8}, "--objective reinforce --minibatches 8"),
        ({"clip_low": 0.1, "minibatches": 1}, "--clip-low 0.1: has no effect with --minibatches 1"),
        ({"sample_budget": 1000}, "--sample-budget 1000: has no effect"),
        ({"clip_low": 10.0}, "--clip-low 10.0: must be at least 0 and at most 1"),
        ({"final_lr": -1.0}, "--final-lr"),
        ({"rest_lr": -1.0}, "--rest-lr"),
        ({"weight_decay": math.nan}, "--weight-decay"),
        ({"temperature": math.inf}, "--temperature"),
        ({"reward": "accuracy,accuracy:0.1"}, "--reward.*'accuracy' is listed twice"),
        ({"delta": 1.1}, "--delta 1.1: must be 0 or above 1 . --clip-high, which is 1.28"),
        (
            {"overlong_cache": 6},
            "--overlong-cache 6: must be at least 0 and below --max-new-tokens 6",
        ),
        (
            {"loss_per": "microbatch", "learner_tokens": 0},
            "--loss-per microbatch --learner-tokens 0",
        ),
        ({"optimizer_on": "cpu"}, "--optimizer-on cpu: has no effect with --device cpu"),
        ({"deterministic": True}, "--deterministic True: has no effect with --device cpu"),
        ({"optimizer_on": "gpu", "device": "auto"}, "--optimizer-on gpu: must be device or cpu"),
        ({"overlong": "drop"}, "--overlong drop: must be keep or mask"),
    ],
)
def test_incompatible_flags_are_refused_with_the_reason(run, tmp_path, changes, names):
    with pytest.raises(ValueError, match=names):
        run("out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--preset r1-paper --beta 0",
        "--preset grpo --objective sapo",
        "--preset gspo --objective cispo",
        "--preset dapo --minibatches 1",
    ],
)
def test_flags_drop_preset_values_that_would_have_no_effect(flags):
    cfg = config.parse(train_grpo.Config, flags.split(), train_grpo.PRESETS)
    resolve(cfg)
    with pytest.raises(
        ValueError, match="--clip-low 0.1: has no effect"
    ):  # but a flag on the command line is never dropped
        resolve(
            config.parse(
                train_grpo.Config,
                "--preset grpo --objective sapo --clip-low 0.1".split(),
                train_grpo.PRESETS,
            )
        )


def test_paper_presets_have_the_papers_numbers():
    cfg = train_grpo.Config(**train_grpo.PRESETS["r1-zero-paper"])
    assert (cfg.problems * cfg.completions, cfg.completions, cfg.minibatches) == (
        8192,
        16,
        16,
    )  # 512 per update
    assert (cfg.learning_rate, cfg.beta, cfg.temperature, cfg.clip_high, cfg.max_new_tokens) == (
        3e-6,
        1e-3,
        1.0,
        10.0,
        32768,
    )
    assert cfg.reference_every * cfg.minibatches == 400 and cfg.steps * cfg.minibatches == 10_400


@pytest.mark.parametrize("preset", train_grpo.PRESETS)
def test_presets_are_valid_configurations(preset):
    resolve(train_grpo.Config(**train_grpo.PRESETS[preset]))


def test_memory_flags_do_not_change_a_rollout(run, tmp_path):
    run("one", steps=1)
    run("other", steps=1, learner_tokens=1, sampler_rows=5)
    assert (tmp_path / "one/rollouts.jsonl").read_bytes() == (
        tmp_path / "other/rollouts.jsonl"
    ).read_bytes()


TRIED = {"max_new_tokens": 20, "learner_tokens": 256, "minibatches": 2}


@pytest.mark.parametrize(
    "changes",
    [{"beta": 0.1, "correction": "token-truncate"}, {"bf16": True, "gradient_checkpointing": True}],
    ids=str,
)
def test_dry_run_changes_no_result(run, tmp_path, monkeypatch, capsys, changes):
    run("plain", **TRIED, **changes)
    monkeypatch.setattr(memory, "raises_oom", lambda device: True)
    run("tried", **TRIED, **changes)
    assert re.search(
        r"peak memory in the dry run: .* GiB of .*, .* estimated", capsys.readouterr().out
    )
    assert weights_of(tmp_path / "tried") == weights_of(tmp_path / "plain")
    assert (tmp_path / "tried/rollouts.jsonl").read_bytes() == (
        tmp_path / "plain/rollouts.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"learner_tokens": 96}, {"learner_tokens": 10**6}, {"minibatch_of": "problems"}],
    ids=str,
)
def test_no_micro_batch_exceeds_the_worst_case(run, monkeypatch, changes):
    passes, real = [], learner.token_logprobs

    def watching(model, batch, temperature):
        passes.append(
            (len(batch.token_of_flat_M), batch.tokens_BT.shape[1], int(batch.target_BT.sum()))
        )
        return real(model, batch, temperature)

    monkeypatch.setattr(learner, "token_logprobs", watching)
    monkeypatch.setattr(memory, "raises_oom", lambda device: True)
    run("out", **{**TRIED, "steps": 1, **changes})
    worst, *others = passes
    assert len(others) >= 2 and (worst[0] == 96 or changes != {"learner_tokens": 96})
    assert all(at_worst >= its for other in others for at_worst, its in zip(worst, other))


def test_worst_case_step_leaves_weights_gradients_and_random_numbers_unchanged(model, tokens):
    policy = copy.deepcopy(model).requires_grad_(True)
    cfg = train_grpo.Config(**TRIED, problems=3, completions=4, tasks=("elements",))
    state = torch.get_rng_state()
    setup.worst_case_step(resolve(cfg), policy, None, tokens, [])
    assert all(p.grad is None for p in policy.parameters()) and torch.get_rng_state().equal(state)
    assert all(
        trained.equal(original)
        for trained, original in zip(policy.parameters(), model.parameters())
    )


def test_worst_case_prompt_has_the_most_tokens(model, tokens, monkeypatch):
    seen, real = [], sampler.dry_run
    monkeypatch.setattr(
        sampler,
        "dry_run",
        lambda model, tokens, ids, *rest: seen.append(ids) or real(model, tokens, ids, *rest),
    )
    data = [
        Problem("", text, "en", text)
        for text in ("the " * 9, "\N{CJK UNIFIED IDEOGRAPH-8C46}" * 12)
    ]
    cfg = train_grpo.Config(**TRIED, problems=2, completions=2)
    setup.worst_case_step(cfg, copy.deepcopy(model).requires_grad_(True), None, tokens, data)
    assert len(data[0].prompt) > len(data[1].prompt) and set(map(len, seen[0])) == {
        len(tokens.encode_batch([data[1].prompt])[0])
    }


def test_run_that_does_not_fit_stops_before_it_writes_anything(
    script, folder, tmp_path, monkeypatch
):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(memory, "raises_oom", lambda device: True)
    monkeypatch.setattr(Transformer, "hidden", full)
    for name in ("train_grpo.py", "train_sft.py"):
        code, out, err = script(
            name, "--model", folder, "--out", tmp_path / "out", "--tasks", "elements"
        )
        assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
        assert re.search(
            "not enough memory; lower .*-tokens.* .or add --gradient-checkpointing, --optimizer-on cpu",
            err,
        )
        assert "20.00 GiB" in err


def test_learner_tokens_0_equals_the_number_that_it_prints(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "BUDGETS", {"cpu": [32, 64]})
    run("fitted", learner_tokens=0)
    assert "using --learner-tokens 64, the most that fit" in capsys.readouterr().out
    run("fixed", learner_tokens=64)
    assert weights_of(tmp_path / "fitted") == weights_of(tmp_path / "fixed")
    assert run("fitted", learner_tokens=0)["config"]["learner_tokens"] == 0  # the same command


def test_offloaded_moments_give_the_same_run_and_files(run, tmp_path):
    changes = {"steps": 3, "save_every": 1, "device": "auto"}
    run("there", **changes)
    with interrupt(metrics.StepLog, "print_step", 3):
        run("away", optimizer_on="cpu", **changes)
    run("away", optimizer_on="cpu", **changes)
    assert weights_of(tmp_path / "away") == weights_of(tmp_path / "there")


def test_finished_run_does_not_run_again(run, monkeypatch):
    run("out", steps=1)
    monkeypatch.setattr(rl_rollouts, "sample", None)  # running a step would raise
    assert run("out", steps=1)["finished"]


def test_folder_of_another_run_is_refused(run, tmp_path):
    run("out", steps=1)
    before = weights_of(tmp_path / "out")
    with pytest.raises(
        ValueError, match="out: holds another run .--learning-rate was 0.01, now 0.5"
    ):
        run("out", steps=1, learning_rate=0.5)
    assert weights_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"steps": 0}, "--steps"),
        ({"problems": 0}, "--problems"),
        ({"completions": 1}, "--completions"),
        ({"minibatches": 13}, "--minibatches"),
        ({"temperature": 0.0}, "--temperature"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"tasks": ("countdwn",)}, "--tasks.*countdwn"),
        ({"reward": "acuracy"}, "--reward"),
        ({"loss_per": "row"}, "--loss-per"),
        ({"optimizer": "sgd"}, "--optimizer"),
        ({"sampler_rows": 0}, "--sampler-rows"),
        ({"model": "absent"}, "absent: no such model folder"),
    ],
)
def test_bad_flag_is_named_and_leaves_the_folder_usable(run, changes, names):
    with pytest.raises(ValueError, match=names):
        run("out", **changes)
    run("out", steps=1)  # the corrected command needs no other folder


# -- what is logged ----------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(run, tmp_path):
    run("out", beta=0.01, temperature=0.8)
    return jsonl(tmp_path / "out/metrics.jsonl"), jsonl(tmp_path / "out/rollouts.jsonl")


def test_metrics_have_trls_names(logged):
    metrics, _ = logged
    assert metrics[0].keys() >= {
        "step",
        "loss",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/accuracy/mean",
        "rewards/accuracy/std",
        "rewards/format/mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "entropy",
        "kl",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "step_time",
        "sampling/sampling_logp_difference/max",
    }
    assert "rewards/language/mean" not in metrics[0]  # None: the reward did not apply


def test_num_tokens_counts_prompts_and_completions_of_the_whole_run(run, tmp_path, tokens):
    run("out")
    rows, lines = jsonl(tmp_path / "out/metrics.jsonl"), jsonl(tmp_path / "out/rollouts.jsonl")
    for row in rows:
        assert row["num_tokens"] == sum(
            line["tokens"] + len(tokens.encode(line["prompt"]))
            for line in lines
            if line["step"] <= row["step"]
        )


def test_every_completion_is_logged(logged):
    _, rows = logged
    assert [(row["step"], row["problem"], row["sample"]) for row in rows] == [
        (step, n, g) for step in range(2) for n in range(3) for g in range(4)
    ]
    assert {row["task"] for row in rows} == {"countdown", "elements"}


def test_metrics_match_the_logged_completions(logged):
    metrics, rows = logged
    for step, figures in enumerate(metrics):
        here = [row for row in rows if row["step"] == step]
        # --reward accuracy,format:0.1
        assert [r["reward"] for r in here] == pytest.approx(
            [r["rewards"]["accuracy"] + 0.1 * r["rewards"]["format"] for r in here]
        )
        assert figures["reward"] == pytest.approx(sum(r["reward"] for r in here) / 12, abs=1e-5)
        assert figures["completions/mean_length"] == pytest.approx(
            sum(r["tokens"] for r in here) / 12
        )
        assert figures["completions/clipped_ratio"] == pytest.approx(
            sum(not r["finished"] for r in here) / 12
        )
        flat = [len({r["reward"] for r in here if r["problem"] == n}) == 1 for n in range(3)]
        assert figures["frac_reward_zero_std"] == pytest.approx(sum(flat) / 3)
        assert all(
            abs(sum(r["advantage"] for r in here if r["problem"] == n)) < 1e-4 for n in range(3)
        )


def test_sampler_and_learner_agree_in_every_step(logged):
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in logged[0])


def test_entropy_of_a_new_model_is_nearly_uniform(logged, model):
    assert (
        0.5 * math.log(model.config.vocab_size)
        < logged[0][0]["entropy"]
        < math.log(model.config.vocab_size)
    )


@pytest.mark.parametrize("reference_every, moved", [(1, False), (0, True), (5, True)])
def test_reference_is_reset_to_the_policy(run, tmp_path, reference_every, moved):
    run("out", beta=0.01, minibatches=1, reference_every=reference_every, learning_rate=2e-2)
    first, second = jsonl(tmp_path / "out/metrics.jsonl")
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # both have the model's weights
    assert (second["kl"] > 1e-4) == moved


def test_problems_are_a_function_of_seed_and_step_and_alternate_tasks():
    cfg = train_grpo.Config(problems=5, tasks=("countdown", "repair", "countdown"))
    steps = [rl_rollouts.problems_of_step(cfg, [], step) for step in range(4)]
    assert rl_rollouts.problems_of_step(cfg, [], 2) == steps[2]
    drawn = [problem for step in steps for problem in step]
    assert [p.task for p in drawn] == [
        ("countdown", "repair", "countdown")[i % 3] for i in range(20)
    ]
    assert not any(tasks.is_held_out(p) for p in drawn)
    assert len({p.prompt for p in drawn}) > 15


def test_columns_of_a_data_file_reach_the_rewards(run, tmp_path):
    rows = [
        {"prompt": f"What is {n} and {n}?\n", "answer": str(2 * n), "level": n} for n in range(4)
    ]
    rows[3] = {"prompt": "Print 7.\n", "tests": [{"stdin": "", "stdout": "7"}], "level": 3}
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def level(completions, level, **columns):\n    return level\n"
    )
    run(
        "out",
        data=str(tmp_path / "sums.jsonl"),
        tasks=tasks.REASONING,
        problems=4,
        steps=2,
        reward=f"code,{tmp_path / 'mine.py'}:level",
    )
    logged = jsonl(tmp_path / "out/rollouts.jsonl")
    assert (
        {r["prompt"] for r in logged if r["step"] == 0}
        == {r["prompt"] for r in logged if r["step"] == 1}
        == {row["prompt"] for row in rows}
    )
    for r in logged:
        [row] = [row for row in rows if row["prompt"] == r["prompt"]]
        assert r["task"] == "sums.jsonl" and r["rewards"]["level"] == row["level"]
        assert (r["rewards"]["code"] is not None) == ("tests" in row)


def test_too_long_prompt_of_a_file_is_refused_before_the_run(run, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "3 " * 5000, "answer": "3"}) + "\n")
    with pytest.raises(
        ValueError, match="long.jsonl:1: a prompt of .* tokens does not fit the model's context of"
    ):
        run("out", data=str(tmp_path / "long.jsonl"), tasks=tasks.REASONING)
    assert not (tmp_path / "out").exists()


def test_data_flags_affect_how_the_file_is_read(run, tmp_path, capsys):
    rows = [{"ask": f"What is {n} and {n}?", "gold": 2 * n} for n in range(3)]
    rows += [{"ask": "", "gold": 1}, {"ask": "3 " * 5000, "gold": 1}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "What is 2 and 2?"}) + "\n")
    run(
        "out",
        data=str(tmp_path / "sums.jsonl"),
        tasks=tasks.REASONING,
        prompt_key="ask",
        answer_key="gold",
        skip_bad=True,
        decontaminate=(str(tmp_path / "eval.jsonl"),),
        steps=1,
    )
    assert {r["prompt"] for r in jsonl(tmp_path / "out/rollouts.jsonl")} == {
        "What is 0 and 0?\n",
        "What is 1 and 1?\n",
    }
    out = capsys.readouterr().out
    assert (
        "columns ask, gold, 2 rows; 1 removed by --decontaminate (ten consecutive words" in out
        and "2 skipped by --skip-bad" in out
    )
    assert (
        "sums.jsonl:4: no text in column 'ask', found ''" in out
        and "sums.jsonl:5: a prompt of " in out
    )


def test_data_flags_without_data_are_refused(run):
    with pytest.raises(ValueError, match="--skip-bad True: has no effect without --data"):
        run("out", skip_bad=True)


def test_bf16_run_keeps_fp32_weights(run, tmp_path):
    run("out", bf16=True)
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"
    for row in jsonl(tmp_path / "out/metrics.jsonl"):
        assert row["grad_norm"] > 0 and row["sampling/sampling_logp_difference/max"] < 0.2
        assert 0 < row["weights/moved_in_bf16"] <= 1


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from(["completions", "problems"]),
)
def test_minibatches_hold_every_completion_once_and_can_keep_groups_whole(
    problems, completions, minibatches, of
):
    cfg = train_grpo.Config(
        problems=problems, completions=completions, minibatches=minibatches, minibatch_of=of
    )
    parts = split_minibatches(cfg, problems, "seed")
    assert len(parts) == minibatches and sorted(i for part in parts for i in part) == list(
        range(problems * completions)
    )
    assert parts == split_minibatches(cfg, problems, "seed")
    if of == "problems":
        assert all(
            len({i // completions for i in part}) * completions == len(part) for part in parts
        )


def test_minibatches_of_problems_compute_a_prompt_once(run, monkeypatch):
    computed = []
    real = learner.collate
    monkeypatch.setattr(
        learner, "collate", lambda rows: computed.append((batch := real(rows)).parent) or batch
    )
    run("out", steps=1, minibatches=2, minibatch_of="problems")
    shared = sum(parent >= 0 for part in computed for parent in part)
    assert shared > 0
