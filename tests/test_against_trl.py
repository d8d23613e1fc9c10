"""Each loss that TRL implements, against its GRPOTrainer: the loss, and its gradient with respect to the log-probabilities.
The loss of preference pairs against its RewardTrainer: its gradient with respect to the scores, and to a model's weights.

If TRL is installed, its `_compute_loss` and `compute_loss` are run. Otherwise the comparison is with its recorded outputs, which TRL 1.16.0
wrote to trl_losses.json. To record them again, in a separate environment:

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl pytest
    trl/bin/python tests/test_against_trl.py
"""

import importlib.util
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_against_transformers import our_reward_model, transformers_reward_model

from r1mini.reward_model.data import Pair
from r1mini.reward_model.loss import bradley_terry
from r1mini.reward_model.training import accumulate_gradient
from r1mini.rl import corrections, grpo

NUMBERS = Path(__file__).with_name("trl_losses.json")
LONGEST = 8

# name: (per, keywords of policy_loss, fields of TRL's GRPOConfig). TRL caps CISPO's ratio at epsilon_high, not 1 more.
CASES = {
    "grpo": ("sequence", {}, {"loss_type": "grpo"}),
    "dapo": ("token", {"clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": ("constant", {}, {"loss_type": "dr_grpo"}),
    "bnpo": ("microbatch", {}, {"loss_type": "bnpo"}),
    "wide clip": (
        "sequence",
        {"clip_low": 10.0, "clip_high": 10.0},
        {"loss_type": "grpo", "epsilon": 10.0, "epsilon_high": 10.0},
    ),
    "delta": ("token", {"delta": 1.3}, {"delta": 1.3}),
    "gspo": (
        "sequence",
        {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "cispo": (
        "token",
        {"objective": "cispo", "clip_high": 0.5},
        {"loss_type": "cispo", "epsilon_high": 1.5},
    ),
    "sapo": ("sequence", {"objective": "sapo"}, {"loss_type": "sapo"}),
    "kl": ("token", {"beta": 0.1}, {"beta": 0.1}),
    "kl weighted": (
        "token",
        {"beta": 0.1, "kl": "k3-weighted"},
        {"beta": 0.1, "use_bias_correction_kl": True},
    ),
    "gspo kl weighted": (
        "sequence",
        {"ratio": "sequence", "beta": 0.1, "kl": "k3-weighted"},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "beta": 0.1,
            "use_bias_correction_kl": True,
        },
    ),
    "top entropy": (
        "token",
        {"factor": lambda c: corrections.top_entropy(c.entropy_BT, c.mask_BT, 0.3)},
        {"top_entropy_quantile": 0.3},
    ),
    "off-policy mask": (
        "token",
        {
            "factor": lambda c: corrections.on_policy_rows(
                c.logp_BT, c.old_BT, c.adv_B, c.mask_BT, 0.05
            )
        },
        {"off_policy_mask_threshold": 0.05},
    ),
    **{
        f"correction {kind}": (
            "token",
            {
                "factor": lambda c, kind=kind: corrections.sampler_correction(
                    c.old_BT, c.sampler_BT, c.mask_BT, kind, cap=3.0
                )
            },
            {"vllm_importance_sampling_mode": kind.replace("-", "_")},
        )
        for kind in corrections.CORRECTIONS[1:]
    },
    "entropy bonus": (
        "sequence",
        {"entropy_bonus": 0.01},
        {"loss_type": "grpo", "entropy_coef": 0.01},
    ),
}


def rows():
    """Four completions of 6, 3, 5 and 1 tokens."""
    g = torch.Generator().manual_seed(0)
    mask_BT = torch.arange(6)[None] < torch.tensor([6, 3, 5, 1])[:, None]
    logp_BT = -3 * torch.rand(4, 6, generator=g)
    near = lambda x, scale: x + scale * torch.randn(4, 6, generator=g)
    old_BT = near(logp_BT, 0.5)
    return SimpleNamespace(
        mask_BT=mask_BT,
        logp_BT=logp_BT,
        old_BT=old_BT,
        ref_BT=near(logp_BT, 0.5),
        sampler_BT=near(old_BT, 0.8),
        entropy_BT=2 * torch.rand(4, 6, generator=g),
        adv_B=torch.tensor([1.2, -0.7, 0.4, -1.1]),
    )


def ours(name):
    per, options, _ = CASES[name]
    c, options = rows(), {**options}
    logp_BT, factor, bonus = (
        c.logp_BT.requires_grad_(True),
        options.pop("factor", None),
        options.pop("entropy_bonus", 0.0),
    )
    weight_BT = grpo.token_weights(
        c.mask_BT, per, max_length=LONGEST, micro_batch_B=torch.zeros(4, dtype=torch.long)
    )
    loss, _ = grpo.policy_loss(
        logp_BT,
        c.old_BT,
        c.adv_B,
        weight_BT,
        policy_weight_BT=factor and factor(c),
        ref_logp_BT=c.ref_BT if options.get("beta") else None,
        **options,
    )
    loss = loss - bonus * (grpo.token_weights(c.mask_BT, "token") * c.entropy_BT).sum()
    loss.backward()
    return loss.item(), logp_BT.grad


def trl_loss(name):
    """TRL's `_compute_loss` on a stand-in for the trainer that has only the attributes it reads."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    per, _, settings = CASES[name]
    field = {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": None,
        "beta": 0.0,
        "delta": None,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vllm_importance_sampling_mode": None,
        "entropy_coef": 0.0,
        **settings,
    }
    c, mode = rows(), field["vllm_importance_sampling_mode"]
    logp_BT = c.logp_BT.requires_grad_(True)
    alone = lambda x, **_: x
    trainer = SimpleNamespace(
        args=SimpleNamespace(steps_per_generation=1, **field),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=alone,
            gather_for_metrics=alone,
            pad_across_processes=alone,
            reduce=alone,
        ),
        top_entropy_quantile=field["top_entropy_quantile"],
        off_policy_mask_threshold=field["off_policy_mask_threshold"],
        importance_sampling_level=field["importance_sampling_level"],
        beta=field["beta"],
        epsilon_low=field["epsilon"],
        epsilon_high=field["epsilon_high"]
        if field["epsilon_high"] is not None
        else field["epsilon"],
        loss_type=field["loss_type"],
        use_vllm=mode is not None,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=field["entropy_coef"] > 0,
        entropy_coef=field["entropy_coef"],
        _metrics=defaultdict(lambda: defaultdict(list)),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, c.entropy_BT, None),
    )
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    inputs = {
        "prompt_ids": torch.zeros(4, 1).long(),
        "prompt_mask": torch.ones(4, 1).long(),
        "completion_ids": torch.zeros(4, 6).long(),
        "completion_mask": c.mask_BT.long(),
        "advantages": c.adv_B,
        "old_per_token_logps": c.old_BT,
        "ref_per_token_logps": c.ref_BT,
        "num_items_in_batch": c.mask_BT.sum(),
    }
    if mode:  # as _generate_and_score_completions computes it; that method needs a model
        gap = (c.old_BT - c.sampler_BT) * c.mask_BT
        ratio = (gap.sum(-1, keepdim=True) if "sequence" in mode else gap).exp()
        inputs["importance_sampling_ratio"] = (
            ratio.clamp(max=3.0) if "truncate" in mode else ratio.masked_fill(ratio > 3.0, 0)
        )
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), logp_BT.grad


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_match_trl(name):
    if importlib.util.find_spec("trl"):
        wanted, slope = trl_loss(name)
    else:
        wanted, slope = json.loads(NUMBERS.read_text())[name]
    loss, gradient = ours(name)
    assert abs(loss - wanted) <= 1e-6
    torch.testing.assert_close(gradient, torch.as_tensor(slope), atol=1e-6, rtol=0)
    assert gradient.any()


# -- preference pairs ------------------------------------------------------------------------------

SCORES = ([0.5, -1.2, 3.0, 0.0, 12.0], [0.1, 0.7, -2.0, 0.0, -9.0])  # of chosen and rejected
WEIGHTS = ("score.weight", "model.layers.0.input_layernorm.weight")


def trl_pair_loss(model, inputs):
    """TRL's `compute_loss` on a stand-in for the trainer that has only the attributes it reads."""
    from trl.trainer.reward_trainer import RewardTrainer

    alone = lambda x: x
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=alone, gather_for_metrics=alone),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    loss = RewardTrainer.compute_loss(trainer, model, inputs)
    loss.backward()
    return loss.item()


def trl_scores():
    scores = torch.tensor(SCORES).flatten()[:, None].requires_grad_(True)
    model = lambda **inputs: SimpleNamespace(logits=scores)
    loss = trl_pair_loss(model, {"attention_mask": torch.ones(2 * len(SCORES[0]), 1)})
    return loss, scores.grad.view(2, -1).tolist()


def preferences():
    """Pairs of a prompt and two answers. Three share an answer, or two."""
    g = torch.Generator().manual_seed(5)
    some = lambda n: tuple(torch.randint(3, 64, (n,), generator=g).tolist())
    prompt, [a, b, c] = some(4), [some(n) for n in (7, 3, 12)]
    pairs = [(prompt, a, b), (prompt, c, a), (prompt, b, c), (some(9), some(2), some(6))]
    return [(prompt, (*chosen, 2), (*rejected, 2)) for prompt, chosen, rejected in pairs]


def trl_model():
    from trl.trainer.reward_trainer import DataCollatorForPreference

    model = transformers_reward_model("llama").requires_grad_(True)
    rows = [
        {"chosen_ids": [*prompt, *chosen], "rejected_ids": [*prompt, *rejected]}
        for prompt, chosen, rejected in preferences()
    ]
    loss = trl_pair_loss(model, DataCollatorForPreference(model.config.pad_token_id)(rows))
    gradients = {name: p.grad.tolist() for name, p in model.named_parameters()}
    return loss, {name: gradients[name] for name in WEIGHTS}


def pair_numbers(name, function):
    if importlib.util.find_spec("trl"):
        return function()
    return json.loads(NUMBERS.read_text())[name]


def test_pair_loss_and_gradient_match_trl():
    wanted, slope = pair_numbers("reward scores", trl_scores)
    scores = torch.tensor(SCORES, requires_grad=True)
    loss = bradley_terry(*scores).mean()
    loss.backward()
    assert abs(loss.item() - wanted) <= 1e-6
    torch.testing.assert_close(scores.grad, torch.tensor(slope), atol=1e-6, rtol=0)


@pytest.mark.parametrize("learner_tokens", [1, 40, 4096])
def test_gradient_of_a_reward_model_matches_trl(tmp_path, learner_tokens):
    wanted, gradients = pair_numbers("reward model", trl_model)
    model = our_reward_model("llama", tmp_path).requires_grad_(True)
    pairs = [
        Pair(str(prompt), (prompt, chosen), (prompt, rejected), {})
        for prompt, chosen, rejected in preferences()
    ]
    stats = accumulate_gradient(model, pairs, False, learner_tokens)
    assert abs(stats["loss"].item() - wanted) <= 1e-6
    parameters = dict(model.named_parameters())
    for name in WEIGHTS:
        gradient = torch.tensor(gradients[name])
        torch.testing.assert_close(parameters[name].grad, gradient, atol=1e-6, rtol=1e-5)
        assert gradient.abs().max() > 0.01


if __name__ == "__main__":
    numbers = {
        name: [loss, gradient.tolist()] for name in CASES for loss, gradient in [trl_loss(name)]
    }
    numbers |= {"reward scores": trl_scores(), "reward model": trl_model()}
    NUMBERS.write_text(
        "{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in numbers.items()) + "\n}\n"
    )
