"""The sampler: prompts in, rollouts out.

Each prompt is prefilled once and its cache shared out to its G completions [R1 §2.2.1].
Rows have lengths of their own, and leave the batch when they are finished. A token is drawn by inverse CDF from one
uniform number that belongs to (seed, step, row, token), so a rollout does not depend on the rows beside it.

`stream` gives one completion token by token.

Left out: refilling the places of finished rows; a cache kept from one turn of a conversation to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from r1mini.model import KVCache, Transformer
from r1mini.records import Rollout
from r1mini.tokenizer import Tokenizer

CROWDED = 0.8  # rows are gathered anew when fewer than this share of the batch is still alive
GROWTH = 512  # cache slots for new tokens to begin with
BLOCK = 16  # cache slots are read in whole blocks up to the longest live row


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. RL samples the model itself: temperature alone, no truncation."""

    max_new_tokens: int = 256
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        bounds = {"max_new_tokens": self.max_new_tokens >= 1, "temperature": self.temperature >= 0,
                  "top_k": self.top_k >= 0, "top_p": 0 < self.top_p <= 1, "min_p": 0 <= self.min_p < 1}
        for name, good in bounds.items():
            if not good:
                raise ValueError(f"--{name.replace('_', '-')}: {getattr(self, name)} is out of range")


