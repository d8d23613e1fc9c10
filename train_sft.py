"""Supervised fine-tuning: base pre-training, cold start, rejection-sampled data, distillation.

Cross-entropy of the completion, its end token included [R1 §2.3.1] [R1 §2.3.3] [R1 §2.4]; of a conversation, every turn of
the assistant's. Rows come from a file of any layout of formats.py, or are made by the embedded tasks (`--data corpus`, `--data
cold-start`). Rows of like lengths share a batch; `--pack` takes rows of any length until it is full.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from r1mini import checkpoint, distributed, memory, optim, state, tasks, template, tokenizer
from r1mini.batch import collate, filled, packed, shuffled, token_logprobs
from r1mini.config import autocast, option, refuse_moot, require, run
from r1mini.config import device as pick_device
from r1mini.data import Bad, cold_start, corpus_row, evaluation_ngrams, fingerprint, learnable
from r1mini.formats import Row, conversation
from r1mini.model import ModelConfig, Transformer

LOGS = ("metrics.jsonl",)
CORPUS_WINDOW = 16_384  # rows of the endless corpus that are made, sorted and batched at a time


@dataclass(frozen=True)
class Config:
    out: str = option("runs/sft", "folder for the trained model")
    model: str = option("base", "model folder or embedded model to start from; `new` starts from random weights")
    data: str = option("cold-start", "file of rows (JSONL, JSON, either with .gz, CSV, Parquet), or `cold-start`, or `corpus`")
    prompt_key: str = option("", "column of the data's prompts, where it is none of a known layout")
    answer_key: str = option("", "column of what is to be learned")
    template: str = option("auto", "how messages become the model's text: chat (the template in the model folder), r1-zero, "
                                   "plain; auto: chat if there is one, else plain, and rows that are text stay as they are")
    skip_bad: bool = option(False, "leave out and count what is wrong in the data, instead of stopping at its line")
    decontaminate: tuple[str, ...] = option((), "evaluation files; data sharing ten words in a row with them is left out")
    tasks: tuple[str, ...] = option(tasks.REASONING, "embedded tasks that cold-start rows are made of")
    rows: int = option(1500, "rows to make of cold-start or corpus; at most so many of a file (0: all)")
    epochs: int = option(2, "passes over the rows")
    batch_tokens: int = option(1024, "padded tokens per optimizer step")
    pack: bool = option(False, "rows of any length share a batch, which is filled to the last token, instead of rows of like lengths")
    train_on_prompt: bool = option(False, "learn the prompt's tokens too, as pre-training does")
    optimizer: str = option("muon", "muon (matrices; AdamW for the rest) or adamw")
    optimizer_on: str = option("device", "where its moments are between steps: device, or cpu (slower, the same bits)")
    learning_rate: float = option(2e-3, "peak learning rate")
    warmup: float = option(0.05, "share of the run to warm up over")
    final_lr: float = option(0.1, "last learning rate as a share of the peak; R1's SFT: 0.1")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    seed: int = option(0, "seed of the weights, the rows and their order")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    deterministic: bool = option(False, "on CUDA, kernels that give the same bits each time; slower (a CPU's always do)")
    progress: bool = option(True, "show progress bars")
    bf16: bool = option(False, "compute in bfloat16 over fp32 weights")
    gradient_checkpointing: bool = option(False, "compute each layer again in the backward pass: less memory, a third more time")
    compile: bool = option(False, "torch.compile the model (CPU: needs a C++ compiler)")
    save_every: int = option(500, "steps between saved states; an interrupted run goes on from the last (0: only signals save)")
    keep: int = option(2, "saved states that are kept: where the last is damaged, the one before it is gone on from")
    allow_changes: bool = option(False, "go on with other flags or data than the run in --out had, as with fewer tokens at a time "
                                        "after it ran out of memory; each change is told")
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
    "base": {**PRETRAINING, "out": "runs/base", "rows": 700_000, "batch_tokens": 2048, "learning_rate": 8e-3,
             "threads": 2},
    "student-base": {**PRETRAINING, "out": "runs/student-base", "rows": 40_000, "learning_rate": 6e-3,
                     "hidden_size": 64, "layers": 3, "heads": 2, "intermediate_size": 160},
}


def main(cfg: Config) -> dict:
    out = Path(cfg.out)
    check(cfg)
    settings = asdict(cfg) | fingerprint(cfg.data)
    if state.has_finished(out, settings):
        print(f"{out}: this run has finished already; nothing to do")
        return checkpoint.read_record(out / "run.json")
    device = pick_device(cfg.device, cfg.threads, cfg.deterministic)
    free = memory.available(device)
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
        form = template.plain(tokenizer.END)
    else:
        model, tokens = checkpoint.load(cfg.model, device, fits=lambda shape: memory.require(needs(cfg, shape), device, cfg))
        form = template.load(cfg.model, cfg.template)
        tokens = form.fit(tokens)
    model.gradient_checkpointing = cfg.gradient_checkpointing
    if cfg.compile:
        model.compile_layers()
    model = distributed.shard(model)
    steppers = optim.optimizers(model, cfg.optimizer, cfg.learning_rate, cfg.weight_decay, state_on=cfg.optimizer_on)

    context = model.config.max_position_embeddings
    rows = None
    if cfg.data != "corpus":
        rows = load(cfg, tokens, form, context)
    longest, count = (max(sum(map(len, row)) for row in rows), len(rows)) if rows else (context, cfg.rows)
    memory.rehearse(partial(worst, cfg, model, longest, count, device), needs(cfg, model.config), free, device)
    distributed.agree("what --data holds", settings.get("data_sha256"))
    state.start_run(out, settings)
    resumed = state.resume(out, settings, model, steppers, LOGS)
    started, position = time.perf_counter() - resumed["seconds"], resumed.get("position", (0, 0))
    seen, window, loss = resumed.get("tokens", 0), resumed.get("window", []), resumed.get("loss", math.nan)
    window, step = [torch.tensor(x, device=device) for x in window], resumed["step"] - 1
    skipped = optim.Skipped()
    keeper = state.Keeper(out, settings, resumed["step"], LOGS, lambda: (
        {"seconds": time.perf_counter() - started, "position": position, "tokens": seen, "loss": loss,
         "window": [float(x) for x in window]}, state.files(model, tokens, steppers)))

    with distributed.log(out / LOGS[0]) as log, keeper, tqdm(
        total=cfg.epochs, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}", leave=False,
        disable=None if cfg.progress else True,
    ) as bar:
        for step, (chosen, progress, after) in enumerate(batches(cfg, tokens, rows, context, position), resumed["step"]):
            here, count, bad = memory.in_halves(lambda size: gradient(cfg, model, chosen, size, device), cfg.batch_tokens,
                                                model, cfg)
            rate = optim.learning_rate_at(progress, cfg.learning_rate, cfg.warmup, cfg.final_lr)
            keeper.hold()
            norm = optim.step(steppers, model.parameters(), rate, cfg.max_grad_norm, here)
            skipped(norm, f"{out.name}: step {step}", lambda: (
                repr(tokens.decode(sum(row, []))[:60]) for row in bad() or chosen))
            if math.isfinite(norm):
                window.append(here)
                seen += count
            if step % 20 == 0 and math.isfinite(norm):
                loss = float(torch.stack(window).mean())
                window.clear()
                log.write(json.dumps({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm,
                                      "num_tokens": seen, "epoch": progress * cfg.epochs,
                                      "seconds": round(time.perf_counter() - started, 3)}) + "\n")
                log.flush()
                bar.set_description(f"step {step} loss {loss:.4f}")
                bar.update(progress * cfg.epochs - bar.n)
            position = after
            keeper.done(step + 1)
    if window:
        loss = float(torch.stack(window).mean())
    if not seen:
        raise ValueError(f"{out}: no update was made, so there is nothing to save")
    checkpoint.save(out, distributed.whole(model), tokens)
    summary = {"steps": step + 1, "loss": loss, "tokens": seen, "seconds": round(time.perf_counter() - started, 1)}
    state.finish_run(out, **summary)
    print(f"{out}: {summary['steps']} steps, {seen} tokens, loss {loss:.4f}, {summary['seconds']:.0f} s; "
          f"now: python sample.py --model {out}")
    return summary


def needs(cfg: Config, shape: ModelConfig) -> dict[str, int]:
    """Bytes by what they are for."""
    return memory.training(shape, cfg.batch_tokens, optimizer=cfg.optimizer, optimizer_on=cfg.optimizer_on,
                           gradient_checkpointing=cfg.gradient_checkpointing, ranks=distributed.ranks())


def worst(cfg: Config, model: Transformer, longest: int, rows: int, device: torch.device) -> None:
    """Learns from a full batch of rows as long as the longest, but without the optimizer."""
    gradient(cfg, model, memory.longest_rows(cfg.batch_tokens, rows, 0, longest), cfg.batch_tokens, device)
    model.zero_grad()


def gradient(cfg: Config, model: Transformer, rows: Sequence[tuple], size: int, device: torch.device
             ) -> tuple[Tensor, int, Callable[[], list[tuple]]]:
    """Adds the gradient of the rows, in passes over at most so many tokens. Returns the loss, the number of tokens that were
    learned, and what finds the rows whose loss is not finite."""
    mine, counted = distributed.rows(rows)
    parts = [[mine[i] for i in part] for part in filled([sum(map(len, row)) for row in mine], range(len(mine)), size)]
    made = [collate(part) for part in parts]
    count = int(distributed.total(sum(batch.target_BT.sum() for batch in made) * int(counted)))
    loss, finite = torch.zeros((), device=device), []
    for batch in made:
        batch = batch.to(device)
        with autocast(device, cfg.bf16):
            logp_BT = distributed.through(token_logprobs, model, batch)
        here = -counted * logp_BT.sum() / count
        here.backward()
        loss = loss + here.detach()
        finite.append(logp_BT.detach().isfinite().all(-1))
    bad = lambda: distributed.gather([row for part, good_B in zip(parts, finite)
                                      for row, good in zip(part, good_B.tolist()) if not good])
    return distributed.total(loss), count, bad


def check(cfg: Config) -> None:
    made = cfg.data in ("corpus", "cold-start")
    require(cfg, epochs=cfg.epochs >= 1, rows=cfg.rows >= (1 if made else 0), batch_tokens=cfg.batch_tokens >= 1,
            learning_rate=cfg.learning_rate >= 0, warmup=0 <= cfg.warmup < 1, max_grad_norm=cfg.max_grad_norm > 0,
            save_every=cfg.save_every >= 0, keep=cfg.keep >= 1, heads=cfg.heads >= 1, layers=cfg.layers >= 1)
    require(cfg, kv_heads=cfg.kv_heads >= 1 and cfg.heads % cfg.kv_heads == 0,
            hidden_size=cfg.hidden_size >= 1 and cfg.hidden_size % (2 * cfg.heads) == 0)
    tasks.require(cfg.tasks, judged=False)
    refuse_moot(cfg, moot(cfg))


def moot(cfg: Config) -> dict[str, str]:
    """Flags that have no effect beside the others, and why."""
    needs = {name: (cfg.data not in ("corpus", "cold-start"), f"--data {cfg.data} is no file")
             for name in ("prompt_key", "answer_key", "template", "skip_bad", "decontaminate")}
    needs["tasks"] = (cfg.data == "cold-start", f"only --data cold-start is made of tasks, not {cfg.data}")
    needs |= {name: (cfg.model == "new", "only a --model new takes its shape from flags")
              for name in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size")}
    needs["optimizer_on"] = (cfg.device != "cpu", "--device cpu is where they are")
    needs["deterministic"] = (cfg.device != "cpu", "--device cpu gives the same bits anyway")
    if cfg.model == "new":
        needs["template"] = (False, "a --model new has none")
    return {name: why for name, (met, why) in needs.items() if not met}


def batches(cfg: Config, tokens: tokenizer.Tokenizer, rows: list | None, context: int, position: Sequence[int] = (0, 0)
            ) -> Iterator[tuple[list, float, tuple[int, int]]]:
    """(rows, progress of the run from 0 to 1, position behind them), in an order that depends on the seed alone. `rows` are
    all the rows, or None for the corpus, whose rows are made as they are needed. A position is (part, batches of it): what
    lies before it is not made again."""
    if cfg.data == "corpus":
        parts = [(epoch, start) for epoch in range(cfg.epochs) for start in range(0, cfg.rows, CORPUS_WINDOW)]
    else:
        parts = [(epoch, 0) for epoch in range(cfg.epochs)]
    for number, (epoch, start) in enumerate(parts):
        if number < position[0]:
            continue
        if cfg.data == "corpus":
            indices = range(start, min(start + CORPUS_WINDOW, cfg.rows))
            made = [corpus_row(cfg.seed, index) for index in indices]
            rows = encode(made, tokens, template.plain(tokenizer.END), cfg, context)
        arrange = packed if cfg.pack else shuffled
        order = arrange([sum(map(len, row)) for row in rows], cfg.batch_tokens, f"{cfg.seed} {epoch} {start}")
        for index, group in enumerate(order):
            if (number, index) >= tuple(position):
                yield [rows[i] for i in group], (number + index / len(order)) / len(parts), (number, index + 1)


def load(cfg: Config, tokens: tokenizer.Tokenizer, form: template.Template, context: int) -> list[tuple]:
    """The encoded rows of a file, or of the cold start; ValueError for a row over the context, or that is bad otherwise."""
    if cfg.data == "cold-start":
        return encode(cold_start(cfg.tasks, cfg.rows, cfg.seed), tokens, form, cfg, context)
    path, bad = Path(cfg.data), Bad(cfg.skip_bad)
    rows = learnable(path, cfg.prompt_key, cfg.answer_key, bad, evaluation_ngrams(cfg.decontaminate))
    if 0 < cfg.rows < len(rows):
        print(f"{path}: the first {cfg.rows} of them are taken (--rows)", flush=True)
        rows = dict(islice(rows.items(), cfg.rows))
    bad.found.clear()  # these are told already
    found = encode(list(rows.values()), tokens, form, cfg, context, list(rows), bad)
    if not found:
        raise ValueError(f"{path}: no row fits the model's context of {context}")
    if bad.found:
        print(f"{path}: {len(found)} rows{bad.told()}", flush=True)
    return found


def encode(rows: Sequence[Row], tokens: tokenizer.Tokenizer, form: template.Template, cfg: Config, context: int,
           places: Sequence[str] = (), bad: Bad = Bad()) -> list[tuple]:
    """The ids of each row's stretches, given and learned by turns: (prompt, completion with the end token) where a row is text.
    One over the context goes to `bad`."""
    stretches = []
    for row, place in zip(rows, places or repeat(f"--data {cfg.data}")):
        try:
            stretches.append((row, place, stretch(row, form)))
        except ValueError as error:  # the template refuses it
            bad(f"{place}: {error}")
    ids = iter(tokens.encode_batch([text for *_, texts in stretches for text in texts]))
    found = []
    for row, place, texts in stretches:
        made = [next(ids) for _ in texts]
        if "text" in row or isinstance(row.get("prompt"), str) and not form.wraps:
            made[-1] = [*made[-1], tokens.end_id]
        bare = sum(made, [])
        whole = tokens.begun(bare)
        if whole is not bare:
            made[0] = [*tokens.begin_ids, *made[0]]
        if len(whole) > context:
            bad(f"{place}: a row of {len(whole)} tokens does not fit the model's context of {context}")
        else:
            found.append(([], whole) if cfg.train_on_prompt else tuple(made))
    return found


def stretch(row: Row, form: template.Template) -> list[str]:
    """The text of a row, cut where what is given and what is learned meet; the first part is given. Text is taken as it is, of
    messages the assistant's turns are learned, but none in a prompt with a completion of its own.

    >>> stretch({"messages": [{"role": role, "content": role[:1]} for role in ("user", "assistant", "user")]}, template.plain("$"))
    ['u\\n', 'a$', 'u\\n']
    """
    if "text" in row:
        return ["", row["text"]]
    if isinstance(row.get("prompt"), str) and not form.wraps:
        return [row["prompt"], row["completion"]]
    found = [""]
    for text, learned in form.pieces(conversation(row), given=len(conversation(row, ("prompt",)))):
        if learned == (len(found) % 2 == 0):
            found[-1] += text
        else:
            found.append(text)
    return found


if __name__ == "__main__":
    run(distributed.together(main), Config, PRESETS, __doc__, moot)
