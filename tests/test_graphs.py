"""Steps by graph give what steps give. Where there is no GPU, a tape stands in for the graph: the operators of one step, with
the memory that they read and write, run again without the program around them."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import random_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_rollout import PROMPTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_grpo
from r1mini import optim, rollout
from r1mini.batch import collate, token_logprobs, token_logprobs_and_entropy
from r1mini.graphs import Graphs, wanted
from r1mini.records import Rollout
from r1mini.rollout import Sampler, Sampling, encode
from r1mini.tokenizer import Tokenizer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")
TO_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


class NoWait(TorchDispatchMode):
    """Refuses what depends on numbers that a GPU has and its host has not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func is torch.ops.aten.index.Tensor and any(x.dtype in (torch.bool, torch.uint8) for x in tensors(args[1]))
        assert not masks and (func is torch.ops.aten.index.Tensor or not TO_HOST & set(func.tags)), func
        return func(*args, **(kwargs or {}))


class Tape(NoWait):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert "lift_fresh" not in str(func) and not ("_to_copy" in str(func) and "device" in kwargs), func  # from the host
        self.done.append((func, args, kwargs, made := super().__torch_dispatch__(func, types, args, kwargs)))
        return made

    @torch.autocast("cpu", enabled=False)  # has had its say
    def replay(self):
        for func, args, kwargs, made in self.done:
            for old, new in zip(tensors(made), tensors(func(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class Taped(Graphs):
    """As on a GPU: what is recorded is not computed yet, and results are written over by the next replay."""

    def __init__(self):
        super().__init__(CPU)
        self.runs = self.records = self.moves = 0

    def run(self, step, name, read):
        self.runs += 1
        self.read = read
        return super().run(step, name, read)

    def new_pool(self):
        self.moves += 1

    def first(self, step):
        return step()

    def record(self, step):
        self.records += 1
        before = [x.clone() for x in self.read]
        with Tape() as tape:
            made = step()
        for x, old in zip(self.read, before):
            x.copy_(old)
        for x in made:
            x.fill_(7)
        return tape.replay, made


class Plain(Graphs):
    """The same shapes, without a tape."""

    def run(self, step, name, read):
        return step()


def stopping(tokens, every=8):
    return Tokenizer(tokens.backend, range(0, tokens.vocab_size, every))


@torch.inference_mode()
def sampled(model, tokens, prompts, group, how, **settings):
    sampler = Sampler(model, tokens, encode(model, tokens, prompts), group, how, 0, **settings)
    found = {}
    while sampler.busy:
        found |= {(n, g): r for n, g, r in sampler.advance()[1]}
    return found


def same(found, expected, atol=1e-5):
    assert {key: (r.completion_ids, r.finished) for key, r in found.items()} == {
        key: (r.completion_ids, r.finished) for key, r in expected.items()}
    for key, r in found.items():
        torch.testing.assert_close(torch.tensor(r.logprobs), torch.tensor(expected[key].logprobs), atol=atol, rtol=0)


@settings(max_examples=8)
@given(prompts=st.lists(st.text("aM 24\n", min_size=1, max_size=30), min_size=1, max_size=6), group=st.integers(1, 7),
       places=st.integers(1, 24), block=st.integers(1, 9), limit=st.integers(1, 40), every=st.sampled_from([5, 20, 10**6]))
@example(prompts=["a", "Make 24\n" * 3, "b"], group=7, places=21, block=4, limit=60, every=5)  # places are given up
@example(prompts=["a"] * 5 + ["Make 24\n" * 3], group=2, places=3, block=3, limit=60, every=20)  # the prompts grow
@example(prompts=["a"], group=1, places=1, block=1, limit=1, every=5)
def test_shapes_rounded_up_and_steps_by_tape_change_no_rollout(model, tokens, prompts, group, places, block, limit, every):
    tokenizer, how = stopping(tokens, every), Sampling(limit)
    graphs = Taped()
    expected = sampled(model, tokenizer, prompts, group, how, places=places)
    same(sampled(model, tokenizer, prompts, group, how, places=places, block=block, graphs=graphs), expected)


@pytest.mark.parametrize("how", [Sampling(20, temperature=0), Sampling(20, 0.7, top_k=9, top_p=0.9, min_p=0.01)])
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True, "attention_bias": True}])
def test_every_kind_of_model_and_of_sampling_can_be_recorded(tokens, how, kind):
    model, tokenizer = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False), stopping(tokens)
    graphs = Taped()
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            expected = sampled(model, tokenizer, PROMPTS, 4, how, block=5, graphs=Plain(CPU))
            same(sampled(model, tokenizer, PROMPTS, 4, how, block=5, graphs=graphs), expected, atol=0)
    assert graphs.records


def test_few_graphs_serve_a_long_queue(model, tokens, monkeypatch):
    monkeypatch.setattr(rollout, "GROWTH", 16)
    graphs, prompts = Taped(), [text + "x" * (i % 5) for i, text in enumerate(PROMPTS * 30)]
    sampled(model, stopping(tokens, 16), prompts, 8, Sampling(90), places=64, block=8, graphs=graphs)
    # What is read moves where the cache grows (to 24, 48, 96), where places are given up (64: 24, 8, 3), and where so many prompts
    # are alive for the first time.
    assert graphs.runs > 250 and graphs.moves <= 12 and graphs.records <= 14


