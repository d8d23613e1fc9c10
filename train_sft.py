"""Supervised fine-tuning: base pre-training, cold start, rejection-sampled data, distillation.

Cross-entropy of the completion, its end token included [R1 §2.3.1] [R1 §2.3.3] [R1 §2.4]. Rows come from a JSONL file with
`prompt` and `completion`, or are made by the embedded tasks (`--data corpus`, `--data cold-start`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from r1mini import checkpoint, optim, tasks, tokenizer
from r1mini.batch import collate, shuffled, token_logprobs
from r1mini.config import autocast, option, require, run
from r1mini.config import device as pick_device
from r1mini.data import corpus_row, sft_rows
from r1mini.model import ModelConfig, Transformer

CORPUS_WINDOW = 16_384  # rows of the endless corpus that are made, sorted and batched at a time


@dataclass(frozen=True)
class Config:
    out: str = option("runs/sft", "folder for the trained model")
    model: str = option("base", "model folder or embedded model to start from; `new` starts from random weights")
    data: str = option("cold-start", "JSONL file with prompt and completion, or `cold-start`, or `corpus`")
    tasks: tuple[str, ...] = option(tasks.REASONING, "embedded tasks that cold-start rows are made of")
    rows: int = option(1500, "rows to make of cold-start or corpus; at most so many of a file (0: all)")
    epochs: int = option(2, "passes over the rows")
    batch_tokens: int = option(1024, "padded tokens per optimizer step")
    train_on_prompt: bool = option(False, "learn the prompt's tokens too, as pre-training does")
    optimizer: str = option("muon", "muon (matrices; AdamW for the rest) or adamw")
    learning_rate: float = option(2e-3, "peak learning rate")
    warmup: float = option(0.05, "share of the run to warm up over")
    final_lr: float = option(0.1, "last learning rate as a share of the peak; R1's SFT: 0.1")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    seed: int = option(0, "seed of the weights, the rows and their order")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    progress: bool = option(True, "show progress bars")
    bf16: bool = option(False, "compute in bfloat16 over fp32 weights")
    compile: bool = option(False, "torch.compile the model (CPU: needs a C++ compiler)")
    save_every: int = option(500, "steps between saved states; an interrupted run goes on from the last")
    # The shape of a `new` model.
    hidden_size: int = option(128, "width of a new model")
    layers: int = option(4, "layers of a new model")
    heads: int = option(4, "query heads of a new model")
    kv_heads: int = option(1, "key/value heads of a new model")
    intermediate_size: int = option(320, "MLP width of a new model")
    vocab_size: int = option(1024, "vocabulary of a new model's tokenizer, trained on its corpus")


PRETRAINING = {"model": "new", "data": "corpus", "epochs": 1, "train_on_prompt": True, "warmup": 0.01, "final_lr": 0.02,
               "weight_decay": 0.01, "save_every": 2000}
PRESETS = {
    "base": {**PRETRAINING, "out": "runs/base", "rows": 560_000, "batch_tokens": 2048, "learning_rate": 8e-3,
             "threads": 2},
    "student-base": {**PRETRAINING, "out": "runs/student-base", "rows": 40_000, "learning_rate": 6e-3,
                     "hidden_size": 64, "layers": 3, "heads": 2, "intermediate_size": 160},
}


def main(cfg: Config) -> dict:
    out = Path(cfg.out)
    check(cfg)
    if checkpoint.has_finished(out, asdict(cfg)):
        print(f"{out}: this run has finished already; nothing to do")
        return checkpoint.read_json(out / "run.json")
    device = pick_device(cfg.device, cfg.threads)
    torch.manual_seed(cfg.seed)
    if cfg.model == "new":
        sample = (corpus_row(cfg.seed, index) for index in range(min(cfg.rows, 20_000)))
        tokens = tokenizer.train((row["prompt"] + row["completion"] for row in sample), cfg.vocab_size)
        model = Transformer(ModelConfig(
            vocab_size=tokens.vocab_size, hidden_size=cfg.hidden_size, num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads,
            intermediate_size=cfg.intermediate_size, head_dim=cfg.hidden_size // cfg.heads,
            max_position_embeddings=1024))
        model.init_weights(cfg.seed)
        model.to(device)
    else:
        model, tokens = checkpoint.load(cfg.model, device)
    forward = torch.compile(token_logprobs, dynamic=True) if cfg.compile else token_logprobs
    steppers = optim.optimizers(model, cfg.optimizer, cfg.learning_rate, cfg.weight_decay)

    context = model.config.max_position_embeddings
    rows = None
    if cfg.data != "corpus":
        rows = encode(sft_rows(cfg.data, cfg.tasks, cfg.rows, cfg.seed), tokens, cfg, context)
    checkpoint.start_run(out, asdict(cfg))

    first, seconds, seen, window, loss = 0, 0.0, 0, [], float("nan")
    if state := checkpoint.load_state(out):
        first, seconds, seen = state["step"], state["seconds"], state["tokens"]
        window, loss = [torch.tensor(x, device=device) for x in state["window"]], state["loss"]
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimizers"]):
            stepper.load_state_dict(saved)
        print(f"{out}: going on from step {first}")
    checkpoint.keep_lines(out / "metrics.jsonl", lambda row: row["step"] < first)

    started = time.perf_counter() - seconds
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as log, tqdm(
        total=cfg.epochs, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}", leave=False,
        disable=None if cfg.progress else True,
    ) as bar:
        for step, (chosen, progress) in enumerate(batches(cfg, tokens, rows, context)):
            if step < first:
                continue
            batch = collate(chosen).to(device)
            with autocast(device, cfg.bf16):
                logp_BT, _ = forward(model, batch)
            count = sum(len(completion) - (not prompt) for prompt, completion in chosen)  # nothing precedes a first token
            loss_here = -logp_BT.sum() / count
            loss_here.backward()
            rate = optim.learning_rate_at(progress, cfg.learning_rate, cfg.warmup, cfg.final_lr)
            norm = optim.step(steppers, model.parameters(), rate, cfg.max_grad_norm)
            window.append(loss_here.detach())
            seen += count
            if step % 20 == 0:
                loss = float(torch.stack(window).mean())
                window.clear()
                log.write(json.dumps({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm,
                                      "num_tokens": seen, "epoch": progress * cfg.epochs,
                                      "seconds": round(time.perf_counter() - started, 3)}) + "\n")
                log.flush()
                bar.set_description(f"step {step} loss {loss:.4f}")
                bar.update(progress * cfg.epochs - bar.n)
            if cfg.save_every and (step + 1) % cfg.save_every == 0:
                checkpoint.save_state(out, {
                    "step": step + 1, "model": model.state_dict(), "tokens": seen,
                    "window": [float(x) for x in window], "loss": loss,
                    "optimizers": [stepper.state_dict() for stepper in steppers],
                    "seconds": time.perf_counter() - started})
    if window:
        loss = float(torch.stack(window).mean())
    checkpoint.save(out, model, tokens)
    summary = {"steps": step + 1, "loss": loss, "tokens": seen, "seconds": round(time.perf_counter() - started, 1)}
    checkpoint.finish_run(out, **summary)
    print(f"{out}: {summary['steps']} steps, {seen} tokens, loss {loss:.4f}, {summary['seconds']:.0f} s")
    return summary


def check(cfg: Config) -> None:
    made = cfg.data in ("corpus", "cold-start")
    require(cfg, epochs=cfg.epochs >= 1, rows=cfg.rows >= (1 if made else 0), batch_tokens=cfg.batch_tokens >= 1,
            learning_rate=cfg.learning_rate >= 0, warmup=0 <= cfg.warmup < 1, max_grad_norm=cfg.max_grad_norm > 0,
            save_every=cfg.save_every >= 0, heads=cfg.heads >= 1, layers=cfg.layers >= 1)
    require(cfg, kv_heads=cfg.kv_heads >= 1 and cfg.heads % cfg.kv_heads == 0,
            hidden_size=cfg.hidden_size >= 1 and cfg.hidden_size % (2 * cfg.heads) == 0)
    tasks.require(cfg.tasks)


def batches(cfg: Config, tokens: tokenizer.Tokenizer, rows: list | None, context: int) -> Iterator[tuple[list, float]]:
    """(rows, progress of the run from 0 to 1), in an order that depends on the seed alone. `rows` are all the rows,
    or None for the corpus, whose rows are made as they are needed."""
    if cfg.data == "corpus":
        parts = [(epoch, start) for epoch in range(cfg.epochs) for start in range(0, cfg.rows, CORPUS_WINDOW)]
    else:
        parts = [(epoch, 0) for epoch in range(cfg.epochs)]
    for number, (epoch, start) in enumerate(parts):
        if cfg.data == "corpus":
            indices = range(start, min(start + CORPUS_WINDOW, cfg.rows))
            rows = encode([corpus_row(cfg.seed, index) for index in indices], tokens, cfg, context)
        order = shuffled([len(p) + len(c) for p, c in rows], cfg.batch_tokens, f"{cfg.seed} {epoch} {start}")
        for index, group in enumerate(order):
            yield [rows[i] for i in group], (number + index / len(order)) / len(parts)


def encode(rows: list[dict[str, str]], tokens: tokenizer.Tokenizer, cfg: Config, context: int) -> list[tuple]:
    """(prompt ids, completion ids with the end token) of each row. Raises ValueError for one over the context."""
    prompts = tokens.encode_batch([row["prompt"] for row in rows])
    completions = [[*ids, tokens.end_id] for ids in tokens.encode_batch([row["completion"] for row in rows])]
    for prompt, completion in zip(prompts, completions):
        if len(prompt) + len(completion) > context:
            raise ValueError(f"--data {cfg.data}: a row of {len(prompt) + len(completion)} tokens does not fit the "
                             f"model's context of {context}")
    if cfg.train_on_prompt:
        return [([], prompt + completion) for prompt, completion in zip(prompts, completions)]
    return list(zip(prompts, completions))


if __name__ == "__main__":
    run(main, Config, PRESETS, __doc__)
