"""Reads runs into a plain structure for the page: metrics, groups, diagnosis, settings.

Everything that the page calculates with comes from here; the page only displays. A run may still be
training: a step whose lines are not all written yet is left out.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from r1mini.checkpoint import ASSETS
from r1mini.infra import files
from r1mini.look.reasons import corrects_itself, part_reasons, problem_of_group
from r1mini.look.tokens import clip_range, ratio_unit, read_tokens, weight_divisors
from r1mini.recipe.report import model_titles
from r1mini.rewards.runner import parse_spec
from r1mini.rl import diagnosis
from r1mini.rl.config import GRPOConfig, fraction_done
from r1mini.rl.grpo import EPSILON
from r1mini.rl.metrics import NEEDED

Row = Mapping[str, Any]
MAX_TEXT = 200_000  # characters of one text in the page
SHOWN_SETTINGS = (  # of a run, beside its curves
    *("model", "data", "tasks", "reward", "steps", "problems", "completions", "max_new_tokens"),
    *("temperature", "learning_rate", "baseline", "scale", "loss_per", "objective", "ratio"),
    *("clip_low", "clip_high", "beta", "minibatches", "seed"),
)


def read_run(label: str, folder: Path) -> dict[str, Any]:
    """An RL run. ValueError if it is none, or has not finished a step."""
    cfg, finished = read_settings(folder)
    rows = files.read_metrics(folder / "metrics.jsonl", *NEEDED)
    if not rows:
        raise ValueError(
            f"RUN {folder}: metrics.jsonl has no complete line; look again after the first step"
        )
    context = context_length(folder, cfg)
    tokens = read_tokens(read_lines(folder / "tokens.jsonl"))
    groups = read_groups(folder / "rollouts.jsonl", cfg, tokens, context)
    steps = [row["step"] for row in rows]
    known = set(steps)  # the run may have gone on since its metrics were read
    groups = [group for group in groups if group["step"] in known]
    if not groups:
        raise ValueError(
            f"RUN {folder}: rollouts.jsonl has no complete step, so there are no completions to "
            "show; look again after the first step"
        )
    weights = all_weights(cfg)
    settings = {name: getattr(cfg, name) for name in SHOWN_SETTINGS}
    return {
        "label": label,
        "stage": model_titles(9).get(folder.name, folder.name),
        "finished": finished,
        "settings": {name: value for name, value in settings.items() if value not in ("", ())},
        "formula": formula(cfg),
        "weights": weights_by_step(cfg, rows, weights),
        "steps": steps,
        "metrics": metric_columns(rows),
        "notes": list(notes(rows, cfg, weights, context)),
        "clip": clip_range(cfg),
        "ratioUnit": ratio_unit(tokens),
        "groups": groups,
        "groupsTotal": len(groups),
        "completionsTotal": sum(len(group["texts"]) for group in groups),
        "tokenGroupsTotal": sum("perToken" in group for group in groups),
    }


def read_settings(folder: Path) -> tuple[GRPOConfig, bool]:
    """The settings of a run, and whether it has finished. Fields that the run did not know keep
    their defaults. ValueError if it is not a run of train_grpo.py."""
    record = files.read_run_json(folder / "run.json")
    config = record["config"]
    if not {"completions", "baseline", "scale"} <= config.keys():
        raise ValueError(
            f"RUN {folder}: not a run of train_grpo.py (run.json has no --completions); to see all "
            "of a recipe, name the recipe's folder"
        )
    names = [field.name for field in fields(GRPOConfig) if field.name in config]
    values = {name: config[name] for name in names}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return GRPOConfig(**values | lists), record["finished"]


def context_length(folder: Path, cfg: GRPOConfig) -> float:
    """The model's context, from the config.json of the run or of the model that it started from;
    infinite if neither is there."""
    sibling = folder.parent / Path(cfg.model).name
    for path in (folder, Path(cfg.model), ASSETS / cfg.model, sibling):
        if (path / "config.json").is_file():
            length = files.read_json(path / "config.json").get("max_position_embeddings")
            if files.is_finite_number(length):
                return length
    return math.inf


# -- metrics and diagnosis ------------------------------------------------------------------------


def metric_columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Each metric's values by step; None in steps that do not have it."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {name: [rounded(row.get(name)) for row in rows] for name in names}


def rounded(value: float | None) -> float | None:
    """Six significant digits, and integers without a point, which keeps the page small.

    >>> rounded(0.123456789), rounded(3.0), rounded(None)
    (0.123457, 3, None)
    """
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def all_weights(cfg: GRPOConfig) -> dict[str, float]:
    """The weight of each reward in the sum, once all of them count."""
    weights = {term.name: term.weight for term in parse_spec(cfg.reward)}
    return weights | ({"overlong": 1.0} if cfg.overlong_cache else {})


def weights_by_step(
    cfg: GRPOConfig, rows: Sequence[Row], weights: Mapping[str, float]
) -> list[dict[str, float]]:
    """The weights of each step; 0 for a reward that counts only later in the run."""
    starts = {term.name: term.start for term in parse_spec(cfg.reward)}
    spent, by_step = 0, []
    for row in rows:
        progress = fraction_done(cfg, int(row["step"]) - 1, spent)
        spent += drawn(row, cfg)
        by_step.append(
            {name: x if progress >= starts.get(name, 0) else 0.0 for name, x in weights.items()}
        )
    return by_step


def drawn(row: Row, cfg: GRPOConfig) -> int:
    """Completions sampled for a step."""
    return int(row.get("groups_drawn", cfg.problems)) * cfg.completions


def notes(
    rows: Sequence[Row], cfg: GRPOConfig, weights: Mapping[str, float], context: float
) -> Iterator[dict[str, Any]]:
    """What the run says about itself, by step: the same lines, at the same steps."""
    spent = 0
    for index, row in enumerate(rows):
        step, spent = int(row["step"]), spent + drawn(row, cfg)
        try:
            warning = diagnosis.check_sampler_gap(row, cfg)
        except ValueError as error:  # what stopped the run
            warning = str(error)
        if warning:
            yield {"step": step, "text": warning}
        if step % 5 == 4 or fraction_done(cfg, step, spent) == 1:
            for text in diagnosis.diagnose(rows[: index + 1], cfg, weights, context):
                yield {"step": step, "text": text}


# -- groups ---------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for each line; ignores a last line that is not complete.

    Unlike `files.read_log`, it accepts lone surrogates, which are text that UTF-8 cannot encode:
    the page shows whatever a model wrote.
    """
    if not path.is_file():
        return
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = files.json_error(error)[1]
            raise ValueError(f"{path}:{number}: not valid JSON ({reason})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not a JSON object")
        yield f"{path}:{number}", row


