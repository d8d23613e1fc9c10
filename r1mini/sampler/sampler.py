"""The sampler: prompts in, rollouts out.

Continuous batching (Orca, Yu et al. 2022): a fixed number of slots decode in parallel, and when a
completion ends, the next one takes its slot. Each prompt is prefilled once, and its keys and values
serve all G completions [R1 §2.2.1]. Each token is drawn with a uniform number that belongs to
(seed, step, attempt, row, token), so a rollout does not depend on the rows beside it.

`sample` returns all rollouts; `stream` yields one completion token by token. Left out: a cache kept
from one turn of a conversation to the next.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra.device import to_device
from r1mini.model.attention import PackedAttention
from r1mini.model.transformer import Transformer
from r1mini.records import Rollout
from r1mini.sampler.compiled import CompiledDecoder
from r1mini.sampler.cuda_graphs import EagerRunner, GraphRunner, graphs_enabled, round_up
from r1mini.sampler.decode import FusedDecoder, Slots
from r1mini.sampler.kv_cache import INITIAL_CAPACITY, KVCache
from r1mini.sampler.sampling import SamplingParams, row_uniforms
from r1mini.training.micro_batches import pack_greedily

PREFILL_TOKENS = 8192  # prompt tokens in one forward pass


@torch.inference_mode()
def sample(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: int,
    params: SamplingParams,
    *,
    seed: int,
    step: int = 0,
    attempt: int = 0,
    first_prompt: int = 0,
    max_rows: int = 256,
    compile: bool = False,
    progress: str | None = None,
    on_finished: Callable[[int, list[Rollout]], None] = lambda n, rollouts: None,
) -> list[list[Rollout]]:
    """Samples `completions` rollouts of each prompt.

    `first_prompt` is the number of the first, if the prompts are a later part of a longer list;
    `attempt` draws other rollouts in the same step. `max_rows` limits the rows that decode in
    parallel. `compile`: torch.compile the decoding step, on CUDA. `progress` names a progress bar.
    `on_finished(n, rollouts)` is called for each prompt, in order, as soon as all its rollouts are
    complete.

    Raises ValueError for a prompt that leaves no room in the context.
    """
    prompt_ids = encode_prompts(model, tokenizer, prompts)
    sampler = Sampler(
        model,
        tokenizer,
        prompt_ids,
        completions,
        params,
        seed,
        step,
        attempt,
        first_prompt,
        max_rows,
        compile=compile,
    )
    reported = 0
    total, hidden = len(prompts) * completions, None if progress else True
    with tqdm(total=total, desc=progress, leave=False, disable=hidden) as bar:
        while sampler.has_unfinished:
            sampler.draw_tokens()
            bar.update(sampler.finished - bar.n)
            while reported < len(prompts) and all(sampler.groups[reported]):
                on_finished(reported, sampler.groups[reported])
                reported += 1
    return sampler.groups


@torch.inference_mode()
def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    params: SamplingParams,
    *,
    seed: int,
    step: int = 0,
) -> Iterator[int]:
    """Yields the tokens of the completion that `sample` returns for this one prompt, each as soon
    as it is drawn, the end token included.

    Raises ValueError, at the first token, for a prompt that leaves no room in the context.
    """
    prompt_ids = encode_prompts(model, tokenizer, [prompt])
    sampler = Sampler(model, tokenizer, prompt_ids, 1, params, seed, step, steps_per_sync=1)
    while sampler.has_unfinished:
        [[token]] = sampler.draw_tokens()
        yield token


def encode_prompts(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[list[int]]:
    """Token ids of each prompt, each as the beginning of a document.

    Raises ValueError for a prompt that is empty or leaves no room in the context.
    """
    prompt_ids = [tokenizer.with_bos(ids) for ids in tokenizer.encode_batch(list(prompts))]
    context = model.config.max_position_embeddings
    for prompt, ids in zip(prompts, prompt_ids):
        if not 0 < len(ids) < context:
            raise ValueError(
                f"a prompt of {len(ids)} tokens does not fit the model's context of {context}: "
                f"{prompt[:60]!r}"
            )
    return prompt_ids


@dataclass
class Row:
    """A completion in progress."""

    n: int  # index of its prompt
    g: int  # index in its group
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Sampler:
    """Batch slots for continuous batching: a finished completion leaves its slot to the next one.

    A slot holds a row, its last token, the position of that token, and the number of tokens drawn.
    A decoding step advances every slot by one token and does not synchronize with the host: on
    CUDA the host reads the drawn tokens only after every `steps_per_sync` steps.

    `groups[n][g]` is rollout g of prompt n, None until it has finished.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[Sequence[int]],
        completions: int,
        params: SamplingParams,
        seed: int,
        step: int = 0,
        attempt: int = 0,
        first_prompt: int = 0,
        max_rows: int = 256,
        steps_per_sync: int | None = None,
        runner: EagerRunner | None = None,
        compile: bool = False,
    ):
        self.model, self.tokenizer, self.params = model, tokenizer, params
        self.prompt_ids, self.completions, self.first_prompt = prompt_ids, completions, first_prompt
        self.uniforms = partial(row_uniforms, seed, step, attempt)
        self.device = device = model.device
        on_gpu = device.type == "cuda"
        self.steps_per_sync = steps_per_sync or (16 if on_gpu else 1)
        self.runner = runner or (GraphRunner(device) if graphs_enabled(device) else EagerRunner())
        # On a CPU the plain step is faster.
        self.decoder = (CompiledDecoder if compile and on_gpu else FusedDecoder)(model)

        self.waiting = deque(product(range(len(prompt_ids)), range(completions)))  # (n, g)
        self.slots = [None] * min(max_rows, len(self.waiting))  # Rows; None: idle
        self.groups = [[None] * completions for _ in prompt_ids]
        self.finished = 0
        self.cached_prompts = []  # their numbers, in the cache's order

        B = len(self.slots)
        max_tokens = model.config.max_completion(params.max_new_tokens)
        # A row may overrun its limit before the next sync.
        self.max_length = max_tokens + self.steps_per_sync
        capacity = round_up(min(max_tokens, INITIAL_CAPACITY) + self.steps_per_sync)
        dtype = self.decoder.head.dtype if on_gpu else torch.float32
        self.cache = KVCache(
            model.config,
            B,
            capacity,
            device,
            dtype,
            self.runner.rounded,
            self.runner.prompt_multiple,
        )
        self.token_B = torch.zeros(B, dtype=torch.long, device=device)
        self.position_B = torch.zeros_like(self.token_B)
        self.count_B = torch.zeros_like(self.token_B)
        self.uniform_BT = torch.zeros(B, self.max_length, device=device)

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting) or any(self.slots)

    def draw_tokens(self) -> list[list[int]]:
        """Admits waiting rows, then draws `steps_per_sync` tokens in every slot: returns them
        [steps_per_sync][B]."""
        self.admit()
        length = max(len(row.ids) for row in self.slots if row) + self.steps_per_sync
        self.ensure_capacity(length)
        tokens, logprobs = map(torch.stack, zip(*self.decode(length)))
        drawn = torch.stack((tokens.double(), logprobs.double())).tolist()  # exact, in one copy
        tokens, logprobs = [list(map(int, token_B)) for token_B in drawn[0]], drawn[1]
        self.append(tokens, logprobs)
        return tokens

    def admit(self) -> None:
        """Gives idle slots to waiting rows. When none waits, drops idle slots, if
        there are many."""
        idle = [slot for slot, row in enumerate(self.slots) if row is None]
        new = idle[: len(self.waiting)]
        if new:
            self.start_rows(new)
        shrunk = self.shrink()
        if not new and not shrunk:
            return
        in_use = dict.fromkeys(row.n for row in self.slots if row)
        missing = [n for n in in_use if n not in self.cached_prompts]
        if missing:
            self.prefill(missing)
        elif shrunk:
            self.replace_unused([], [], [])
        index = {n: i for i, n in enumerate(self.cached_prompts)}
        idle_prompt = self.runner.idle_prompt
        self.cache.assign_prompts([index[row.n] if row else idle_prompt for row in self.slots])

    def start_rows(self, slots: Sequence[int]) -> None:
        """Starts a waiting row in each of these slots, at the last token of its prompt."""
        last, position, number = [], [], []
        for slot in slots:
            n, g = self.waiting.popleft()
            ids = self.prompt_ids[n]
            limit = self.model.config.max_completion(self.params.max_new_tokens, len(ids))
            self.slots[slot] = Row(n, g, limit)
            last.append(ids[-1])
            position.append(len(ids) - 1)
            number.append((self.first_prompt + n) * self.completions + g)
        count = max(self.slots[slot].max_tokens for slot in slots)
        [uniform_BT] = to_device([self.uniforms(number, count)], self.device)
        rows = torch.tensor([slots, last, position])
        slot_B, last_B, position_B = to_device([rows], self.device)[0]
        self.token_B.index_copy_(0, slot_B, last_B)
        self.position_B.index_copy_(0, slot_B, position_B)
        self.count_B.index_fill_(0, slot_B, 0)
        self.uniform_BT[:, :count].index_copy_(0, slot_B, uniform_BT)

    def shrink(self) -> bool:
        """Drops idle slots if there are many of them. Returns whether it did."""
        used = [slot for slot, row in enumerate(self.slots) if row]
        size = self.runner.rounded(len(used))
        if size >= self.runner.shrink_below * len(self.slots):
            return False
        idle = size - len(used)
        self.slots = [self.slots[slot] for slot in used] + [None] * idle
        # The contents of an idle slot do not matter.
        [kept] = to_device([torch.tensor(used + used[:1] * idle)], self.device)
        self.cache.select_rows(kept)
        self.token_B, self.position_B = self.token_B[kept], self.position_B[kept]
        self.count_B, self.uniform_BT = self.count_B[kept], self.uniform_BT[kept]
        return True

    def prefill(self, new: Sequence[int]) -> None:
        """Prefills these prompts up to their last token, which is the first decoding step's input.
        In the cache they replace the unused ones."""
        lengths = {n: len(self.prompt_ids[n]) for n in new}
        for numbers in pack_greedily(lengths, new, PREFILL_TOKENS):
            prefixes = [self.prompt_ids[n][:-1] for n in numbers]
            attend = PackedAttention(list(map(len, prefixes)), keep_kv=True, device=self.device)
            if any(prefixes):
                token_M = torch.tensor(sum(prefixes, []))
                position_M = torch.cat([torch.arange(len(ids)) for ids in prefixes])
                self.model.hidden(*to_device([token_M, position_M], self.device), attend)
            self.replace_unused(numbers, attend.kept_kv, attend.lengths)

    def replace_unused(self, new: list[int], kv: Sequence, lengths: list[int]) -> None:
        """Puts these prompts in the cache, in place of those that no row needs any more."""
        used = {row.n for row in self.slots if row}
        if self.waiting:
            used.add(self.waiting[0][0])  # a group may be split between slots and queue
        keep = [i for i, n in enumerate(self.cached_prompts) if n in used]
        self.cache.add_prompts(keep, kv, lengths)
        self.cached_prompts = [self.cached_prompts[i] for i in keep] + new

    def ensure_capacity(self, length: int) -> None:
        while length > self.cache.capacity:
            self.cache.grow(min(2 * self.cache.capacity, round_up(self.max_length)))

    def decode(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """`steps_per_sync` decoding steps, after which no row has more than `length` tokens."""
        length = min(self.runner.rounded_length(length), self.cache.capacity)
        reads = *self.cache.tensors(), self.token_B, self.position_B, self.count_B, self.uniform_BT
        decode_step = partial(self.decode_step, length)
        return [self.runner.run(decode_step, length, reads) for _ in range(self.steps_per_sync)]

    def decode_step(self, length: int) -> tuple[Tensor, Tensor]:
        """Draws the next token of every slot: (token_B, its log-probability logp_B)."""
        # Idle slots keep counting; the clamp keeps them inside the cache.
        limit = min(self.cache.capacity, self.max_length)
        count_B = self.count_B.clamp(max=limit - 1)
        uniform_B = self.uniform_BT.gather(1, count_B[:, None])[:, 0]
        slots = Slots(self.token_B, self.position_B, count_B, uniform_B)
        token_B, logp_B = self.decoder.next_tokens(self.cache, slots, length, self.params)
        self.token_B.copy_(token_B)
        self.position_B += 1
        self.count_B += 1
        return token_B, logp_B

    def append(self, tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> None:
        """Appends what was drawn, [steps_per_sync][B], to the rows. Finished rows leave their
        slots."""
        for slot, row in enumerate(self.slots):
            if row is None:
                continue
            for token_B, logp_B in zip(tokens, logprobs):
                row.ids.append(token_B[slot])
                row.logprobs.append(logp_B[slot])
                if row.ids[-1] in self.tokenizer.stop_ids or len(row.ids) == row.max_tokens:
                    self.groups[row.n][row.g] = self.rollout(row)
                    self.finished += 1
                    self.slots[slot] = None
                    break

    def rollout(self, row: Row) -> Rollout:
        """Raises ValueError if a probability of the row is NaN."""
        prompt_ids = self.prompt_ids[row.n]
        if not math.isfinite(sum(row.logprobs)):
            prompt = self.tokenizer.decode(prompt_ids)[:60]
            raise ValueError(
                f"the model's probabilities are NaN: completion {row.g + 1} of prompt {prompt!r}"
            )
        finished = row.ids[-1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(row.ids[:-1] if finished else row.ids)
        ids, logprobs = tuple(row.ids), tuple(row.logprobs)
        return Rollout(tuple(prompt_ids), ids, logprobs, text, finished)


@torch.inference_mode()
def dry_run(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    completions: int,
    params: SamplingParams,
    max_rows: int,
    compile: bool = False,
) -> Sampler:
    """Uses as much memory as `sample` ever can: fills every slot, grows the cache to its limit, and
    decodes once up to a sync, which reads all of it, also as a CUDA graph."""
    sampler = Sampler(
        model, tokenizer, prompt_ids, completions, params, 0, max_rows=max_rows, compile=compile
    )
    sampler.admit()
    sampler.ensure_capacity(sampler.max_length)
    sampler.decode(sampler.max_length)
    return sampler
