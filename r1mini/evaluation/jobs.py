"""The jobs of sample.py that write files: evaluation and rejection sampling, and what they share.

A job saves each finished problem in a journal next to its `--out`, and resumes from there.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from r1mini import checkpoint, tasks
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.problems import read_problems
from r1mini.evaluation import rejection
from r1mini.evaluation.config import BENCHMARKS, SampleConfig
from r1mini.evaluation.evaluate import ProblemSets, Scored, evaluate, held_out, sample_and_score
from r1mini.evaluation.tables import figures_table
from r1mini.infra import files
from r1mini.infra.journal import Journal
from r1mini.model.transformer import Transformer
from r1mini.records import Problem
from r1mini.sampler.sampler import encode_prompts
from r1mini.sampler.sampling import SamplingParams


class Session(NamedTuple):
    """The flags, and the objects made from them."""

    cfg: SampleConfig
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    params: SamplingParams


def run_evaluation(s: Session, sets: ProblemSets) -> dict:
    """`--eval`: prints and writes the figures, and writes a row for each completion."""
    start, cfg = time.perf_counter(), s.cfg
    settings, reference = problem_settings(s, sets), None
    if cfg.reference:
        weight = s.model.lm_head.weight
        reference, other = checkpoint.load(cfg.reference, weight.device, weight.dtype)
        if other.backend.to_str() != s.tokenizer.backend.to_str():
            raise ValueError(
                f"--reference {cfg.reference}: its tokenizer differs from that of {cfg.model}, so "
                "the KL is undefined"
            )
        settings |= {
            "reference": cfg.reference,
            "reference_weights": weights_fingerprint(cfg.reference),
        }
    journal, sampled = start_job(s, sets, settings, "evaluating")
    results, rows = evaluate(sampled, sets, journal, reference, s.params.temperature)
    results["settings"] = {**settings, "seconds": round(time.perf_counter() - start, 1)}
    print(figures_table(results))
    if cfg.out:
        write_rows(completions_path(Path(cfg.out)), rows)
        files.write_json(Path(cfg.out), results)
    journal.close()
    return results


def run_rejection(s: Session, sets: ProblemSets) -> dict:
    """`--reject`: writes the rows. [R1 §2.3.3]"""
    cfg = s.cfg
    limits = {"keep": cfg.keep, "max_thinking": cfg.max_thinking}
    settings = problem_settings(s, sets) | limits
    journal, sampled = start_job(s, sets, settings, "sampling", names=rejection.REWARDS)
    rows, verdicts = rejection.reject(
        sampled, s.tokenizer, journal, seed=cfg.seed, model=cfg.model, **limits
    )
    if not cfg.data:
        plain = [name for name in cfg.tasks if not tasks.TASKS[name].reasoning]
        rows = [*rows, *rejection.plain_rows(plain, cfg.plain_rows, cfg.seed)]
    if not rows:
        journal.close()
        raise ValueError(f"--reject: no completion of {cfg.model} was kept ({dict(verdicts)})")
    write_rows(Path(cfg.out), rows)
    journal.close()
    counts = ", ".join(f"{count} {why}" for why, count in verdicts.most_common())
    print(f"{cfg.out}: {len(rows)} rows; of {sum(verdicts.values())} completions: {counts}")
    return {"rows": len(rows), "verdicts": dict(verdicts)}


def start_job(
    s: Session, sets: ProblemSets, settings: dict, title: str, **options: Any
) -> tuple[Journal, Iterator[Scored]]:
    """The journal, and the scored completions that it does not have yet."""
    journal = open_journal(s.cfg, settings, sum(settings["sets"].values()))
    sampled = sample_and_score(
        s.model,
        s.tokenizer,
        sets,
        s.cfg.samples,
        s.params,
        s.cfg.seed,
        done=len(journal.parts),
        max_rows=s.cfg.sampler_rows,
        progress=title if s.cfg.progress else None,
        **options,
    )
    return journal, sampled


# -- problems -------------------------------------------------------------------------------------


def problem_sets(s: Session) -> dict[str, list[Problem]]:
    """The problems of each file of `--data`, or of each task: held out for `--eval`."""
    cfg = s.cfg
    if cfg.data:
        return file_problems(s)
    count = cfg.problems or 60
    if cfg.eval:
        return {name: held_out(name, count) for name in cfg.tasks}
    return {
        name: [tasks.problem(name, f"rejection {cfg.seed}", i, "train") for i in range(count)]
        for name in cfg.tasks
        if tasks.TASKS[name].reasoning
    }


def file_problems(s: Session) -> dict[str, list[Problem]]:
    sources = {file: source for _, file, source in BENCHMARKS.values()}
    cfg, sets = s.cfg, {}
    check_length = lambda problem: encode_prompts(s.model, s.tokenizer, [problem.prompt])
    for file in cfg.data:
        path = Path(file)
        if not path.is_file() and path.name in sources:
            raise ValueError(f"--data {file}: no such file; download it from {sources[path.name]}")
        if path.name in sets or path.name in ("mean", "settings"):
            raise ValueError(f"--data {file}: another set of figures has the name {path.name}")
        problems = read_problems(
            file,
            s.template,
            check_length,
            prompt_key=cfg.prompt_key,
            answer_key=cfg.answer_key,
            instruction=cfg.instruction,
            skip_bad=cfg.skip_bad,
        )
        sets[path.name] = problems[: cfg.problems or None]
    return sets


# -- journal and output ---------------------------------------------------------------------------


def job_settings(s: Session, key: str, content: str, **extra: Any) -> dict:
    """Everything that decides the completions: a job resumes only with the same settings. The hash
    of `content`, the job's prompts or problems, is stored as `key`."""
    return {
        **asdict(s.params),
        "seed": s.cfg.seed,
        "samples": s.cfg.samples,
        "model": s.cfg.model,
        "weights": weights_fingerprint(s.cfg.model),
        "bf16": s.cfg.bf16,
        **extra,
        key: hashlib.sha256(content.encode()).hexdigest(),
    }


def problem_settings(s: Session, sets: ProblemSets) -> dict:
    """The settings of a job on problems, which also decide the scores. Stored with the results."""
    contents = [[title, *map(asdict, problems)] for title, problems in sets.items()]
    counts = {title: len(problems) for title, problems in sets.items()}
    content = json.dumps(contents, default=str)
    settings, cfg = job_settings(s, "sets_sha256", content, sets=counts), s.cfg
    if cfg.data:
        settings |= {"data": list(cfg.data), "template": cfg.template}
        settings["instruction"] = cfg.instruction
    return settings


def weights_fingerprint(model: str) -> list:
    """Name, size and time of each file of a model folder: quicker than reading gigabytes."""
    return [
        [file.name, file.stat().st_size, int(file.stat().st_mtime)]
        for file in sorted(checkpoint.resolve(model).glob("*"))
        if file.suffix in (".safetensors", ".json", ".jinja") and file.name != "run.json"
    ]


def open_journal(cfg: SampleConfig, settings: Mapping[str, object], count: int) -> Journal:
    """The journal of a job of `count` parts, next to `--out`."""
    return Journal(Path(f"{cfg.out}.partial") if cfg.out else None, settings, count)


def completions_path(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".json") + ".jsonl")


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = lines.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape
    files.replace_files(path.parent, {path.name: content})


def check_writable(path: Path) -> None:
    """Raises ValueError before the sampling, not after it."""
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder")
    files.prepare_folder(path.parent)