def test_what_reads_elsewhere_is_recorded_again():
    graphs, x = Taped(), torch.zeros(3)
    step = lambda: (x.add_(1) * 2,)
    made = [graphs.run(step, "a", [x])[0].tolist() for _ in range(3)]
    assert made == [[2.0] * 3, [4.0] * 3, [6.0] * 3] and graphs.records == 1
    x.fill_(9)  # in place: seen by the next replay
    kept = graphs.run(step, "a", [x])[0]
    graphs.run(step, "a", [x])
    assert kept.tolist() == [20.0] * 3  # and not written over
    graphs.run(step, "b", [x])
    assert set(graphs.recorded) == {"a", "b"} and graphs.moves == 1
    x = torch.zeros(3)
    assert graphs.run(step, "a", [x])[0].tolist() == [2.0] * 3 and set(graphs.recorded) == {"a"} and graphs.moves == 2


@pytest.mark.parametrize("host", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: torch.tensor([1.0]),
                                  lambda x: x.masked_select(x > 0), lambda x: x.to("cpu", copy=True), lambda x: bool(x.any())])
def test_the_tape_refuses_what_a_graph_cannot_hold(host):
    with pytest.raises(AssertionError), Tape():
        host(torch.ones(3))


def test_a_step_looks_at_no_number(model, tokens, monkeypatch):
    """On tensors that have shapes and no numbers: whatever a step decided by one would end it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    how = Sampling(20, 0.7, top_k=9, top_p=0.9, min_p=0.01)
    empty = copy.deepcopy(model).to("meta")
    with torch.inference_mode():
        sampler = Sampler(empty, tokens, encode(model, tokens, PROMPTS), 4, how, 0, graphs=Taped())
        sampler.admit()
        drawn, logp = sampler.step(16)
    assert drawn.shape == logp.shape == (12,) and drawn.is_meta and logp.is_meta


@pytest.mark.parametrize("logprobs", [token_logprobs, token_logprobs_and_entropy])
def test_a_micro_batch_of_the_learner_waits_for_nothing(logprobs):
    model = random_model()
    batch = collate([([3, 4], [5, 6, 7]), ([3, 4], [5]), ([1], [2] * 30), ([], [4, 4, 1])])
    with NoWait():
        found = logprobs(model, batch)
        (found if logprobs is token_logprobs else found[0] + found[1]).sum().backward()


def test_an_update_reads_no_number_before_its_last_micro_batch(monkeypatch):
    events, real, policy = [], train_grpo.collate, random_model()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            events.extend(["read"] * (func is torch.ops.aten._local_scalar_dense.default))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(train_grpo, "collate", lambda rows: events.append("collate") or real(rows))
    rollouts = [Rollout((3, 4), (5, 6, 7 + i), (-1.0,) * 3, "", True) for i in range(6)]
    with Watch():
        train_grpo.update(train_grpo.Config(learner_tokens=8), policy, None, optim.optimizers(policy, "adamw", 1e-3, 0.0), 1e-3,
                          rollouts, [(r.logprobs, [0.0] * 3) for r in rollouts], torch.arange(1.0, 7), CPU)
    micro = [i for i, event in enumerate(events) if event == "collate"]
    assert len(micro) == 3 and "read" not in events[micro[0] : micro[-1]] and "read" in events[micro[-1] :]


class Eager(Graphs):
    """The same shapes, every step launched kernel by kernel, none of which may wait for the host."""

    def run(self, step, name, read):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step()
        finally:
            torch.cuda.set_sync_debug_mode(before)


@needs_gpu
@pytest.mark.parametrize("how", [Sampling(90), Sampling(40, temperature=0), Sampling(40, 0.7, top_k=9, top_p=0.9, min_p=0.01)])
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True, "attention_bias": True}])
@pytest.mark.parametrize("bf16", [False, True])
def test_graphs_on_a_gpu_give_what_steps_give(tokens, how, kind, bf16):
    device, tokenizer, graphs = torch.device("cuda"), stopping(tokens, 16), Graphs(torch.device("cuda"))
    model = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False).to(device)
    run = partial(sampled, model, tokenizer, PROMPTS * 6, 8, how, places=64)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        same(run(graphs=graphs), run(graphs=Eager(device)), 0)
    assert any(graphs.recorded.values()) and len(graphs.recorded) <= 2 * math.log2(128)


@needs_gpu
def test_a_gpu_samples_what_a_cpu_samples(tokens):
    model, tokenizer = random_model(vocab_size=tokens.vocab_size).requires_grad_(False), stopping(tokens, 16)
    run = lambda: sampled(model, tokenizer, PROMPTS * 6, 8, Sampling(90), places=64)
    expected, _ = run(), model.to("cuda")
    found = run()
    alike = [key for key, r in found.items() if r.completion_ids == expected[key].completion_ids]
    assert len(alike) >= 0.95 * len(expected)  # rounding may tip a draw
    same(*({key: rollouts[key] for key in alike} for rollouts in (found, expected)), 1e-3)


@needs_gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_a_micro_batch_on_a_gpu_waits_for_nothing_and_takes_no_quadratic_memory(bf16):
    model = random_model(max_position_embeddings=4096).to("cuda")
    rows = [([3, 4], [5, 6, 7]), ([1], [2] * 4000)]
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        token_logprobs(model, collate(rows).to("cuda")).sum().backward()  # makes ready what is made once
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            token_logprobs(model, collate(rows).to("cuda")).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 4000**2 * 4  # of one head's scores alone


def test_graphs_can_be_turned_off(monkeypatch):
    monkeypatch.delenv("R1MINI_GRAPHS", raising=False)
    assert wanted(torch.device("cuda")) and not wanted(torch.device("cpu"))
    monkeypatch.setenv("R1MINI_GRAPHS", "0")
    assert not wanted(torch.device("cuda"))
