import dataclasses

import pytest
import torch
from conftest import random_model, shape
from hypothesis import given
from hypothesis import strategies as st
from sampler.test_cuda_graphs import Taped

from r1mini import checkpoint
from r1mini.checkpoint.adapter import add_adapter
from r1mini.config import TrainOptions
from r1mini.model import lora
from r1mini.rl.config import GRPOConfig
from r1mini.rl.setup import memory_needed
from r1mini.sampler import sampler
from r1mini.sampler.kv_cache import KVCache, cache_bytes
from r1mini.sampler.sampler import dry_run
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import memory
from r1mini.training.logprobs import collate, token_logprobs
from r1mini.training.micro_batches import by_prompt

CPU = torch.device("cpu")


def fits(cfg, config=None):
    memory.require(memory_needed(cfg, CPU, config or shape()), CPU, cfg)


def kept_by_a_pass(model, tokens):
    """Bytes that a real forward pass keeps, without weights."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(x):
        if (at := x.untyped_storage().data_ptr()) not in parameters:
            storages[at] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        token_logprobs(model, collate([([1], [2] * (tokens - 1))]))
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True, "head_dim": 16}, {"attention_bias": True, "num_key_value_heads": 1}],
)
def test_activation_bytes_match_a_real_pass(changes):
    model, tokens = random_model(**changes), 100
    counted = memory.activation_bytes(model.config, tokens)
    assert kept_by_a_pass(model, tokens) == pytest.approx(counted, rel=0.15)


def test_activation_bytes_grow_with_tokens_and_layers_and_shrink_with_checkpointing():
    one = shape()
    count = memory.activation_bytes
    assert count(one, 200) == pytest.approx(2 * count(one, 100), rel=0.01)
    deep = dataclasses.replace(one, num_hidden_layers=20)
    assert count(deep, 100) == pytest.approx(10 * count(one, 100), rel=0.1)
    assert count(deep, 100, gradient_checkpointing=True) < count(deep, 100) / 5


def test_bytes_of_weights_and_moments_by_hand(monkeypatch):
    config = shape()
    model = random_model()
    weights = sum(p.numel() for p in model.parameters())
    adamw, muon = (
        memory.training_bytes(config, 10, TrainOptions(optimizer=kind))
        for kind in ("adamw", "muon")
    )
    assert (
        adamw["weights"] == adamw["gradients"] == 4 * weights and adamw["optimizer"] == 8 * weights
    )
    assert muon["optimizer"] == 8 * weights - 4 * sum(
        p.numel() for p in model.model.layers.parameters() if p.ndim == 2
    )
    assert (
        memory.training_bytes(config, 10, TrainOptions(optimizer="adamw"), reference=True)[
            "weights"
        ]
        == 8 * weights
    )
    monkeypatch.setattr(memory.distributed, "world_size", lambda: 2)
    two = memory.training_bytes(config, 10, TrainOptions(optimizer="adamw"))
    assert (
        two["optimizer"] == 4 * weights
        and two["whole weights"] == 4 * weights
        and two["learner"] == adamw["learner"]
    )
    # 3 rows of 5 tokens, a key and a value in each of 2 layers, 2 heads of 8 numbers, 2 bytes each
    assert (
        cache_bytes(dataclasses.replace(config, num_key_value_heads=2), 3, 5, 2)
        == 3 * 5 * 2 * 2 * 2 * 8 * 2
    )


LORA = {"lora_rank": 4, "optimizer": "adamw"}


def test_bytes_of_adapters_by_hand():
    config, model = shape(), random_model()
    base = sum(p.numel() for p in model.parameters())
    # A [4, in] and B [out, 4] of q, k, v, o, gate, up and down in each of 2 layers
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    own = 2 * 4 * sum(map(sum, shapes))
    sizes = memory.training_bytes(config, 10, GRPOConfig(**LORA))
    assert sizes["weights"] == 4 * base + 4 * own
    assert (sizes["gradients"], sizes["optimizer"]) == (4 * own, 8 * own)
    # The reference has adapters of its own, and the same base.
    with_reference = memory.training_bytes(config, 10, GRPOConfig(**LORA), reference=True)
    assert with_reference["weights"] == sizes["weights"] + 4 * own
    bf16 = memory.training_bytes(config, 10, GRPOConfig(**LORA, bf16=True))
    assert bf16["weights"] == 2 * base + 4 * own
    fp32 = memory.training_bytes(config, 10, GRPOConfig(**LORA, bf16=True, base_dtype="float32"))
    assert fp32["weights"] == sizes["weights"]
    muon = memory.training_bytes(config, 10, GRPOConfig(lora_rank=4))
    assert muon["optimizer"] == 4 * own  # all adapters are matrices
    some = memory.training_bytes(config, 10, GRPOConfig(**LORA, lora_targets=("q_proj", "k_proj")))
    assert some["gradients"] == 4 * 2 * 4 * (64 + 48)


def test_bytes_of_an_adapter_folder_are_read_from_its_files(folder, tmp_path):
    model, tokenizer = checkpoint.load(folder)
    add_adapter(model, folder, 5, 8.0, ("q_proj", "up_proj"), seed=0)
    checkpoint.save(tmp_path / "adapter", model, tokenizer)
    cfg = GRPOConfig(model=str(tmp_path / "adapter"), optimizer="adamw")
    own = sum(x.numel() for x in lora.own_parameters(model).values())
    assert memory.training_bytes(model.config, 10, cfg)["gradients"] == 4 * own


def test_base_and_reference_have_a_shard_on_each_rank(monkeypatch):
    monkeypatch.setattr(memory.distributed, "world_size", lambda: 2)
    base = sum(p.numel() for p in random_model().parameters())
    cfg = GRPOConfig(**LORA, lora_targets=("q_proj",), bf16=True)
    own = 2 * 4 * (32 + 32)
    sizes = memory.training_bytes(shape(), 10, cfg, reference=True)
    assert sizes["weights"] == 2 * (2 * base + 4 * own) // 2
    assert sizes["whole weights"] == 2 * base + 4 * own


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_bytes_of_frozen_layers_match_a_real_pass(checkpointing):
    model, tokens, trained = random_model(), 100, random_model()
    plan = {name: (4, 1.0) for name in lora.linear_names(2)}
    lora.attach(model, plan)
    model.gradient_checkpointing = checkpointing
    counted = memory.activation_bytes(model.config, tokens, checkpointing, plan)
    if not checkpointing:
        assert kept_by_a_pass(model, tokens) == pytest.approx(counted, rel=0.15)
    only_q = {name: x for name, x in plan.items() if "q_proj" in name}
    fewer = memory.activation_bytes(model.config, tokens, checkpointing, only_q)
    everything = memory.activation_bytes(trained.config, tokens, checkpointing)
    assert fewer < counted <= 1.1 * everything


def test_run_that_does_not_fit_is_refused_with_sizes_and_flags(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2**30)
    cfg, large = GRPOConfig(), dataclasses.replace(shape(), num_hidden_layers=200)
    fits(cfg)
    with pytest.raises(
        ValueError,
        match=r"needs about .* GiB \(.*sampler .*\) .* but only 1.0 GiB are free: add --lora-rank 16, or lower --sampler-rows.*checkpoint",
    ):
        fits(
            dataclasses.replace(cfg, problems=512, sampler_rows=4096, max_new_tokens=10_000),
            dataclasses.replace(large, max_position_embeddings=20_000),
        )
    with pytest.raises(ValueError, match="learner "):
        fits(dataclasses.replace(cfg, learner_tokens=100_000), large)


def test_offloaded_moments_take_no_device_memory():
    there, away = (
        memory.training_bytes(shape(), 10, TrainOptions(optimizer="muon", optimizer_on=where))
        for where in ("device", "cpu")
    )
    assert away == {**there, "optimizer": 0} and there["optimizer"]


def test_gpu_estimate_refuses_only_what_can_never_fit(monkeypatch):
    """On a GPU, the dry run decides everything else."""
    parts = memory.training_bytes(shape(), 4096, TrainOptions(optimizer="adamw"))
    large = dataclasses.replace(shape(), num_hidden_layers=80)
    monkeypatch.setattr(memory, "raises_oom", lambda device: True)
    monkeypatch.setattr(
        memory, "available", lambda device: sum(parts[name] for name in memory.CERTAIN)
    )
    fits(GRPOConfig(optimizer="adamw"))
    with pytest.raises(
        ValueError,
        match=r"at least .* are free: add --lora-rank 16, or add --optimizer-on cpu, or use more ranks",
    ):
        fits(GRPOConfig(optimizer="adamw", beta=0.1))
    with pytest.raises(ValueError, match="are free: add --optimizer-on cpu"):  # adapters already
        fits(GRPOConfig(optimizer="adamw", beta=0.1, lora_rank=4), large)
    fits(GRPOConfig(optimizer="adamw", optimizer_on="cpu", beta=0.1))


@pytest.mark.parametrize(
    "free, tokens",
    [(10**9, 4096), (2_048_000 / 0.9 + 1, 2048), (2_048_000 / 0.9 - 1, 1024), (0, 256)],
)
def test_largest_fitting_micro_batch_is_chosen(free, tokens):
    assert (
        memory.largest_fitting(lambda n: {"weights": 0, "learner": 1000 * n}, free, CPU) == tokens
    )


def test_micro_batch_size_is_not_guessed_without_known_memory():
    with pytest.raises(ValueError, match="--learner-tokens 0: this system does not report"):
        memory.largest_fitting(lambda n: {}, None, CPU)


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_longest_rows_fill_one_micro_batch(tokens, rows, prompt, completion, group):
    longest = memory.longest_rows(tokens, rows, prompt, completion, group)
    assert len(by_prompt(longest, tokens)) == 1
    used = len(collate(longest).token_of_flat_M)
    # The remaining budget is too small for another token, or there is no row left to use it.
    assert len(longest) == rows or used >= tokens or tokens - used <= prompt
    assert {len(learned) for _, learned in longest[:-1]} <= {completion}


def test_sampler_dry_run_fills_the_cache_to_its_limit(model, tokens, monkeypatch):
    grown, real = [], KVCache.grow
    monkeypatch.setattr(
        KVCache,
        "grow",
        lambda cache, slots: grown.append((real(cache, slots), cache.key.nbytes)[1]),
    )
    dry_run(model, tokens, [[1, 2, 3]] * 3, 4, SamplingParams(125), max_rows=8)
    assert grown == []  # allocated from the beginning
    monkeypatch.setattr(sampler, "INITIAL_CAPACITY", 16)
    dry_run(model, tokens, [[1, 2, 3]] * 3, 4, SamplingParams(125), max_rows=8)
    assert 2 * grown[-1] == pytest.approx(cache_bytes(model.config, 8, 128, 4), rel=0.01)


def test_sampler_dry_run_includes_a_graph(model, tokens, monkeypatch):
    graphs = Taped()
    monkeypatch.setattr(sampler, "graphs_enabled", lambda device: True)
    monkeypatch.setattr(sampler, "GraphRunner", lambda device: graphs)
    real = sampler.Sampler
    monkeypatch.setattr(
        sampler, "Sampler", lambda *args, **settings: real(*args, **settings, steps_per_sync=2)
    )  # as on a GPU, some
    worst = dry_run(model, tokens, [[1, 2, 3]] * 3, 4, SamplingParams(100), max_rows=8)
    assert (
        list(graphs.graphs) == [worst.cache.capacity]
        and graphs.records == 1
        and worst.cache.capacity > 100
    )


def test_dry_run_holds_the_memory_of_the_moments(monkeypatch, capsys):
    done, real = [], torch.empty
    monkeypatch.setattr(memory, "raises_oom", lambda device: True)
    monkeypatch.setattr(memory, "available", lambda device: 2**30)
    monkeypatch.setattr(
        torch, "empty", lambda size, **kind: done.append(size) or real(size, **kind)
    )
    memory.dry_run(
        lambda: done.append("worst"),
        {"weights": 2**30, "gradients": 45, "optimizer": 123},
        4 * 2**30,
        CPU,
    )
    assert done == [123, "worst", 45] and "3.0 GiB of 4.0, 1.0 estimated" in capsys.readouterr().out


def test_free_memory_is_plausible_or_unknown():
    free = memory.available(CPU)
    assert free is None or 0 < free < 2**50


def test_reclaimable_cache_of_a_cgroup_counts_as_free(monkeypatch):
    files = {
        "/proc/meminfo": "MemFree: 1 kB\nMemAvailable:   2000 kB\n",
        "/sys/fs/cgroup/memory.max": "1000000\n",
        "/sys/fs/cgroup/memory.current": "900000\n",
        "/sys/fs/cgroup/memory.stat": "anon 100\nfile 700000\nactive_file 200000\ninactive_file 300000\nslab_reclaimable 5\n",
    }
    monkeypatch.setattr(memory.Path, "is_file", lambda path: str(path) in files)
    monkeypatch.setattr(memory.Path, "read_text", lambda path: files[str(path)])
    assert memory.available(CPU) == 100_000 + 500_005
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.available(CPU) == 2_048_000
    files.clear()
    assert memory.available(CPU) is None
