"""The sampler: prompts in, rollouts out.

Rows have lengths of their own; when one is finished, the next takes its place (continuous batching: Orca, Yu et al. 2022).
Each prompt is prefilled once, and its keys and values given to all of its G completions [R1 §2.2.1]. A token is drawn by
inverse CDF from one uniform number that belongs to (seed, step, row, token), so a rollout does not depend on the rows
beside it.

`stream` gives one completion token by token.

Left out: a cache kept from one turn of a conversation to the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from r1mini.attention import KVCache, Packed
from r1mini.batch import filled
from r1mini.decode import NextToken
from r1mini.graphs import Graphs, bucket, wanted
from r1mini.model import Transformer
from r1mini.records import Rollout
from r1mini.tokenizer import Tokenizer

CROWDED = 0.8  # with nobody waiting, places are given up when fewer than this share of them would do
GROWTH = 128  # cache slots for new tokens to begin with
REACH = 16  # cache slots are read in whole blocks up to the longest live row
REACH_STATIC, CROWDED_STATIC = 64, 0.5  # the same where another shape needs another graph
PREFILL = 8192  # prompt tokens at a time


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


def distribution(logits_BV: Tensor, how: Sampling) -> Tensor:
    """Probabilities [B, V], fp32, of the distribution that is sampled from.

    Order as in Hugging Face: temperature, top-k, top-p (nucleus, Holtzman et al. 2020 §3), min-p (Nguyen et al. 2024).
    """
    logits_BV = logits_BV.float()
    if how.temperature == 0:
        best_B1, index_B1 = logits_BV.max(-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter(-1, index_B1, 1.0 + 0.0 * best_B1)  # NaN where that is no number
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
    return logits_BV.softmax(-1)


def draw(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse CDF: the first token at which the cumulative probability exceeds the uniform number.

    In two steps, the part of the vocabulary and the token in it: a running sum over all of it would cost more than the model's
    last layer.

    >>> p = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(3, 4)
    >>> draw(p, torch.tensor([0.1, 0.25, 0.8])).tolist()
    [0, 2, 3]
    """
    B, V = p_BV.shape
    width = math.isqrt(V - 1) + 1
    p_BPW = F.pad(p_BV, (0, -V % width)).view(B, -1, width)
    whole_BP = p_BPW.sum(-1)
    part_B, left_B = first_over(whole_BP, uniform_B * whole_BP.sum(-1))
    inside_BW = p_BPW[torch.arange(B, device=p_BV.device), part_B]
    token_B, _ = first_over(inside_BW, left_B)
    return part_B * width + token_B


