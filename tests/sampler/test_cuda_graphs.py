"""Replayed steps give the same results as direct steps. Without a GPU, a tape replaces the graph: it
records the operators of one step, with the memory that they read and write, and runs them again."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import random_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.sampler import cuda_graphs
from r1mini.sampler import sampler as sampler_module
from r1mini.sampler.compiled import CompiledDecoder
from r1mini.sampler.cuda_graphs import GraphRunner, graphs_enabled
from r1mini.sampler.sampler import Sampler, encode_prompts
from r1mini.sampler.sampling import SamplingParams
from r1mini.training.logprobs import collate, token_logprobs

PROMPTS = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]
CPU = torch.device("cpu")
TO_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


class NoWait(TorchDispatchMode):
    """Refuses operators that need tensor values on the host, which would wait for the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func is torch.ops.aten.index.Tensor and any(
            x.dtype in (torch.bool, torch.uint8) for x in tensors(args[1])
        )
        assert not masks and (
            func is torch.ops.aten.index.Tensor or not TO_HOST & set(func.tags)
        ), func
        return func(*args, **(kwargs or {}))


class Tape(NoWait):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert "lift_fresh" not in str(func) and not (
            "_to_copy" in str(func) and "device" in kwargs
        ), func  # from the host
        self.done.append(
            (func, args, kwargs, outputs := super().__torch_dispatch__(func, types, args, kwargs))
        )
        return outputs

    @torch.autocast("cpu", enabled=False)  # was applied during recording
    def replay(self):
        for func, args, kwargs, outputs in self.done:
            for old, new in zip(tensors(outputs), tensors(func(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class Taped(GraphRunner):
    """Like a GPU: recording computes nothing, and each replay overwrites the results of the last."""

    def __init__(self):
        super().__init__(CPU)
        self.runs = self.records = self.moves = 0

    def run(self, step, name, reads):
        self.runs += 1
        self.reads = reads
        return super().run(step, name, reads)

    def new_pool(self):
        self.moves += 1

    def warm_up(self, step):
        return step()

    def capture(self, step):
        self.records += 1
        before = [x.clone() for x in self.reads]
        with Tape() as tape:
            outputs = step()
        for x, old in zip(self.reads, before):
            x.copy_(old)
        for x in outputs:
            x.fill_(7)
        return tape.replay, outputs


class Untaped(GraphRunner):
    """The same shapes, without a tape."""

    def run(self, step, name, reads):
        return step()


def stopping(tokens, every=8):
    return Tokenizer(tokens.backend, range(0, tokens.vocab_size, every))


@torch.inference_mode()
def sampled(model, tokens, prompts, group, params, **settings):
    sampler = Sampler(
        model, tokens, encode_prompts(model, tokens, prompts), group, params, 0, **settings
    )
    while sampler.has_unfinished:
        sampler.draw_tokens()
    return {(n, g): r for n, group in enumerate(sampler.groups) for g, r in enumerate(group)}


def same(rollouts, expected, atol=1e-5):
    assert {key: (r.completion_ids, r.finished) for key, r in rollouts.items()} == {
        key: (r.completion_ids, r.finished) for key, r in expected.items()
    }
    for key, r in rollouts.items():
        torch.testing.assert_close(
            torch.tensor(r.logprobs), torch.tensor(expected[key].logprobs), atol=atol, rtol=0
        )


@settings(max_examples=8)
@given(
    prompts=st.lists(st.text("aM 24\n", min_size=1, max_size=30), min_size=1, max_size=6),
    group=st.integers(1, 7),
    max_rows=st.integers(1, 24),
    block=st.integers(1, 9),
    limit=st.integers(1, 40),
    every=st.sampled_from([5, 20, 10**6]),
)
# Drops slots; then prompts that grow; then a single token.
@example(prompts=["a", "Make 24\n" * 3, "b"], group=7, max_rows=21, block=4, limit=60, every=5)
@example(prompts=["a"] * 5 + ["Make 24\n" * 3], group=2, max_rows=3, block=3, limit=60, every=20)
@example(prompts=["a"], group=1, max_rows=1, block=1, limit=1, every=5)
def test_rounding_shapes_and_replaying_steps_change_no_rollout(
    model, tokens, prompts, group, max_rows, block, limit, every
):
    tokenizer, params = stopping(tokens, every), SamplingParams(limit)
    runner = Taped()
    run = partial(sampled, model, tokenizer, prompts, group, params, max_rows=max_rows)
    same(run(steps_per_sync=block, runner=runner), run())


@pytest.mark.parametrize(
    "params",
    [SamplingParams(20, temperature=0), SamplingParams(20, 0.7, top_k=9, top_p=0.9, min_p=0.01)],
)
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True, "attention_bias": True}])
def test_every_model_family_and_sampling_option_can_be_recorded(tokens, params, kind):
    model = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False)
    tokenizer = stopping(tokens)
    runner = Taped()
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            run = partial(sampled, model, tokenizer, PROMPTS, 4, params, steps_per_sync=5)
            same(run(runner=runner), run(runner=Untaped(CPU)), atol=0)
    assert runner.records


def test_few_graphs_serve_a_long_queue(model, tokens, monkeypatch):
    monkeypatch.setattr(sampler_module, "INITIAL_CAPACITY", 16)
    runner, prompts = Taped(), [text + "x" * (i % 5) for i, text in enumerate(PROMPTS * 30)]
    tokenizer, params = stopping(tokens, 16), SamplingParams(90)
    sampled(model, tokenizer, prompts, 8, params, max_rows=64, steps_per_sync=8, runner=runner)
    # Tensors move when the cache grows (to 24, 48, 96), when slots are dropped (64: 24, 8, 3), and
    # when so many prompts are alive for the first time.
    assert runner.runs > 250 and runner.moves <= 12 and runner.records <= 14


