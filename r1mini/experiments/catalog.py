"""The experiments: a claim, the runs that compare, and what of them is shown.

A run is RL from the embedded base with the flags of `RL`, except for those that it changes; or the
same from a cold start, fine-tuning with the flags of `SFT`. Equal runs are shared.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mini.config import flag, format_value

Flags = dict[str, Any]

TASKS = ("countdown", "balance", "kinetics")
# R1-Zero in miniature: a rate at which the base learns in so few steps (docs/lora.md).
RL: Flags = {
    "model": "base",
    "tasks": TASKS,
    "reward": "accuracy,format:0.5",
    "steps": 10,
    "problems": 16,
    "completions": 8,
    "max_new_tokens": 256,
    "learning_rate": 1e-3,
    "learner_tokens": 2048,
    "show": 0,
}
SFT: Flags = {"model": "base", "tasks": TASKS}
EVALUATION: Flags = {"problems": 32, "samples": 4}
NOISE = Path(__file__).with_name("noise.py")  # {noise} in a reward


@dataclass(frozen=True)
class Arm:
    """A run: RL from the base; with `sft`, from a cold start. Without RL if `rl` is None."""

    label: str
    rl: Flags | None = field(default_factory=dict)  # flags of train_grpo.py, or of grpo_bugs.py
    sft: Flags | None = None  # flags of train_sft.py, or of sft_bugs.py

    @property
    def name(self) -> str:
        """The folder of its last run, from the flags that it changes."""
        return self.runs()[-1][1] if self.runs() else "base"

    @property
    def flags(self) -> str:
        """What it changes, as on the command lines."""
        parts = []
        if self.sft is not None:
            parts.append(f"SFT {as_text(self.sft)}")
        if self.rl is not None:
            parts.append(as_text(self.rl))
        return ", then RL ".join(parts).removesuffix(" ")

    def runs(self) -> list[tuple[str, str, Flags]]:
        """(script, folder, flags) of each run. RL after a cold start begins with its model."""
        runs, name = [], ""
        for kind, script, common, changes in (
            ("sft", "train_sft", SFT, self.sft),
            ("rl", "train_grpo", RL, self.rl),
        ):
            if changes is None:
                continue
            if "bug" in changes:
                script = script.replace("train_", "r1mini.experiments.") + "_bugs"
            name = as_folder(f"{name} {kind} {as_text(changes)}")
            flags = common | changes
            if "reward" in flags:
                flags["reward"] = flags["reward"].format(noise=NOISE)
            runs.append((script, name, flags))
        return runs

    def evaluation(self) -> Flags:
        """Flags of sample.py: held-out problems like those of RL."""
        like_rl = RL | (self.rl if self.rl is not None else self.sft or {})
        flags = {name: like_rl[name] for name in ("model", "tasks", "max_new_tokens")}
        from_base = "model" not in (self.sft or {})  # another tokenizer has no KL
        return EVALUATION | flags | ({"reference": RL["model"]} if from_base else {})


def as_text(flags: Flags) -> str:
    """
    >>> as_text({"clip_low": 1.0, "reward": "{noise}:coin"})
    '--clip-low 1.0 --reward noise.py:coin'
    """
    words = [f"{flag(name)} {format_value(value)}" for name, value in flags.items()]
    return " ".join(words).replace("{noise}", NOISE.name)


def as_folder(text: str) -> str:
    """
    >>> as_folder("rl --clip-low 1.0 --reward noise.py:coin")
    'rl-clip-low-1.0-reward-noise.py-coin'
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def before_and_after_rl(label: str, sft: Flags) -> tuple[Arm, Arm]:
    return Arm(label, None, sft), Arm(f"{label}, then RL", {}, sft)


@dataclass(frozen=True)
class Experiment:
    claim: str
    arms: tuple[Arm, ...]
    panels: dict[str, str]  # curves: metrics of metrics.jsonl, and their titles
    columns: tuple[str, ...]  # of the table, after pass@1: figures of the evaluation


DEFAULT = Arm("default")
BASE = Arm("base, no RL", rl=None)
ADDED = RL["reward"] + ",{noise}:one:2"
ACCURACY = {"rewards/accuracy/mean": "accuracy on training problems"}
FORMAT = {"rewards/format/mean": "format"}
LANGUAGE = {"rewards/language/mean": "language consistency"}
LENGTH = {"completions/mean_length": "length (tokens)"}
ENTROPY = {"entropy": "entropy (nats per token)"}
GRAD_NORM = {"grad_norm": "norm of the gradient"}
EQUAL = {"frac_reward_zero_std": "groups of equal rewards"}
MOVED = {"approx_kl": "KL from the sampler's policy, in a step"}
# A new model that knows nothing but what it is fine-tuned on, for a task without thinking.
FACTS: Flags = {"tasks": ("elements",)}
NEW: Flags = FACTS | {"model": "new", "layers": 2, "rows": 4000, "epochs": 3, "learning_rate": 8e-3}