def first_over(weight_BW: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry at which the running sum of the weights exceeds the target (the last that weighs anything, if rounding
    keeps all below), and what of the target is left for it."""
    sum_BW = weight_BW.cumsum(-1)
    target_B = torch.minimum(target_B, sum_BW[:, -1].nextafter(torch.zeros((), device=sum_BW.device)))
    index_B = (sum_BW <= target_B[:, None]).sum(-1)
    before_B = (sum_BW - weight_BW).gather(-1, index_B[:, None])[:, 0]
    return index_B, target_B - before_B


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
    found: list[dict[int, Rollout]] = [{} for _ in prompts]
    told = 0
    sampler = Sampler(model, tokenizer, prompt_ids, group, how, seed, step, first, max_rows)
    with tqdm(total=len(prompts) * group, desc=progress, leave=False, disable=None if progress else True) as bar:
        while sampler.busy:
            for n, g, rollout in sampler.advance()[1]:
                found[n][g] = rollout
                bar.update()
            while told < len(prompts) and len(found[told]) == group:
                ready(told, [found[told][g] for g in range(group)])
                told += 1
    return [[rollouts[g] for g in range(group)] for rollouts in found]


@torch.inference_mode()
def rehearse(model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[Sequence[int]], group: int, how: Sampling,
             max_rows: int) -> Sampler:
    """Takes as much memory as `sample` can: every place is filled, the cache at its limit, and a step reads all of it, also by
    graph, so that a driver that refuses them is found out."""
    sampler = Sampler(model, tokenizer, prompt_ids, group, how, 0, places=max_rows)
    sampler.admit()
    sampler.reserve(end := sampler.uniform_BT.shape[1])
    sampler.steps(end)
    return sampler


@torch.inference_mode()
def stream(model: Transformer, tokenizer: Tokenizer, prompt: str, how: Sampling, *, seed: int, step: int = 0) -> Iterator[int]:
    """The tokens of the completion that `sample` gives for this one prompt, each as soon as it is drawn, the end token
    with them. Raises ValueError, at the first token, for a prompt that leaves no room in the context."""
    sampler = Sampler(model, tokenizer, encode(model, tokenizer, [prompt]), 1, how, seed, step, block=1)
    while sampler.busy:
        [[token]], _ = sampler.advance()
        yield token


def encode(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, as the beginning of a document. Raises ValueError for one that leaves no room in the context."""
    prompt_ids = [tokenizer.begun(ids) for ids in tokenizer.encode_batch(list(prompts))]
    context = model.config.max_position_embeddings
    for prompt, ids in zip(prompts, prompt_ids):
        if not 0 < len(ids) < context:
            raise ValueError(f"a prompt of {len(ids)} tokens does not fit the model's context of {context}: {prompt[:60]!r}")
    return prompt_ids


def whole(slots: int) -> int:
    return -(-slots // REACH) * REACH


@dataclass
class Row:
    """A completion in the making."""

    n: int  # of its prompt
    g: int  # in its group
    limit: int  # tokens it may have
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Sampler:
    """Places side by side in a cache, through which the completions of all prompts pass.

    A place holds a row, its last token, that token's position, and how many tokens were drawn. A step takes every place from
    its token to the next one, without a word to the host: on CUDA the host looks at what came out only every `block` steps.

    With `graphs`, as on CUDA, a step reads and writes only tensors that stay where they are, in shapes that are rounded up, so
    that few graphs serve all steps.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[Sequence[int]], group: int,
                 how: Sampling, seed: int, step: int = 0, first: int = 0, places: int = 256, block: int | None = None,
                 graphs: Graphs | None = None):
        self.device = model.lm_head.weight.device
        self.graphs = graphs or (Graphs(self.device) if wanted(self.device) else None)
        self.model, self.tokenizer, self.prompt_ids, self.group, self.how = model, tokenizer, prompt_ids, group, how
        self.next = NextToken(model)
        self.key = seed, step, first
        self.block = block or (16 if self.device.type == "cuda" else 1)
        self.queue = deque((n, g) for n in range(len(prompt_ids)) for g in range(group))
        self.rows: list[Row | None] = [None] * min(places, len(self.queue))
        self.prompts: list[int] = []  # that are in the cache
        config, B = model.config, len(self.rows)
        limit = min(how.max_new_tokens, config.max_position_embeddings)
        self.cache = KVCache(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, B,
                             whole(min(limit, GROWTH) + self.block), self.device,
                             self.next.head.dtype if self.device.type == "cuda" else torch.float32, bool(self.graphs))
        self.token_B = torch.zeros(B, dtype=torch.long, device=self.device)
        self.position_B, self.count_B = self.token_B.clone(), self.token_B.clone()
        self.uniform_BT = torch.zeros(B, limit + self.block, device=self.device)

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(self.rows)

    def advance(self) -> tuple[list[list[int]], list[tuple[int, int, Rollout]]]:
        """Fills free places and takes `block` steps: the tokens drawn, of every place in each step, and what is finished, as
        (prompt, completion in its group, rollout)."""
        self.admit()
        end = max(len(row.ids) for row in self.rows if row) + self.block
        self.reserve(end)
        tokens, logps = (torch.stack(x).tolist() for x in zip(*self.steps(end)))
        return tokens, self.harvest(tokens, logps)

    def reserve(self, slots: int) -> None:
        while slots > self.cache.slots:
            self.cache.grow(min(2 * self.cache.slots, whole(self.uniform_BT.shape[1])))

    def steps(self, end: int) -> list[tuple[Tensor, Tensor]]:
        """`block` of them, after which no row has more than `end` tokens."""
        if not self.graphs:
            return [self.step(whole(end)) for _ in range(self.block)]
        reach = min(bucket(max(end, REACH_STATIC)), self.cache.slots)
        read = *self.cache.tensors(), self.token_B, self.position_B, self.count_B, self.uniform_BT
        return [self.graphs.run(partial(self.step, reach), reach, read) for _ in range(self.block)]

    def step(self, reach: int) -> tuple[Tensor, Tensor]:
        # A place without a row goes on too, wherever it is.
        count_B = self.count_B.clamp(max=min(self.cache.slots, self.uniform_BT.shape[1]) - 1)
        with torch.autocast(self.device.type, enabled=False):
            logits_BV = self.next.logits(self.token_B, self.position_B, self.cache.step(count_B, reach))
        p_BV = distribution(logits_BV, self.how)
        token_B = draw(p_BV, self.uniform_BT.gather(1, count_B[:, None])[:, 0])
        self.token_B.copy_(token_B)
        self.position_B += 1
        self.count_B += 1
        return token_B, p_BV.gather(-1, token_B[:, None])[:, 0].log()

    def harvest(self, tokens: Sequence[Sequence[int]], logps: Sequence[Sequence[float]]) -> list[tuple[int, int, Rollout]]:
        ended = []
        for place, row in enumerate(self.rows):
            for t in range(len(tokens)) if row else ():
                row.ids.append(tokens[t][place])
                row.logprobs.append(logps[t][place])
                finished = row.ids[-1] in self.tokenizer.stop_ids
                if finished or len(row.ids) == row.limit:
                    if not math.isfinite(sum(row.logprobs)):
                        text = self.tokenizer.decode(self.prompt_ids[row.n])
                        raise ValueError(f"the model's probabilities are not numbers: completion {row.g + 1} of prompt {text[:60]!r}")
                    text = self.tokenizer.decode(row.ids[:-1] if finished else row.ids)
                    ended.append((row.n, row.g, Rollout(tuple(self.prompt_ids[row.n]), tuple(row.ids), tuple(row.logprobs),
                                                        text, finished)))
                    self.rows[place] = None
                    break
        return ended

    def admit(self) -> None:
        """The next rows take the free places; with nobody waiting, places are given up."""
        new: dict[int, list[int]] = {}  # places by prompt
        for place, row in enumerate(self.rows):
            if row is None and self.queue:
                n, g = self.queue.popleft()
                limit = min(self.how.max_new_tokens, self.model.config.max_position_embeddings - len(self.prompt_ids[n]))
                self.rows[place] = Row(n, g, limit)
                new.setdefault(n, []).append(place)
        seed, step, first = self.key
        for n, places in new.items():
            *past, last = self.prompt_ids[n]
            self.token_B[places], self.position_B[places], self.count_B[places] = last, len(past), 0
            limit = self.rows[places[0]].limit
            numbers = [(first + n) * self.group + self.rows[place].g for place in places]
            self.uniform_BT[places, :limit] = uniforms(seed, step, numbers, limit).to(self.device)
        used = [place for place, row in enumerate(self.rows) if row]
        size, crowded = (bucket(len(used)), CROWDED_STATIC) if self.graphs else (len(used), CROWDED)
        if fewer := size < crowded * len(self.rows):
            self.rows = [self.rows[place] for place in used] + [None] * (size - len(used))
            used += used[:1] * (size - len(used))  # places without a row, whatever is in them
            self.cache.keep(used)
            self.token_B, self.position_B, self.count_B, self.uniform_BT = (
                x[used] for x in (self.token_B, self.position_B, self.count_B, self.uniform_BT))
        unseen = [n for n in new if n not in self.prompts]
        if unseen or fewer:
            self.prefill(unseen)
        if new or fewer:
            number = {n: i for i, n in enumerate(self.prompts)}
            self.cache.seat([number[row.n] if row else -1 if self.graphs else 0 for row in self.rows])

    def prefill(self, new: Sequence[int]) -> None:
        """All tokens of these prompts but the last, which the row's first step is for. Prompts that nobody needs any more go."""
        waiting = {self.queue[0][0]} if self.queue else set()
        needed = {row.n for row in self.rows if row} | waiting
        stay = [i for i, n in enumerate(self.prompts) if n in needed]
        for part in filled([len(self.prompt_ids[n]) for n in new], range(len(new)), PREFILL) or [[]]:
            chosen = [new[i] for i in part]
            pasts = [self.prompt_ids[n][:-1] for n in chosen]
            attend = Packed([len(past) for past in pasts], keep=True, device=self.device)
            if any(pasts):
                position_M = torch.cat([torch.arange(len(past)) for past in pasts]).to(self.device)
                self.model.hidden(torch.tensor(sum(pasts, [])).to(self.device), position_M, attend)
            self.cache.share(stay, attend.kept, attend.lengths)
            self.prompts = [self.prompts[i] for i in stay] + chosen
            stay = range(len(self.prompts))
