"""The decoding step for torch.compile: the same tokens as the plain one, in few calls, without a graph
break. On a CPU only the tests use it."""

import copy
import re
from unittest.mock import patch

import pytest
import torch
from conftest import CONFIGS, random_model
from model.test_lora import moved, plan
from pretend_gpu import pretend_gpu
from torch._inductor import cpu_vec_isa
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import run_and_get_code

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.model import lora
from r1mini.sampler import compiled as compiled_module
from r1mini.sampler import sampler as sampler_module
from r1mini.sampler.compiled import CompiledDecoder, layer_step
from r1mini.sampler.cuda_graphs import GraphRunner
from r1mini.sampler.decode import Slots
from r1mini.sampler.sampler import Sampler, encode_prompts
from r1mini.sampler.sampling import SamplingParams

PROMPTS = ["Make 24 from 3, 5, 9.\n", "x", "Balance H2 + O2 -> H2O\n"]  # "x": nothing in the cache


class Rounded(GraphRunner):
    """The shapes of graphs, without them."""

    def __init__(self):
        super().__init__(torch.device("cpu"))

    def run(self, step, name, reads):
        return step()


@torch.inference_mode()
def sampled(model, tokens, compile, runner=None, group=5, limit=40):
    """Rollouts of slots that are refilled and dropped, and of a cache that grows."""
    tokenizer = Tokenizer(tokens.backend, range(0, tokens.vocab_size, 16))
    prompts = encode_prompts(model, tokenizer, PROMPTS * 2)
    params = SamplingParams(limit, 0.9)
    sampler = Sampler(
        model, tokenizer, prompts, group, params, 0, max_rows=12, runner=runner or Rounded(),
        steps_per_sync=4,
    )  # fmt: skip
    if compile:
        sampler.decoder = CompiledDecoder(model)
    while sampler.has_unfinished:
        sampler.draw_tokens()
    return sampler.groups


def same(groups, expected, atol=1e-5):
    for group, other in zip(groups, expected, strict=True):
        for one, two in zip(group, other, strict=True):
            assert one.completion_ids == two.completion_ids
            assert one.logprobs == pytest.approx(two.logprobs, abs=atol)


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(compiled_module, "compiled", lambda function: function)


@pytest.mark.parametrize("kind", CONFIGS)
def test_rollouts_are_those_of_the_plain_step(tokens, kind, uncompiled, monkeypatch):
    monkeypatch.setattr(sampler_module, "INITIAL_CAPACITY", 16)
    changes = {"vocab_size": tokens.vocab_size, **CONFIGS[kind]}
    model = random_model(**changes).requires_grad_(False)
    same(sampled(model, tokens, True), sampled(model, tokens, False))


def test_adapters_and_bf16(tokens, uncompiled):
    model = random_model(vocab_size=tokens.vocab_size)
    lora.attach(model, plan(model))
    lora.init_adapters(model, seed=0)
    moved(model, 0.1)
    same(sampled(model, tokens, True), sampled(model, tokens, False))
    with torch.autocast("cpu", torch.bfloat16):
        groups, expected = sampled(model, tokens, True), sampled(model, tokens, False)
    first = [(a.logprobs[0], b.logprobs[0]) for a, b in zip(groups[0], expected[0])]
    assert all(one == pytest.approx(other, abs=0.1) for one, other in first)


def test_no_graph_break_and_few_programs(model, tokens, monkeypatch):
    """Compiled as far as torch's own operators; Inductor then only makes kernels of them."""
    monkeypatch.setattr(sampler_module, "INITIAL_CAPACITY", 16)
    programs = []

    def count(graph, inputs):
        programs.append(graph)
        return graph.forward

    def compile(function):
        return torch.compile(function, fullgraph=True, backend=count)

    functions = compiled_module.first_tensors, layer_step, compiled_module.last_tokens
    kept = {function: compile(function) for function in functions}
    monkeypatch.setattr(compiled_module, "compiled", kept.get)
    expected = sampled(model, tokens, False, limit=90)
    same(sampled(model, tokens, True, limit=90), expected)
    count_of_first = len(programs)
    same(sampled(copy.deepcopy(model), tokens, True, limit=90), expected)  # other weights
    assert len(programs) == count_of_first <= 16


KERNEL = re.compile(
    r"^\s+(?:\w+ = )?(cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.aten\.\w+)", re.M
)


@torch.inference_mode()
def test_a_layer_is_at_most_12_calls(model, tokens):
    """In the code that Inductor makes for a CPU without vector instructions. Its C++ is not compiled,
    nor are the programs that try out the machine's instructions: that would take minutes."""
    prompts = encode_prompts(model, tokens, PROMPTS)
    sampler = Sampler(model, tokens, prompts, 4, SamplingParams(9), 0, runner=Rounded())
    sampler.admit()
    cache, decoder = sampler.cache, CompiledDecoder(model)
    slots = Slots(sampler.token_B, sampler.position_B, sampler.count_B, sampler.uniform_BT[:, 0])
    x_BD, step = compiled_module.first_tensors(model, model.config, cache, slots, 16)
    kv = [pool[0] for pool in cache.pools()]
    compiled = torch.compile(layer_step, fullgraph=True)
    with (
        patch.object(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None),
        patch.object(cpu_vec_isa, "valid_vec_isa_list", list),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        args = model.config, decoder.norm_floor, decoder.layers[0], x_BD, *kv, step
        _, [code] = run_and_get_code(compiled, *args)
    calls = KERNEL.findall(code[code.index("def call(") :])
    assert sum(call.startswith("extern_kernels") for call in calls) == 4  # the weights
    assert sum("scaled_dot_product" in call and "torch" in call for call in calls) == 2
    assert 8 <= len(calls) <= 12, calls
    size = ", ".join(map(str, cache.key.shape[1:]))
    assert f"({size})" in code  # the pool, which is
    assert not re.search(rf"empty_strided_cpu\(\({size}\)", code)  # not copied


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_compiled_step_on_a_pretended_gpu(model, tokens, uncompiled, graphs, bf16):
    """What torch.compile is given: no mixed devices, one wait for each block of steps, and in bf16
    too what the attention of a GPU demands."""
    expected = sampled(model, tokens, False)
    with pretend_gpu() as waits, torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        on_gpu = copy.deepcopy(model).to("cuda")
        waits.clear()
        runner = GraphRunner(torch.device("cuda")) if graphs else Rounded()
        groups = sampled(on_gpu, tokens, True, runner)
        assert bf16 or same(groups, expected) is None
    assert {line.split(" in ")[1] for line in waits} == {"draw_tokens: tolist"}


@pytest.mark.parametrize("fails", ["compile", "attention"])
def test_sampling_goes_on_if_the_step_cannot_be_compiled(model, tokens, monkeypatch, capsys, fails):
    def refuse(*_):
        raise AssertionError("Inductor: no compiler\nmore lines")  # of any kind

    expected = sampled(model, tokens, False)
    monkeypatch.setattr(CompiledDecoder, "refused", False)
    monkeypatch.setattr(compiled_module, "compiled", lambda function: function)
    name = "compiled" if fails == "compile" else "attention"
    monkeypatch.setattr(compiled_module, name, refuse)
    same(sampled(model, tokens, True), expected)
    assert capsys.readouterr().err == (
        "--compile: not for the sampler (Inductor: no compiler); sampling goes on without it\n"
    )