def read_groups(
    path: Path,
    cfg: GRPOConfig,
    tokens: Mapping[tuple[int, int, int], Row] = {},
    context: float = math.inf,
) -> list[dict[str, Any]]:
    """The groups of a rollouts.jsonl, with the arithmetic of their advantages and the weights of
    their tokens; `tokens`: of completions, by step, problem and sample."""
    members: dict[tuple[int, int], list[Row]] = {}
    for where, row in read_lines(path):
        check_rollout(row, where)
        members.setdefault((row["step"], row["problem"]), []).append(row)
    last = max((step for step, _ in members), default=-1)
    complete = Counter(step for (step, _), rows in members.items() if len(rows) == cfg.completions)
    if complete[last] < cfg.problems:  # the run is writing this step
        members = {key: rows for key, rows in members.items() if key[0] != last}
    by_step: dict[int, list[Row]] = {}
    for (step, _), rows in sorted(members.items(), key=lambda item: item[0]):
        by_step.setdefault(step, []).extend(rows)
    divisors = {step: weight_divisors(cfg, step, rows, context) for step, rows in by_step.items()}
    groups = []
    for (step, n), rows in members.items():
        rewards = [row["reward"] for row in rows]
        group = group_record(cfg, rows) | arithmetic(rewards, cfg, step_std(cfg, by_step[step]))
        if divisors[step]:
            start = n * cfg.completions
            group["weightDivisors"] = divisors[step][start : start + len(rows)]
        per_token = [tokens.get((step, n, row.get("sample"))) for row in rows]
        if all(per_token):
            group["perToken"] = per_token
        groups.append(group)
    return groups


def check_rollout(row: Row, where: str) -> None:
    """ValueError for a line of rollouts.jsonl without what the page shows."""
    check_types(row, where, step=int, problem=int, tokens=int, finished=bool)
    check_types(row, where, prompt=str, completion=str, task=str, rewards=dict)
    check_numbers(row["rewards"], where)
    numbers = ("reward", "advantage")
    check_numbers({name: row.get(name) for name in numbers}, where, required=numbers)


def check_types(row: Row, where: str, **types: type) -> None:
    for name, kind in types.items():
        if type(row.get(name)) is not kind:
            raise ValueError(
                f"{where}: {name} {row.get(name)!r:.60} is not of type {kind.__name__}"
            )


def check_numbers(values: Row, where: str, required: Sequence[str] = ()) -> None:
    """ValueError for a value that is not a finite number, unless it is None and not required."""
    for name, value in values.items():
        optional = value is None and name not in required
        if not optional and not files.is_finite_number(value):
            raise ValueError(f"{where}: {name[:60]} {value!r:.60} is not a finite number")


