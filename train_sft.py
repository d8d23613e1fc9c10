"""Supervised fine-tuning: base pre-training, cold start, rejection-sampled data, distillation.

The loss is the cross-entropy of the completion with its end token [R1 §2.3.1] [R1 §2.3.3]
[R1 §2.4]; in a conversation, of every assistant turn. Rows come from a file of any known layout, or
the embedded tasks generate them (`--data corpus`, `--data cold-start`). Rows of similar length
share a batch; `--pack` fills batches with rows of any length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from r1mini import tasks
from r1mini.checkpoint.chat_template import ChatTemplate, plain_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT, Tokenizer
from r1mini.checkpoint.tokenizer import train as train_tokenizer
from r1mini.config import PolicyOptions, option, run_script, validate
from r1mini.data.files import RowErrors, fingerprint
from r1mini.data.sft import Segments, encode_rows, sft_rows
from r1mini.infra import distributed
from r1mini.infra.device import autocast, pick_device
from r1mini.model.config import ModelConfig
from r1mini.model.init import init_weights
from r1mini.model.transformer import Transformer
from r1mini.tasks.corpus import cold_start_rows, document
from r1mini.training import memory, optim
from r1mini.training.logprobs import collate, token_logprobs
from r1mini.training.micro_batches import length_bucketed, pack_greedily, packed_batches
from r1mini.training.run_state import Run
from r1mini.training.setup import load_policy, peak_rate, prepare, trains_adapters

Finite = Sequence[tuple[list[Segments], Tensor]]  # rows, and whether the loss of each is finite
CORPUS_WINDOW = 16_384  # rows of the endless corpus to generate, sort and batch at a time
NEW = "model=new"


@dataclass(frozen=True)
class Config(PolicyOptions):
    out: str = option("runs/sft", "folder for the trained model")
    data: str = option(
        "cold-start",
        "file of rows (JSONL, JSON, either with .gz, CSV, Parquet), or `cold-start`, or `corpus`",
    )
    model: str = option(
        "base", "model folder, embedded model or hub id to start from; `new`: random weights"
    )
    template: str = option(
        "auto",
        "how messages become text: chat (the model's own template), r1-zero or plain; auto: chat "
        "if the model has a template, else plain; rows of text are used unchanged",
        choices=("auto", "chat", "r1-zero", "plain"),
        when="data!=cold-start|corpus and model!=new",
    )
    tasks: tuple[str, ...] = option(
        tasks.REASONING, "embedded tasks that generate the cold-start rows", when="data=cold-start"
    )
    rows: int = option(
        1500, "rows to generate for cold-start or corpus; limit of a file (0: all)", bounds="0 <= x"
    )
    epochs: int = option(2, "passes over the rows", bounds="1 <= x")
    batch_tokens: int = option(1024, "padded tokens per optimizer step", bounds="1 <= x")
    pack: bool = option(False, "fill each batch with rows of any length, not of similar length")
    train_on_prompt: bool = option(False, "also learn the prompt's tokens, as in pre-training")
    learning_rate: float = option(
        2e-3, "peak learning rate", bounds="0 <= x", when="!lora_learning_rate"
    )
    save_every: int = option(
        500,
        "steps between saved states; an interrupted run resumes from the last (0: save only on "
        "signals)",
        bounds="0 <= x",
    )
    # The shape of a new model.
    hidden_size: int = option(128, "width of a new model", bounds="1 <= x", when=NEW)
    layers: int = option(4, "layers of a new model", bounds="1 <= x", when=NEW)
    heads: int = option(4, "query heads of a new model", bounds="1 <= x", when=NEW)
    kv_heads: int = option(1, "key/value heads of a new model", bounds="1 <= x", when=NEW)
    intermediate_size: int = option(320, "MLP width of a new model", bounds="1 <= x", when=NEW)
    vocab_size: int = option(
        1024, "vocabulary of a new model's tokenizer, trained on its corpus", when=NEW
    )


PRETRAINING = {
    "model": "new",
    "data": "corpus",
    "epochs": 1,
    "train_on_prompt": True,
    "warmup": 0.01,
    "final_lr": 0.02,
    "weight_decay": 0.01,
    "save_every": 2000,
}
PRESETS = {
    "base": {
        **PRETRAINING,
        "out": "runs/base",
        "rows": 800_000,
        "batch_tokens": 2048,
        "learning_rate": 8e-3,
        "bf16": True,
    },
    "student-base": {
        **PRETRAINING,
        "out": "runs/student-base",
        "rows": 40_000,
        "learning_rate": 6e-3,
        "hidden_size": 64,
        "layers": 3,
        "heads": 2,
        "intermediate_size": 160,
    },
}


def main(cfg: Config) -> dict:
    """Train a model. Returns the summary of the run."""
    check(cfg)
    run = Run(cfg.out, asdict(cfg) | fingerprint(cfg.data), logs=("metrics.jsonl",))
    if run.has_finished():
        return run.record()
    device = pick_device(cfg.device, cfg.threads, cfg.deterministic, cfg.tf32)
    free = memory.available(device)
    needed = partial(memory.training_bytes, tokens=cfg.batch_tokens, cfg=cfg)
    if cfg.model == "new":
        trains_adapters(cfg)  # checks the flags
        model, tokenizer, template = new_model(cfg)
    else:
        model, tokenizer, template = load_policy(cfg, run, device, needed)
    model, optimizers = prepare(model.to(device), cfg)
    peak, non_finite = peak_rate(cfg, model), optim.NonFiniteSteps()
    context = model.config.max_position_embeddings
    rows = None if cfg.data == "corpus" else load_rows(cfg, tokenizer, template, context)
    worst_case = partial(worst_case_step, cfg, model, rows)
    memory.dry_run(worst_case, needed(model.config), free, device)
    run.start(model, tokenizer, optimizers)

    values = {"position": (0, 0), "tokens": 0, "loss": math.nan, "recent_losses": []} | run.values
    values["recent_losses"] = [torch.tensor(x, device=device) for x in values["recent_losses"]]
    run.values, step = values, run.step
    with run:
        batches = make_batches(cfg, tokenizer, rows, context, values["position"])
        for batch, progress, position in batches:
            loss_text = f" loss {values['loss']:.4f}" if values["tokens"] else ""
            run.show_progress(progress, f"step {step}{loss_text}")
            loss, count, finite = memory.retry_with_half(
                partial(accumulate_gradient, cfg, model, batch), cfg.batch_tokens, model, cfg
            )
            rate = optim.learning_rate_at(progress, peak, cfg.warmup, cfg.final_lr)
            run.begin_update()  # from here on, a signal waits for the end of the step
            norm = optim.step(optimizers, model.parameters(), rate, cfg.max_grad_norm, loss)
            non_finite.check(norm, f"{run.name}: step {step}", bad_rows(tokenizer, batch, finite))
            if math.isfinite(norm):
                values["recent_losses"].append(loss)
                values["tokens"] += count
                if step % 20 == 0:
                    values["loss"] = float(torch.stack(values["recent_losses"]).mean())
                    values["recent_losses"] = []
                    run.write(
                        "metrics.jsonl",
                        {
                            "step": step,
                            "loss": values["loss"],
                            "learning_rate": rate,
                            "grad_norm": norm,
                            "num_tokens": values["tokens"],
                            "epoch": progress * cfg.epochs,
                            "seconds": round(run.seconds, 3),
                        },
                    )
            values["position"], step = position, step + 1
            run.end_step(step)
    if not values["tokens"]:
        raise ValueError(f"{run.out}: no update was made, so there is nothing to save")
    if values["recent_losses"]:
        values["loss"] = float(torch.stack(values["recent_losses"]).mean())
    summary = run.finish(steps=step, loss=values["loss"], tokens=values["tokens"])
    print(
        f"{run.out}: {step} steps, {summary['tokens']} tokens, loss {summary['loss']:.4f}, "
        f"{summary['seconds']:.0f} s; next: python sample.py --model {run.out}"
    )
    return summary


def check(cfg: Config) -> None:
    """Raises ValueError for flags that conflict."""
    validate(cfg)
    tasks.usable(cfg.tasks, judged=False)
    if cfg.rows < 1 and cfg.data in ("corpus", "cold-start"):
        raise ValueError(f"--rows {cfg.rows}: must be at least 1 with --data {cfg.data}")
    if cfg.model == "new" and cfg.lora_rank:
        raise ValueError(f"--lora-rank {cfg.lora_rank}: --model new has no weights to freeze")
    if cfg.heads % cfg.kv_heads:
        raise ValueError(f"--kv-heads {cfg.kv_heads}: must divide --heads {cfg.heads}")
    if cfg.hidden_size % (2 * cfg.heads):
        raise ValueError(
            f"--hidden-size {cfg.hidden_size}: must be a multiple of twice --heads {cfg.heads}"
        )


def new_model(cfg: Config) -> tuple[Transformer, Tokenizer, ChatTemplate]:
    """A model with random weights, and a tokenizer trained on the corpus."""
    rows = (document(cfg.seed, index) for index in range(min(cfg.rows, 20_000)))
    tokenizer = train_tokenizer((row["prompt"] + row["completion"] for row in rows), cfg.vocab_size)
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=cfg.hidden_size,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            intermediate_size=cfg.intermediate_size,
            head_dim=cfg.hidden_size // cfg.heads,
            max_position_embeddings=1024,
        )
    )
    init_weights(model, cfg.seed)
    return model, tokenizer, plain_template(END_OF_TEXT)


def load_rows(
    cfg: Config, tokenizer: Tokenizer, template: ChatTemplate, context: int
) -> list[Segments]:
    """The encoded rows of a file, or of the cold start. Raises ValueError for a bad row, or one
    that does not fit the context."""
    if cfg.data == "cold-start":
        rows = cold_start_rows(cfg.tasks, cfg.rows, cfg.seed)
        return encode_rows(rows, tokenizer, template, context, cfg.train_on_prompt)
    path, errors = Path(cfg.data), RowErrors(cfg.skip_bad)
    rows = sft_rows(
        path,
        prompt_key=cfg.prompt_key,
        answer_key=cfg.answer_key,
        skip_bad=cfg.skip_bad,
        decontaminate=cfg.decontaminate,
    )
    if 0 < cfg.rows < len(rows):
        print(f"{path}: using the first {cfg.rows} (--rows)", flush=True)
        rows = dict(islice(rows.items(), cfg.rows))
    encoded = encode_rows(
        list(rows.values()), tokenizer, template, context, cfg.train_on_prompt, list(rows), errors
    )
    if not encoded:
        raise ValueError(f"{path}: no row fits the model's context of {context}")
    if errors.messages:
        print(f"{path}: {len(encoded)} rows{errors.summary()}", flush=True)
    return encoded


def make_batches(
    cfg: Config,
    tokenizer: Tokenizer,
    rows: Sequence[Segments] | None,
    context: int,
    position: Sequence[int] = (0, 0),
) -> Iterator[tuple[list[Segments], float, tuple[int, int]]]:
    """(rows, progress of the run from 0 to 1, position after them), in an order that depends on the
    seed alone. `rows` are all rows, or None for the corpus, whose rows are generated when they are
    needed. A position is (part, finished batches in it); the batches before it are skipped."""
    starts = range(0, cfg.rows, CORPUS_WINDOW) if cfg.data == "corpus" else [0]
    parts = [(epoch, start) for epoch in range(cfg.epochs) for start in starts]
    arrange = packed_batches if cfg.pack else length_bucketed
    for part, (epoch, start) in enumerate(parts):
        if part < position[0]:
            continue
        if cfg.data == "corpus":
            indices = range(start, min(start + CORPUS_WINDOW, cfg.rows))
            rows = encode_rows(
                [document(cfg.seed, index) for index in indices],
                tokenizer,
                plain_template(END_OF_TEXT),
                context,
                cfg.train_on_prompt,
            )
        lengths = [sum(map(len, row)) for row in rows]
        batches = arrange(lengths, cfg.batch_tokens, f"{cfg.seed} {epoch} {start}")
        for index, batch in enumerate(batches):
            if (part, index) >= tuple(position):
                progress = (part + index / len(batches)) / len(parts)
                yield [rows[i] for i in batch], progress, (part, index + 1)


def accumulate_gradient(
    cfg: Config, model: Transformer, rows: Sequence[Segments], tokens: int
) -> tuple[Tensor, int, Finite]:
    """Add up the gradient of the rows, in micro-batches with a token limit. Returns the loss,
    the number of learned tokens, and whether the log-probabilities of each row are finite."""
    mine, factor = distributed.rank_rows(rows)
    parts = pack_greedily([sum(map(len, row)) for row in mine], range(len(mine)), tokens)
    parts = [[mine[i] for i in part] for part in parts]
    batches = [collate(part) for part in parts]
    learned = sum(batch.target_BT.sum() for batch in batches) * int(factor)
    count = int(distributed.all_reduce_sum(learned))
    loss, finite = torch.zeros((), device=model.device), []
    for part, batch in zip(parts, batches):
        with autocast(model.device, cfg.bf16):
            logp_BT = token_logprobs(model, batch.to(model.device))
        here = -factor * logp_BT.sum() / count
        here.backward()
        loss += here.detach()
        finite.append((part, logp_BT.detach().isfinite().all(-1)))
    return distributed.all_reduce_sum(loss), count, finite


def bad_rows(tokenizer: Tokenizer, batch: Sequence[Segments], finite: Finite) -> Iterator[str]:
    """The beginnings of the rows whose loss is not finite; of all rows, if every loss is finite."""
    bad = [row for part, good_B in finite for row, good in zip(part, good_B.tolist()) if not good]
    for row in distributed.all_gather(bad) or batch:
        yield repr(tokenizer.decode(sum(row, []))[:60])


def worst_case_step(cfg: Config, model: Transformer, rows: Sequence[Segments] | None) -> None:
    """Learn from a full batch of rows as long as the longest one, without the optimizer."""
    longest, count = model.config.max_position_embeddings, cfg.rows
    if rows:
        longest, count = max(sum(map(len, row)) for row in rows), len(rows)
    batch = memory.longest_rows(cfg.batch_tokens, count, 0, longest)
    accumulate_gradient(cfg, model, batch, cfg.batch_tokens)
    model.zero_grad()


if __name__ == "__main__":
    run_script(distributed.distributed_main(main), Config, PRESETS, __doc__)
