"""tokens.jsonl, the log of `--log-tokens`: single tokens, as the sampler drew them and after the
step's updates. `python -m r1mini.look` shows what the updates did to them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from r1mini.checkpoint.tokenizer import StreamDecoder, Tokenizer
from r1mini.model.transformer import Transformer
from r1mini.records import Group
from r1mini.rl.config import LOGGED_TOKENS, GRPOConfig
from r1mini.rl.samples import logprobs_and_entropies


def token_rows(
    cfg: GRPOConfig, policy: Transformer, tokenizer: Tokenizer, groups: Sequence[Group], step: int
) -> Iterator[dict[str, Any]]:
    """A line for each completion of the logged groups. `policy` is the one after the updates: the
    new log-probabilities and the entropies are its own, in nats, at the run's temperature. Called
    by all ranks."""
    chosen = [
        (n, g, rollout)
        for n in logged_groups(groups, step, cfg.log_tokens)
        for g, rollout in enumerate(groups[n].rollouts)
    ]
    rows = [
        (rollout.prompt_ids, rollout.completion_ids[:LOGGED_TOKENS]) for _, _, rollout in chosen
    ]
    after = logprobs_and_entropies(cfg, policy, rows) if rows else []
    for (n, g, rollout), (_, ids), (new_logprobs, entropies) in zip(chosen, rows, after):
        yield {
            "step": step,
            "problem": n,
            "sample": g,
            "ids": ids,
            "pieces": token_pieces(tokenizer, ids),
            "logprobs": rounded(rollout.logprobs[:LOGGED_TOKENS]),
            "new_logprobs": rounded(new_logprobs),
            "entropies": rounded(entropies),
        }


def logged_groups(groups: Sequence[Group], step: int, count: int) -> list[int]:
    """Indices of `count` groups: those whose rewards differ go first, and each step begins where
    the step before it ended, so that all tasks get their turn.

    >>> same, differ = Group(None, (), (), (0.0, 0.0)), Group(None, (), (), (0.0, 1.0))
    >>> [logged_groups([differ, same, differ, differ], step, 1) for step in range(4)]
    [[0], [2], [2], [3]]
    """
    order = [(step * count + i) % len(groups) for i in range(len(groups))]
    return sorted(order, key=lambda n: groups[n].has_zero_variance)[:count]


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds. It is empty for an end token, and for a token that ends within
    a character: the token that completes the character has it."""
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.add(token) for token in ids]
    return [*pieces[:-1], pieces[-1] + decoder.flush()] if pieces else []


def rounded(values: Sequence[float]) -> list[float | None]:
    """To 1e-4 nats; null for what JSON cannot write.

    >>> rounded([-0.123456, -math.inf])
    [-0.1235, None]
    """
    return [round(x, 4) + 0.0 if math.isfinite(x) else None for x in values]  # no -0.0