def group_record(cfg: GRPOConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """A group, by columns: one list entry for each completion."""
    names = dict.fromkeys(name for row in rows for name in row["rewards"])
    first, problem = rows[0], problem_of_group(cfg, rows[0])
    reasons = [part_reasons(problem, row) for row in rows]
    return {
        "step": first["step"],
        "problem": first["problem"],
        "task": first["task"],
        "prompt": first["prompt"][:MAX_TEXT],
        "texts": [row["completion"][:MAX_TEXT] for row in rows],
        "missing": [max(0, len(row["completion"]) - MAX_TEXT) for row in rows],
        "tokens": [row["tokens"] for row in rows],
        "finished": [int(row["finished"]) for row in rows],
        "corrected": [int(corrects_itself(row["completion"])) for row in rows],
        "scores": {name: [rounded(row["rewards"].get(name)) for row in rows] for name in names},
        "reasons": {
            name: [of_row.get(name) for of_row in reasons]
            for name in names
            if any(name in of_row for of_row in reasons)
        },
        "rewards": [rounded(row["reward"]) for row in rows],
        "advantages": [rounded(row["advantage"]) for row in rows],
    }


def step_std(cfg: GRPOConfig, rows: Sequence[Row]) -> float | None:
    """The standard deviation of all rewards of a step, for --scale batch."""
    if cfg.scale != "batch":
        return None
    return stdev([row["reward"] for row in rows]) if len(rows) > 1 else 0.0


def arithmetic(
    rewards: Sequence[float], cfg: GRPOConfig, step_std: float | None = None
) -> dict[str, Any]:
    """The numbers of a group's advantages: A_i = (r_i - baseline) / divisor. [R1 Eq. 3]

    `rl.grpo.group_advantages` computes the same on tensors. `baselines` has one number if it is the
    same for all completions; `divisor` is None if nothing is divided; `equal`: all rewards are
    equal, which makes all advantages zero.

    >>> group = arithmetic([1.0, 0.0], GRPOConfig(baseline="group", scale="group"))
    >>> group["mean"], group["baselines"], round(group["std"], 4), round(group["divisor"], 4)
    (0.5, [0.5], 0.7071, 0.7072)
    """
    count, mean = len(rewards), round(fmean(rewards), 9)  # 0.1 is the mean of 0, 0.1 and 0.2
    std = stdev(rewards) if count > 1 else 0.0
    baselines = [mean]
    if cfg.baseline == "leave-one-out":
        baselines = [round((sum(rewards) - reward) / (count - 1), 9) for reward in rewards]
    elif cfg.baseline == "none":
        baselines = [0.0]
    deviation = {"group": std, "batch": step_std}.get(cfg.scale)
    return {
        "mean": mean,
        "std": std,
        "baselines": baselines,
        "divisor": None if deviation is None else deviation + EPSILON,
        "equal": len(set(rewards)) == 1 and cfg.baseline != "none",
    }


def formula(cfg: GRPOConfig) -> dict[str, str]:
    """Which formula a run's settings choose, in words."""
    baselines = {
        "group": "The mean of the group is subtracted from each reward",
        "leave-one-out": "The mean of the group's other completions is subtracted from each reward",
        "none": "No baseline is subtracted",
    }
    scales = {
        "group": f"the result is divided by the group's standard deviation plus {EPSILON:g}",
        "batch": "the result is divided by the standard deviation of all rewards of the step plus "
        f"{EPSILON:g}",
        "none": "nothing is divided",
    }
    losses = {
        "token": "Every token of a minibatch has the same weight in the loss.",
        "sequence": "Every completion has the same weight in the loss, shared by its tokens.",
        "constant": "Every token has the same weight, whatever the length of its completion.",
        "microbatch": "Every micro-batch has the same weight in the loss, shared by its tokens.",
    }
    symbols = {"group": "mean(r)", "leave-one-out": "mean of the others", "none": ""}
    divisors = {"group": f"(std(r) + {EPSILON:g})", "batch": f"(std of the step + {EPSILON:g})"}
    numerator = f"r_i - {symbols[cfg.baseline]}" if symbols[cfg.baseline] else "r_i"
    division = f" / {divisors[cfg.scale]}" if cfg.scale in divisors else ""
    return {
        "advantage": f"A_i = ({numerator}){division}" if division else f"A_i = {numerator}",
        "settings": f"--baseline {cfg.baseline}, --scale {cfg.scale}, --loss-per {cfg.loss_per}",
        "words": f"{baselines[cfg.baseline]}, and {scales[cfg.scale]}.",
        "loss": losses[cfg.loss_per],
    }
