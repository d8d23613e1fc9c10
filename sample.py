"""Sample from a checkpoint: answer prompts, chat, evaluate, or make SFT rows by rejection sampling.

python sample.py --model runs/r1/r1                                       chat in the terminal
python sample.py --model runs/r1/r1 --prompt "Make 24 from 3, 5, 9."
python sample.py --model runs/r1/r1 --prompts problems.jsonl --out answers.jsonl
python sample.py --model runs/r1/r1 --eval --out runs/eval.json
python sample.py --model Qwen2.5-0.5B --preset gsm8k --data test.jsonl --out runs/gsm8k.json
python sample.py --model runs/r1/dev2 --reject --out runs/rows.jsonl      [R1 §2.3.3]
"""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from r1mini import checkpoint
from r1mini.checkpoint.chat_template import load_chat_template
from r1mini.config import run_script
from r1mini.evaluation import jobs, rejection
from r1mini.evaluation.answer import answer
from r1mini.evaluation.config import PRESETS, SampleConfig, resolve
from r1mini.evaluation.evaluate import MICRO_BATCH, evaluate
from r1mini.evaluation.figures import figures_table
from r1mini.evaluation.jobs import Session
from r1mini.infra import files
from r1mini.infra.device import pick_device
from r1mini.model.transformer import Transformer
from r1mini.reward_model.scoring import load_reward_models, open_rewards
from r1mini.rewards.runner import Rewards
from r1mini.sampler.sampling import SamplingParams

Config = SampleConfig


def main(cfg: SampleConfig) -> dict:
    """Returns the figures of `--eval`, or the counts of `--reject`."""
    cfg = resolve(cfg)
    device = pick_device(cfg.device, cfg.threads, tf32=cfg.tf32)
    if cfg.out:
        check_writable(Path(cfg.out))
        if cfg.eval:
            check_writable(completions_path(Path(cfg.out)))
    dtype = torch.bfloat16 if cfg.bf16 else torch.float32
    model, tokenizer = checkpoint.load(cfg.model, device, dtype, base=cfg.base)
    folder = checkpoint.tokenizer_folder(cfg.model, cfg.base)
    template = load_chat_template(folder, cfg.template)
    if template.shows_date:
        template = replace(template, date=jobs.first_day(cfg))
    tokenizer = template.adapt_tokenizer(tokenizer)
    params = SamplingParams(cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    rewards = Rewards({}, {})
    if cfg.reward:
        rewards = open_rewards(cfg.reward, cfg.score_thinking)
        load_reward_models(rewards, device, cfg.bf16, MICRO_BATCH)
    session = Session(cfg, model, tokenizer, template, params, rewards)
    if cfg.eval:
        return run_evaluation(session)
    if cfg.reject:
        return run_rejection(session)
    answer(session)
    return {}


def run_evaluation(session: Session) -> dict:
    """`--eval`: prints and writes the figures, and writes a row for each completion. [R1 §3]"""
    cfg, sets = session.cfg, jobs.problem_sets(session)
    start = time.perf_counter()
    settings, reference = jobs.problem_settings(session, sets), None
    if cfg.reference:
        reference = load_reference(session)
        settings["reference"] = cfg.reference
        settings["reference_weights"] = checkpoint.weights_fingerprint(cfg.reference)
    journal = jobs.open_journal(cfg, settings, sum(settings["sets"].values()))
    results, rows = evaluate(session, sets, journal, reference)
    results["settings"] = {**settings, "seconds": round(time.perf_counter() - start, 1)}
    print(figures_table(results))
    if cfg.out:
        files.write_rows(completions_path(Path(cfg.out)), rows)
        files.write_json(Path(cfg.out), results)
    journal.close()
    return results


def load_reference(session: Session) -> Transformer:
    """The model of `--reference`. ValueError if its tokenizer is another one."""
    cfg, weight = session.cfg, session.model.lm_head.weight
    reference, tokenizer = checkpoint.load(cfg.reference, weight.device, weight.dtype)
    if tokenizer.backend.to_str() != session.tokenizer.backend.to_str():
        raise ValueError(
            f"--reference {cfg.reference}: its tokenizer differs from that of {cfg.model}, so "
            "the KL is undefined"
        )
    return reference


def run_rejection(session: Session) -> dict:
    """`--reject`: writes the rows that rejection sampling keeps. [R1 §2.3.3]"""
    cfg, sets = session.cfg, jobs.problem_sets(session)
    limits = {"keep": cfg.keep, "max_thinking": cfg.max_thinking}
    settings = jobs.problem_settings(session, sets) | limits
    journal = jobs.open_journal(cfg, settings, sum(settings["sets"].values()))
    sampled = jobs.sample_and_score(session, sets, rejection.REWARDS, len(journal.parts))
    for problem, rollouts, scores in sampled:
        selected = rejection.select_rows(
            problem,
            rollouts,
            scores,
            session.tokenizer,
            weights=session.rewards.weights,
            seed=cfg.seed,
            model=cfg.model,
            **limits,
        )
        journal.add(selected)
    rows, verdicts = [], Counter()
    for part in journal.parts:
        rows += part["rows"]
        verdicts.update(part["verdicts"])
    if not cfg.data:
        others = [name for name in cfg.tasks if name not in sets]
        rows += rejection.plain_rows(others, cfg.plain_rows, cfg.seed)
    if not rows:
        journal.close()
        raise ValueError(f"--reject: no completion of {cfg.model} was kept ({dict(verdicts)})")
    files.write_rows(Path(cfg.out), rows)
    journal.close()
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    print(f"{cfg.out}: {len(rows)} rows; of {sum(verdicts.values())} completions: {counts}")
    return {"rows": len(rows), "verdicts": dict(verdicts)}


def completions_path(out: Path) -> Path:
    """The file of the completions, next to that of the figures."""
    return out.with_name(out.name.removesuffix(".json") + ".jsonl")


def check_writable(path: Path) -> None:
    """Raises ValueError before the sampling, not after it."""
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder")
    files.prepare_folder(path.parent)


if __name__ == "__main__":
    run_script(main, Config, PRESETS, __doc__)
