"""Reads tokens.jsonl for the page: what an update did to single tokens, and what each of them
weighs in the loss."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import quantiles
from typing import Any

from r1mini.infra import files
from r1mini.rl.config import GRPOConfig
from r1mini.rl.samples import minibatches

Row = Mapping[str, Any]
Key = tuple[int, int, int]  # step, problem, sample
LISTS = ("ids", "pieces", "logprobs", "new_logprobs", "entropies")
MAX_PIECE = 200  # characters of one token in the page
UNITS = [digit * 10.0**power for power in range(-3, 1) for digit in (1, 2, 5)]  # of log-ratios


def read_tokens(lines: Iterable[tuple[str, Row]]) -> dict[Key, dict[str, Any]]:
    """The tokens of completions, by columns, from ("file:line", object) pairs."""
    tokens = {}
    for where, row in lines:
        check_tokens(row, where)
        before, after = row["logprobs"], row["new_logprobs"]
        tokens[row["step"], row["problem"], row["sample"]] = {
            "pieces": [piece[:MAX_PIECE] for piece in row["pieces"]],
            "logps": [decimals(x, 3) for x in before],
            "entropies": [decimals(x, 3) for x in row["entropies"]],
            "changes": [
                None if None in (old, new) else decimals(new - old, 4)
                for old, new in zip(before, after)
            ],
        }
    return tokens


def check_tokens(row: Row, where: str) -> None:
    """ValueError for a line of tokens.jsonl without what the page shows."""
    for name in ("step", "problem", "sample"):
        if type(row.get(name)) is not int:
            raise ValueError(f"{where}: {name} {row.get(name)!r:.60} is not a whole number")
    for name in LISTS:
        values = row.get(name)
        if not isinstance(values, list) or len(values) != len(row["ids"]):
            raise ValueError(f"{where}: {name} {values!r:.60} is not a list of one value a token")
    if not all(isinstance(piece, str) for piece in row["pieces"]):
        raise ValueError(f"{where}: pieces has a value that is not text")
    numbers = [x for name in LISTS[2:] for x in row[name] if x is not None]
    if not all(map(files.is_finite_number, numbers)):
        raise ValueError(f"{where}: a value of {', '.join(LISTS[2:])} is not a finite number")


def decimals(value: float | None, digits: int) -> float | None:
    """Integers without a point, which keeps the page small."""
    if value is None:
        return None
    value = round(value, digits)
    return int(value) if value == int(value) else value


def ratio_unit(tokens: Mapping[Key, Mapping[str, Any]]) -> float:
    """A round number of nats: about the change of a token's log-probability that one token in ten
    exceeds. The page's colours are relative to it, whatever the learning rate."""
    changes = [abs(x) for row in tokens.values() for x in row["changes"] if x]
    if len(changes) < 2:
        return UNITS[-1]
    largest = quantiles(changes, n=10)[-1]
    return min(UNITS, key=lambda unit: abs(math.log(unit / largest)))


def clip_range(cfg: GRPOConfig) -> dict[str, Any] | None:
    """Where the objective stops pushing: `high` and `low` for positive and negative advantages,
    `delta` above for negative ones; or, if it `caps` the ratio, `high` alone. None if it has no
    clip. `sequence`: the ratio is that of a completion."""
    if cfg.objective not in ("clip", "cispo"):
        return None
    clips = cfg.objective == "clip"
    return {
        "low": decimals(1 - cfg.clip_low, 6) if clips else None,
        "high": decimals(1 + cfg.clip_high, 6),
        "delta": cfg.delta or None if clips else None,
        "caps": not clips,
        "sequence": cfg.ratio == "sequence",
    }


def weight_divisors(
    cfg: GRPOConfig, step: int, rows: Sequence[Row], context: float
) -> list[int] | None:
    """The weight of each token of a step's completions in the loss is 1 over this number, one a
    completion; 0 if it is masked. None where it depends on the micro-batches.
    `rl.grpo.token_weights` computes the same on tensors.

    >>> rows = [{"tokens": 1, "finished": True}, {"tokens": 3, "finished": True}]
    >>> weight_divisors(GRPOConfig(problems=1, completions=2, minibatches=1), 0, rows, math.inf)
    [4, 4]
    """
    known = cfg.loss_per != "microbatch" and cfg.minibatches
    if not known or len(rows) != cfg.problems * cfg.completions:
        return None
    divisors = [0] * len(rows)
    for chosen in minibatches(cfg, cfg.problems, f"{cfg.seed} {step}"):
        total = sum(rows[i]["tokens"] for i in chosen)
        for i in chosen:
            parts = {
                "token": total,
                "sequence": len(chosen) * rows[i]["tokens"],
                "constant": len(chosen) * min(cfg.max_new_tokens, context),
            }
            masked = cfg.overlong == "mask" and not rows[i]["finished"]
            divisors[i] = 0 if masked else int(max(1, parts[cfg.loss_per]))
    return divisors
