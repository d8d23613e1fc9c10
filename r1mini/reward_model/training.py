"""Trains a reward model on preference pairs. [R1 §2.3.4]

    python -m r1mini.reward_model --model runs/r1/dev3 --data runs/r1/pairs.jsonl --out runs/rm

The model is a language model whose head is replaced by a scalar one, or a reward model to train
on. A row has `prompt`, `chosen` and `rejected`, as in TRL; other layouts are in docs/data.md.
Every answer of a batch is computed once, however many pairs it is in. The pairs of some prompts are
held out: the accuracy on them, not the loss, says what the model has learned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from r1mini import checkpoint
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.checkpoint.weights import CLASSIFIER, architecture
from r1mini.config import TrainOptions, option, validate
from r1mini.data.files import RowErrors, fingerprint
from r1mini.data.preferences import answer_template, encode_pairs, read_pairs
from r1mini.infra import distributed
from r1mini.infra.device import autocast, pick_device
from r1mini.infra.files import read_json
from r1mini.model.reward_model import RewardModel
from r1mini.reward_model.data import Pair, make_batches, micro_batches, split
from r1mini.reward_model.evaluation import evaluate, format_results, pair_scores
from r1mini.reward_model.loss import bradley_terry
from r1mini.training import memory, optim
from r1mini.training.run_state import Run
from r1mini.training.setup import load_model, prepare


@dataclass(frozen=True)
class Config(TrainOptions):
    out: str = option("runs/rm", "folder for the trained reward model")
    data: str = option("", "file of preference pairs (JSONL, JSON, either with .gz, CSV, Parquet)")
    rows: int = option(0, "pairs to read (0: all)", bounds="0 <= x")
    held_out: float = option(
        0.1, "share of the prompts whose pairs measure the accuracy", bounds="0 < x < 1"
    )
    epochs: int = option(1, "passes over the pairs; R1: 1", bounds="1 <= x")
    batch_pairs: int = option(256, "pairs per optimizer step, at most; R1: 256", bounds="1 <= x")
    learning_rate: float = option(
        1e-2, "peak learning rate; R1, with AdamW at 671B: 6e-6", bounds="0 <= x"
    )
    learner_tokens: int = option(
        4096, "tokens per micro-batch; affects memory, never the gradient", bounds="1 <= x"
    )
    save_every: int = option(
        500,
        "steps between saved states; an interrupted run resumes from the last (0: save only on "
        "signals)",
        bounds="0 <= x",
    )


def main(cfg: Config) -> dict:
    """Train a reward model. Returns the summary of the run."""
    validate(cfg)
    if not cfg.data:
        raise ValueError(
            "--data: give a file of preference pairs, such as python -m r1mini.reward_model.pairs "
            "writes"
        )
    run = Run(cfg.out, asdict(cfg) | fingerprint(cfg.data), logs=("metrics.jsonl",))
    if run.has_finished():
        return run.record()
    device = pick_device(cfg.device, cfg.threads, cfg.deterministic, cfg.tf32)
    free = memory.available(device)
    needed = partial(memory.training_bytes, tokens=cfg.learner_tokens, cfg=cfg)
    load = partial(load_or_convert, seed=cfg.seed)
    model, tokenizer, template = load_model(cfg, run, device, needed, load)
    model, optimizers = prepare(model, cfg)
    template = answer_template(template)
    pairs = load_pairs(cfg, tokenizer, template, model.config.max_position_embeddings)
    training, held_out = split(pairs, cfg.held_out, cfg.data)
    batches = []
    for epoch in range(cfg.epochs):
        batches += make_batches(training, cfg.batch_pairs, Random(f"{cfg.seed} {epoch}"))
    worst_case = partial(worst_case_step, cfg, model, training)
    memory.dry_run(worst_case, needed(model.config), free, device)
    non_finite = optim.NonFiniteSteps()
    run.start(model, tokenizer, optimizers)
    with run:
        for step in run.steps(len(batches)):
            run.show_progress(step / len(batches), f"{step}/{len(batches)}")
            stats = memory.retry_with_half(
                partial(accumulate_gradient, model, batches[step], cfg.bf16),
                cfg.learner_tokens,
                model,
                cfg,
            )
            progress = (step + 1) / len(batches)
            rate = optim.learning_rate_at(progress, cfg.learning_rate, cfg.warmup, cfg.final_lr)
            run.begin_update()  # from here on, a signal waits for the end of the step
            loss = stats["loss"]
            norm = optim.step(optimizers, model.parameters(), rate, cfg.max_grad_norm, loss)
            non_finite.check(norm, f"{run.name}: step {step}", ())
            if math.isfinite(norm):
                log_step(run, step, len(batches), stats, rate, norm)
    results = evaluate(distributed.gather_model(model), held_out, cfg.learner_tokens, cfg.bf16)
    summary = run.finish(steps=len(batches), **results)
    print(format_results(results))
    print(f"{run.out}: {run.seconds:.0f} s; next: --reward model={run.out} in train_grpo.py")
    return summary


# -- model and data --------------------------------------------------------------------------------


def load_or_convert(
    name: str, device: torch.device, seed: int, **options: Any
) -> tuple[RewardModel, Tokenizer]:
    """A reward model's folder as it is; a language model with a new head in place of its own."""
    config = checkpoint.resolve(name) / "config.json"
    if config.is_file() and architecture(read_json(config)).endswith(CLASSIFIER):
        return checkpoint.load(name, device, kind=RewardModel, **options)
    language_model, tokenizer = checkpoint.load(name, device, **options)
    return convert(language_model, seed), tokenizer