def test_step_is_recorded_again_if_a_tensor_moves():
    runner, x = Taped(), torch.zeros(3)
    step = lambda: (x.add_(1) * 2,)
    outputs = [runner.run(step, "a", [x])[0].tolist() for _ in range(3)]
    assert outputs == [[2.0] * 3, [4.0] * 3, [6.0] * 3] and runner.records == 1
    x.fill_(9)  # in place: seen by the next replay
    kept = runner.run(step, "a", [x])[0]
    runner.run(step, "a", [x])
    assert kept.tolist() == [20.0] * 3  # and not overwritten
    runner.run(step, "b", [x])
    assert set(runner.graphs) == {"a", "b"} and runner.moves == 1
    x = torch.zeros(3)
    assert (
        runner.run(step, "a", [x])[0].tolist() == [2.0] * 3
        and set(runner.graphs) == {"a"}
        and runner.moves == 2
    )


@pytest.mark.parametrize(
    "host",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0]),
        lambda x: x.masked_select(x > 0),
        lambda x: x.to("cpu", copy=True),
        lambda x: bool(x.any()),
    ],
)
def test_tape_refuses_operations_that_a_graph_cannot_capture(host):
    with pytest.raises(AssertionError), Tape():
        host(torch.ones(3))


def test_step_reads_no_tensor_values(model, tokens, monkeypatch):
    """Runs on tensors with shapes and no values: a step that depends on a value would fail."""
    monkeypatch.setattr(
        torch, "autocast", lambda *args, **kwargs: nullcontext()
    )  # does not support this device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    params = SamplingParams(20, 0.7, top_k=9, top_p=0.9, min_p=0.01)
    empty = copy.deepcopy(model).to("meta")
    with torch.inference_mode():
        sampler = Sampler(
            empty, tokens, encode_prompts(model, tokens, PROMPTS), 4, params, 0, runner=Taped()
        )
        sampler.admit()
        drawn, logp = sampler.decode_step(16)
    assert drawn.shape == logp.shape == (12,) and drawn.is_meta and logp.is_meta


class Eager(GraphRunner):
    """The same shapes, launched kernel by kernel; nothing may synchronize with the host."""

    def run(self, step, name, reads):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step()
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(90),
        SamplingParams(40, temperature=0),
        SamplingParams(40, 0.7, top_k=9, top_p=0.9, min_p=0.01),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True, "attention_bias": True}])
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_give_the_same_rollouts_as_eager_steps(tokens, params, kind, bf16):
    device, tokenizer = torch.device("cuda"), stopping(tokens, 16)
    runner = GraphRunner(device)
    model = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False).to(device)
    run = partial(sampled, model, tokenizer, PROMPTS * 6, 8, params, max_rows=64)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        same(run(runner=runner), run(runner=Eager(device)), 0)
    assert any(runner.graphs.values()) and len(runner.graphs) <= 2 * math.log2(128)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True, "attention_bias": True}])
def test_compiled_graphs_give_the_same_rollouts(tokens, kind):
    device, tokenizer = torch.device("cuda"), stopping(tokens, 16)
    model = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False).to(device)
    run = partial(sampled, model, tokenizer, PROMPTS * 6, 8, SamplingParams(90), max_rows=64)
    same(run(compile=True), run(runner=Eager(device)))
    with torch.autocast("cuda", torch.bfloat16):
        run(compile=True)
    assert not CompiledDecoder.refused and device not in cuda_graphs.refused


@pytest.mark.gpu
def test_refused_capture_leaves_a_working_allocator(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "refused", set())
    device = torch.device("cuda", 0)
    x, runner = torch.ones(3, device=device), GraphRunner(device)
    step = lambda: (x * x.sum().item(),)  # reads a value: cannot be captured
    for _ in range(3):
        assert runner.run(step, "a", [x])[0].tolist() == [3.0] * 3
    assert device in cuda_graphs.refused
    torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
def test_gpu_samples_the_same_tokens_as_cpu(tokens):
    model = random_model(vocab_size=tokens.vocab_size).requires_grad_(False)
    tokenizer = stopping(tokens, 16)
    run = lambda: sampled(model, tokenizer, PROMPTS * 6, 8, SamplingParams(90), max_rows=64)
    expected, _ = run(), model.to("cuda")
    rollouts = run()
    alike = [key for key, r in rollouts.items() if r.completion_ids == expected[key].completion_ids]
    assert len(alike) >= 0.95 * len(expected)  # rounding may change a sampled token
    same({key: rollouts[key] for key in alike}, {key: expected[key] for key in alike}, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_gpu_micro_batch_never_waits_and_needs_no_quadratic_memory(bf16):
    model = random_model(max_position_embeddings=4096).to("cuda")
    rows = [([3, 4], [5, 6, 7]), ([1], [2] * 4000)]
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        token_logprobs(model, collate(rows).to("cuda")).sum().backward()  # warm-up
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            token_logprobs(model, collate(rows).to("cuda")).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 4000**2 * 4  # of a single head's scores


def test_graphs_can_be_turned_off(monkeypatch):
    monkeypatch.delenv("R1MINI_GRAPHS", raising=False)
    assert graphs_enabled(torch.device("cuda")) and not graphs_enabled(torch.device("cpu"))
    monkeypatch.setenv("R1MINI_GRAPHS", "0")
    assert not graphs_enabled(torch.device("cuda"))