def log_distribution(logits_BV: Tensor, how: Sampling) -> Tensor:
    """Log-probabilities [B, V], fp32, of the distribution that is sampled from.

    Order as in Hugging Face: temperature, top-k, top-p (nucleus, Holtzman et al. 2020 §3), min-p (Nguyen et al. 2024).
    """
    logits_BV = logits_BV.float()
    if how.temperature == 0:
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        return torch.full_like(logits_BV, -torch.inf).scatter(-1, best_B1, 0.0)
    logits_BV = logits_BV / how.temperature
    if how.top_k and how.top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(how.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if how.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        p_BV = sorted_BV.softmax(-1)
        outside_BV = p_BV.cumsum(-1) - p_BV >= how.top_p  # the token that crosses top_p stays
        logits_BV = logits_BV.masked_fill(outside_BV.scatter(-1, order_BV, outside_BV), -torch.inf)
    if how.min_p > 0:
        p_BV = logits_BV.softmax(-1)
        logits_BV = logits_BV.masked_fill(p_BV < how.min_p * p_BV.amax(-1, keepdim=True), -torch.inf)
    return logits_BV.log_softmax(-1)


def draw(logp_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse CDF: the first token at which the cumulative probability exceeds the uniform number.

    >>> p = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(3, 4)
    >>> draw(p.log(), torch.tensor([0.1, 0.25, 0.8])).tolist()
    [0, 2, 3]
    """
    cdf_BV = logp_BV.exp().cumsum(-1)
    reached_BV = cdf_BV <= (uniform_B[:, None] * cdf_BV[:, -1:])
    return reached_BV.sum(-1).clamp(max=logp_BV.shape[-1] - 1)


def uniforms(seed: int, step: int, rows: Sequence[int], count: int) -> Tensor:
    """[B, count] numbers in [0, 1), each a function of (seed, step, row, token) alone."""
    keys = [np.array([seed % 2**64, (step << 32) | row], dtype=np.uint64) for row in rows]
    made = [np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(made))


@torch.inference_mode()
def sample(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], group: int, how: Sampling, *, seed: int,
           step: int = 0, first: int = 0, max_rows: int = 256, progress: str | None = None,
           ready: Callable[[int, list[Rollout]], None] = lambda n, rollouts: None) -> list[list[Rollout]]:
    """`group` rollouts of each prompt. `max_rows` bounds the rows in the cache at a time; `progress` names a bar. `ready`
    is told of each prompt, in order, as soon as all its rollouts are there. `first` is the number of the first prompt, where
    these are a later part of a longer list.

    Raises ValueError for a prompt that leaves no room in the context.
    """
    prompt_ids = encode(model, tokenizer, prompts)
    rows = [(n, g) for n in range(len(prompts)) for g in range(group)]
    found: list[list[Rollout]] = [[] for _ in prompts]
    with tqdm(total=len(rows), desc=progress, leave=False, disable=None if progress else True) as bar:
        for start in range(0, len(rows), max_rows):
            part = rows[start : start + max_rows]
            # Every item but the last, the rollouts, is dropped.
            numbers = [(first + n) * group + g for n, g in part]
            [rollouts] = deque(_sample_rows(model, tokenizer, prompt_ids, part, numbers, how, seed, step, bar), maxlen=1)
            for (n, _), rollout in zip(part, rollouts):
                found[n].append(rollout)
                if len(found[n]) == group:
                    ready(n, found[n])
    return found


@torch.inference_mode()
def stream(model: Transformer, tokenizer: Tokenizer, prompt: str, how: Sampling, *, seed: int, step: int = 0) -> Iterator[int]:
    """The tokens of the completion that `sample` gives for this one prompt, each as soon as it is drawn, the end token
    with them. Raises ValueError, at the first token, for a prompt that leaves no room in the context."""
    prompt_ids = encode(model, tokenizer, [prompt])
    for drawn in _sample_rows(model, tokenizer, prompt_ids, [(0, 0)], [0], how, seed, step, tqdm(disable=True)):
        if isinstance(drawn, Tensor):
            yield int(drawn)


def encode(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, as the beginning of a document. Raises ValueError for one that leaves no room in the context."""
    prompt_ids = [tokenizer.begun(ids) for ids in tokenizer.encode_batch(list(prompts))]
    context = model.config.max_position_embeddings
    for prompt, ids in zip(prompts, prompt_ids):
        if not 0 < len(ids) < context:
            raise ValueError(f"a prompt of {len(ids)} tokens does not fit the model's context of {context}: {prompt[:60]!r}")
    return prompt_ids


def _sample_rows(model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[Sequence[int]],
                 rows: Sequence[tuple[int, int]], numbers: Sequence[int], how: Sampling, seed: int, step: int, bar: tqdm
                 ) -> Iterator[Tensor | list[Rollout]]:
    """Samples `rows`, pairs of (prompt, completion) numbers, each with its own number among all: at each step the tokens of
    the rows that are alive, at the end the rollouts of all."""
    device = model.lm_head.weight.device
    distinct = sorted({n for n, _ in rows})
    longest = max(len(prompt_ids[n]) for n in distinct)
    tokens_NT = torch.zeros(len(distinct), longest, dtype=torch.long)
    for i, n in enumerate(distinct):
        tokens_NT[i, : len(prompt_ids[n])] = torch.tensor(prompt_ids[n])
    length_N = torch.tensor([len(prompt_ids[n]) for n in distinct], device=device)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.lm_head.weight.dtype

    cache = KVCache(model.config, len(distinct), longest, device, dtype)
    hidden_NTD = model.hidden(tokens_NT.to(device), cache)
    cache.length_B = length_N  # what a shorter prompt wrote past its end is overwritten before it is ever visible
    limit_N = (model.config.max_position_embeddings - length_N).clamp(max=how.max_new_tokens)
    limit = int(limit_N.max())
    last_ND = hidden_NTD[torch.arange(len(distinct), device=device), length_N - 1]
    share_B = torch.tensor([distinct.index(n) for n, _ in rows], device=device)
    slots = longest + min(limit, GROWTH)  # and more as they are needed: a limit of 32,768 tokens is seldom reached
    cache = cache.select(share_B, slots=slots)
    last_BD = last_ND[share_B]

    uniform_BT = uniforms(seed, step, numbers, limit).to(device)
    stop = torch.tensor(sorted(tokenizer.stop_ids), device=device)
    drawn_BT = torch.zeros(len(rows), limit, dtype=torch.long, device=device)
    logp_BT = torch.zeros(len(rows), limit, device=device)
    count_B = limit_N[share_B]
    finished_B = torch.zeros(len(rows), dtype=torch.bool, device=device)
    alive = torch.arange(len(rows), device=device)  # row numbers of the rows still in the cache
    gone = 0
    for t in range(limit):
        logp_BV = log_distribution(model.lm_head(last_BD), how)
        token_B = draw(logp_BV, uniform_BT[alive, t])
        drawn_BT[alive, t] = token_B
        logp_BT[alive, t] = logp_BV.gather(-1, token_B[:, None])[:, 0]
        yield token_B
        count = count_B[alive]
        ends_B = torch.isin(token_B, stop) & (t < count)
        finished_B[alive] |= ends_B
        count_B[alive] = count = torch.where(ends_B, t + 1, count)
        live_B = t + 1 < count  # neither ended nor at its limit
        left = int(live_B.sum())
        bar.update(len(rows) - left - gone)
        gone = len(rows) - left
        if not left:
            break
        if left < CROWDED * len(alive):
            live = live_B.nonzero()[:, 0]
            cache, alive, token_B, live_B = cache.select(live), alive[live], token_B[live], live_B[live]
        reach = min(-(-(longest + t + 1) // BLOCK) * BLOCK, longest + limit)
        if reach > slots:
            slots = min(2 * slots, longest + limit)
            cache = cache.select(torch.arange(len(alive), device=device), slots=slots)
        last_BD = model.hidden(token_B[:, None], cache, reach)[:, 0]
        cache.length_B = cache.length_B + live_B  # a row that is done stays where it is until the rows are gathered

    result = []
    for (n, _), drawn, logps, count, finished in zip(rows, drawn_BT.tolist(), logp_BT.tolist(), count_B.tolist(),
                                                     finished_B.tolist()):
        ids = drawn[:count]
        text = tokenizer.decode(ids[:-1] if finished else ids)
        result.append(Rollout(tuple(prompt_ids[n]), tuple(ids), tuple(logps[:count]), text, finished))
    yield result