def convert(language_model, seed: int) -> RewardModel:
    """The language model with a random scalar head; they share the decoder's weights."""
    with torch.device("meta"):
        model = RewardModel(language_model.config)
    model.model, model.rope_bits = language_model.model, language_model.rope_bits
    model.hf_config = language_model.hf_config
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(model.score.weight.shape)
    weight.normal_(0, model.config.initializer_range, generator=generator)
    model.score.weight = torch.nn.Parameter(weight.to(language_model.device))
    return model


def load_pairs(
    cfg: Config, tokenizer: Tokenizer, template: ChatTemplate, context: int
) -> list[Pair]:
    """The encoded pairs of `--data`. A pair that does not fit the context is refused, not cut."""
    path, errors = Path(cfg.data), RowErrors(cfg.skip_bad)
    rows = read_pairs(
        path, prompt_key=cfg.prompt_key, skip_bad=cfg.skip_bad, decontaminate=cfg.decontaminate
    )
    places = list(rows)[: cfg.rows or None]
    read = [rows[place] for place in places]
    encoded = encode_pairs(read, tokenizer, template, context, places, errors)
    if errors.messages:
        print(f"{path}: {sum(map(bool, encoded))} pairs{errors.summary()}", flush=True)
    return [
        Pair(repr(row.prompt), *(tuple(map(tuple, answer)) for answer in answers), row.columns)
        for row, answers in zip(read, encoded)
        if answers
    ]


# -- one step --------------------------------------------------------------------------------------


def accumulate_gradient(
    model: RewardModel, pairs: Sequence[Pair], bf16: bool, tokens: int
) -> dict[str, Tensor]:
    """Add up the gradient of the mean loss of the pairs, in micro-batches with a token limit.
    Returns that loss and the accuracy."""
    totals = torch.zeros(2, device=model.device)
    parts = micro_batches(pairs, tokens)
    for part, factor in distributed.assign_micro_batches(parts):
        with autocast(model.device, bf16):
            chosen_P, rejected_P = pair_scores(model, part)
        loss = factor * bradley_terry(chosen_P, rejected_P).sum() / len(pairs)
        loss.backward()
        correct = (chosen_P > rejected_P) + 0.5 * (chosen_P == rejected_P)
        totals += torch.stack([loss.detach(), factor * correct.sum() / len(pairs)])
    loss, correct = distributed.all_reduce_sum(totals)
    return {"loss": loss, "accuracy": correct}


def worst_case_step(cfg: Config, model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Learn from a full micro-batch of pairs as long as the longest, without the optimizer."""
    longest = max(pairs, key=lambda pair: sum(map(len, pair.chosen + pair.rejected)))
    size, batch = sum(map(len, longest.chosen + longest.rejected)), []
    for number in range(min(cfg.batch_pairs, max(1, cfg.learner_tokens // size))):
        prompt = (number % 256,) * len(longest.chosen[0])  # another one, or pairs would be shared
        chosen, rejected = ((prompt, answer) for _, answer in (longest.chosen, longest.rejected))
        batch.append(longest._replace(chosen=chosen, rejected=rejected))
    accumulate_gradient(model, batch, cfg.bf16, cfg.learner_tokens)
    model.zero_grad()


def log_step(
    run: Run, step: int, steps: int, stats: Mapping[str, Tensor], rate: float, norm: float
) -> None:
    values = {name: float(value) for name, value in stats.items()}
    seconds = round(run.seconds, 3)
    run.write(
        "metrics.jsonl",
        {"step": step, **values, "learning_rate": rate, "grad_norm": norm, "seconds": seconds},
    )
    if step % 20 == 0 or step + 1 == steps:
        print(
            f"{run.name} {step + 1}/{steps}: loss {values['loss']:.3f} training "
            f"accuracy {values['accuracy']:.2f}",
            flush=True,
        )