EXPERIMENTS = {
    "baseline": Experiment(
        "Without a baseline, RL learns more slowly, because every reward pushes upwards.",
        (
            DEFAULT,
            Arm("baseline, not divided", {"scale": "none"}),
            Arm("no baseline, not divided", {"baseline": "none"}),
            Arm("the same, and 2 added to all rewards", {"baseline": "none", "reward": ADDED}),
        ),
        ACCURACY | LENGTH | ENTROPY,
        ("length", "entropy", "kl"),
    ),
    "deviation": Experiment(
        "Without dividing by the group's deviation, groups that are nearly solved or nearly "
        "hopeless count less.",
        (
            DEFAULT,
            Arm("divided by the deviation of the batch", {"scale": "batch"}),
            Arm("not divided", {"scale": "none"}),
        ),
        ACCURACY | LENGTH | GRAD_NORM,
        ("length", "entropy", "kl"),
    ),
    "group-size": Experiment(
        "At an equal number of completions, larger groups have better baselines but see fewer "
        "problems.",
        (
            Arm("2 completions of 64 problems", {"problems": 64, "completions": 2}),
            Arm("4 of 32", {"problems": 32, "completions": 4}),
            Arm("8 of 16 (default)"),
            Arm("16 of 8", {"problems": 8, "completions": 16}),
        ),
        ACCURACY | EQUAL | LENGTH,
        ("length", "entropy", "kl"),
    ),
    "loss-per": Experiment(
        "A loss per sequence forgives long wrong completions, so completions grow.",
        (
            Arm("per token (default)"),
            Arm("per sequence", {"loss_per": "sequence"}),
            Arm("divided by a constant", {"loss_per": "constant"}),
        ),
        ACCURACY | LENGTH | ENTROPY,
        ("length", "truncated", "entropy", "kl"),
    ),
    "clip": Experiment(
        "With many updates on the same rollouts, the clip keeps the policy near the one that "
        "sampled them.",
        (
            Arm("8 updates a step (default)"),
            Arm("1 update", {"minibatches": 1}),
            Arm("8 updates, no clip", {"clip_low": 1.0, "clip_high": 1e6}),
            Arm("64 updates", {"minibatches": 64}),
            Arm("64 updates, no clip", {"minibatches": 64, "clip_low": 1.0, "clip_high": 1e6}),
        ),
        ACCURACY | MOVED | ENTROPY,
        ("length", "entropy", "kl"),
    ),
    "kl": Experiment(
        "A KL term holds the policy near the base: too weak, it does nothing; too strong, nothing "
        "is learned.",
        (
            Arm("beta 0 (default)"),
            Arm("beta 0.001", {"beta": 0.001}),
            Arm("beta 0.1", {"beta": 0.1}),
            Arm("beta 1", {"beta": 1.0}),
        ),
        ACCURACY | ENTROPY | LENGTH,
        ("kl", "entropy", "length"),
    ),
    "temperature": Experiment(
        "Sampling and learning at different temperatures trains another policy than the one that "
        "is sampled.",
        (
            Arm("1 and 1 (default)"),
            Arm("0.7 and 0.7", {"temperature": 0.7}),
            Arm("sampled at 0.7, learned at 1", {"bug": "temperature"}),
        ),
        ACCURACY | ENTROPY | MOVED,
        ("entropy", "length", "kl"),
    ),
    "end-token": Experiment(
        "If the end token is not trained, completions do not learn to end, and RL cannot teach it.",
        (
            Arm("trained", FACTS, NEW),
            Arm("not trained in RL", FACTS | {"bug": "end-token"}, NEW),
            Arm("not trained in SFT", FACTS, NEW | {"bug": "end-token"}),
            Arm("not trained in SFT, no RL", None, NEW | {"bug": "end-token"}),
        ),
        ACCURACY | FORMAT | LENGTH,
        ("format", "length", "truncated"),
    ),
    "format-only": Experiment(
        "Rewarded for the format alone, the policy learns the format alone.",
        (
            Arm("accuracy and format (default)"),
            Arm("format alone", {"reward": "format"}),
            Arm("a reward drawn at random", {"reward": "{noise}:coin"}),
            BASE,
        ),
        ACCURACY | FORMAT | LENGTH,
        ("format", "length", "unparsed"),
    ),
    "accuracy-only": Experiment(
        "Accuracy alone teaches the format only as far as answers need it.",
        (Arm("accuracy and format (default)"), Arm("accuracy alone", {"reward": "accuracy"})),
        ACCURACY | FORMAT | LENGTH,
        ("format", "length", "unparsed"),
    ),
    "language": Experiment(
        "A reward for one language stops the mixing of languages, at a price in accuracy.",
        (
            Arm("no language reward (default)"),
            Arm("weight 0.5", {"reward": "accuracy,format:0.5,language:0.5"}),
            Arm("weight 2", {"reward": "accuracy,format:0.5,language:2"}),
        ),
        ACCURACY | LANGUAGE | LENGTH,
        ("language", "format", "length"),
    ),
    "cold-start": Experiment(
        "A cold start replaces the first steps of RL; more rows replace more of them.",
        (
            DEFAULT,
            *before_and_after_rl("50 rows", {"rows": 50}),
            *before_and_after_rl("500 rows", {"rows": 500}),
            *before_and_after_rl("1500 rows", {"rows": 1500}),
        ),
        ACCURACY | FORMAT | ENTROPY,
        ("format", "length", "entropy"),
    ),
    "long-sft": Experiment(
        "A model that was fine-tuned for too long explores less, and RL has less to choose from.",
        (
            DEFAULT,
            *before_and_after_rl("2 epochs", {"rows": 150, "epochs": 2}),
            *before_and_after_rl("30 epochs", {"rows": 150, "epochs": 30}),
        ),
        ACCURACY | ENTROPY | EQUAL,
        ("pass@4", "entropy", "length"),
    ),
    "noise": Experiment(
        "Wrong verdicts slow the learning down, but as long as most are right it learns.",
        (
            DEFAULT,
            Arm("10 % flipped", {"reward": "{noise}:flipped_10,format:0.5"}),
            Arm("30 % flipped", {"reward": "{noise}:flipped_30,format:0.5"}),
            Arm("50 %: at random", {"reward": "{noise}:coin,format:0.5"}),
        ),
        ACCURACY | FORMAT | LENGTH,
        ("format", "length", "kl"),
    ),
}
