"""What the jobs of sample.py share: problems, scored completions, settings, journal and output.

A job saves each finished problem in a journal next to its `--out`, and resumes from there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from r1mini import checkpoint, tasks
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.problems import read_problems
from r1mini.evaluation.config import BENCHMARKS, SampleConfig
from r1mini.evaluation.figures import NOT_SETS
from r1mini.infra.journal import Journal, parse_line
from r1mini.model.transformer import Transformer
from r1mini.records import Problem, Rollout
from r1mini.reward_model.scoring import reward_models_fingerprint
from r1mini.rewards import REWARDS
from r1mini.rewards.runner import Rewards, Scores, score_async, worker_pool
from r1mini.sampler.sampler import encode_prompts, sample
from r1mini.sampler.sampling import SamplingParams

ProblemSets = Mapping[str, Sequence[Problem]]


class Session(NamedTuple):
    """The flags, and the objects made from them."""

    cfg: SampleConfig
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    params: SamplingParams
    rewards: Rewards = Rewards({}, {})  # of `--reward`


# -- problems -------------------------------------------------------------------------------------


def problem_sets(session: Session) -> ProblemSets:
    """The problems of each file of `--data`, or of each task: held out for `--eval`."""
    cfg = session.cfg
    if cfg.data:
        return file_problems(session)
    count = cfg.problems or 60
    if cfg.eval:
        return {name: held_out(name, count) for name in cfg.tasks}
    return {
        name: [tasks.problem(name, f"rejection {cfg.seed}", i, "train") for i in range(count)]
        for name in cfg.tasks
        if tasks.TASKS[name].reasoning or (name in tasks.GENERAL and session.rewards.weights)
    }


def held_out(name: str, count: int) -> list[Problem]:
    """The first held-out problems of an embedded task, each once; all if there are fewer."""
    problems = {}
    for index in range(50 * count):
        problem = tasks.problem(name, "evaluation", index, "heldout")
        problems.setdefault(problem.key, problem)
        if len(problems) == count:
            break
    return list(problems.values())


def file_problems(session: Session) -> ProblemSets:
    sources = {file: source for _, file, source in BENCHMARKS.values()}
    cfg, sets = session.cfg, {}

    def check_length(problem: Problem) -> None:
        encode_prompts(session.model, session.tokenizer, [problem.prompt])

    for file in cfg.data:
        path = Path(file)
        if not path.is_file() and path.name in sources:
            raise ValueError(f"--data {file}: no such file; download it from {sources[path.name]}")
        if path.name in sets or path.name in NOT_SETS:
            raise ValueError(f"--data {file}: another set of figures has the name {path.name}")
        problems = read_problems(
            file,
            session.template,
            check_length,
            prompt_key=cfg.prompt_key,
            answer_key=cfg.answer_key,
            instruction=cfg.instruction,
            skip_bad=cfg.skip_bad,
            general=bool(cfg.reward),
        )
        sets[path.name] = problems[: cfg.problems or None]
    return sets


# -- completions ----------------------------------------------------------------------------------


def sample_and_score(
    session: Session, sets: ProblemSets, rewards: Sequence[str], done: int
) -> Iterator[tuple[Problem, list[Rollout], Scores]]:
    """(problem, its completions, their `rewards`) of all problems but the first `done`.

    A resumed job samples the same problems in parallel as an uninterrupted one, including finished
    ones: otherwise the last bits of the log-probabilities would differ.
    """
    cfg = session.cfg
    functions = {name: REWARDS[name] for name in rewards} | session.rewards.functions
    side_by_side = max(1, cfg.sampler_rows // cfg.samples)
    verb = "evaluating" if cfg.eval else "sampling"
    with worker_pool() as pool:
        for number, (title, problems) in enumerate(sets.items()):
            for start in range(0, len(problems), side_by_side):
                batch, skipped = problems[start : start + side_by_side], max(0, done - start)
                if skipped >= len(batch):
                    continue
                progress = f"{verb} {title} {start + 1}/{len(problems)}"
                groups = sample(
                    session.model,
                    session.tokenizer,
                    [problem.prompt for problem in batch],
                    cfg.samples,
                    session.params,
                    seed=cfg.seed,
                    step=number,
                    first_prompt=start,
                    max_rows=cfg.sampler_rows,
                    progress=progress if cfg.progress else None,
                )
                pending = [score_async(*pair, functions, pool) for pair in zip(batch, groups)]
                scores = [scoring.result() for scoring in pending]
                yield from list(zip(batch, groups, scores))[skipped:]
            done = max(0, done - len(problems))


# -- journal and output ---------------------------------------------------------------------------


def job_settings(session: Session, **others: Any) -> dict:
    """Everything that decides the completions: a job resumes only with the same settings."""
    cfg = session.cfg
    return {
        **asdict(session.params),
        "seed": cfg.seed,
        "samples": cfg.samples,
        "model": cfg.model,
        "weights": checkpoint.weights_fingerprint(cfg.model, cfg.base),
        "bf16": cfg.bf16,
        **({"date": session.template.date} if session.template.date else {}),
        **others,
    }


def problem_settings(session: Session, sets: ProblemSets) -> dict:
    """The settings of a job on problems, which also decide the scores. Stored with the results."""
    cfg = session.cfg
    contents = [[title, *map(asdict, problems)] for title, problems in sets.items()]
    counts = {title: len(problems) for title, problems in sets.items()}
    settings = job_settings(session, sets=counts, sets_sha256=json_sha256(contents))
    if cfg.reward:
        settings |= {"reward": cfg.reward, "score_thinking": list(cfg.score_thinking)}
        settings |= reward_models_fingerprint(cfg.reward)
    if cfg.data:
        settings |= {
            "data": list(cfg.data),
            "template": cfg.template,
            "instruction": cfg.instruction,
        }
    return settings


def json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def open_journal(cfg: SampleConfig, settings: Mapping[str, object], count: int) -> Journal:
    """The journal of a job of `count` parts, next to `--out`."""
    return Journal(Path(f"{cfg.out}.partial") if cfg.out else None, settings, count)


def first_day(cfg: SampleConfig) -> str:
    """The day (YYYY-MM-DD) on which the job of `--out` began, or else today."""
    try:
        first_line = Path(f"{cfg.out}.partial").read_bytes().partition(b"\n")[0]
        return parse_line(first_line)["date"]
    except (OSError, ValueError, LookupError, TypeError):  # no journal, damaged, or without a day
        return date.today().isoformat()
