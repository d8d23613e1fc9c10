"""Everything that runs on a GPU, on a pretended one (pretend_gpu.py): devices never mix, results are
those of the CPU, and the host waits only where it must."""

import copy

import pytest
import torch
from conftest import interrupt, jsonl, random_model
from pretend_gpu import pretend_gpu

import train_sft
from r1mini import checkpoint
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.recipe import scheduler
from r1mini.records import Group, Problem, Rollout
from r1mini.rl import learner
from r1mini.rl.config import GRPOConfig
from r1mini.rl.samples import make_samples
from r1mini.sampler.cuda_graphs import EagerRunner, GraphRunner, graphs_enabled
from r1mini.sampler.sampler import Sampler, encode_prompts
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import optim

PROMPTS = ["Make 24 from 3, 5, 9.\n", "x\n", "Balance H2 + O2 -> H2O\n"]


# -- the pretended GPU itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: cpu @ gpu.T,
        lambda gpu, cpu: torch.cat((gpu, cpu)),
        lambda gpu, cpu: torch.where(gpu > 0, cpu, 0),
        lambda gpu, cpu: gpu.index_select(0, torch.tensor([0])),
        lambda gpu, cpu: gpu.numpy(),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix):
    with pretend_gpu(), pytest.raises((RuntimeError, TypeError), match="device"):
        mix(torch.ones(2, 3, device="cuda"), torch.ones(2, 3))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x.__setitem__([0], 1.0),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),  # not pinned
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.ones(2, 3).copy_(x, non_blocking=True),
        lambda x: torch.where(x > 0),
        lambda x: x.repeat_interleave(torch.ones(2, dtype=torch.long, device=x.device), 0),
        lambda x: x.unique(),
    ],
)
def test_what_makes_the_host_wait_is_counted_with_its_line(read):
    with pretend_gpu() as waits:
        x = torch.ones(2, 3, device="cuda")
        assert not waits
        read(x)
    [(line, count)] = waits.items()
    assert count == 1 and "test_on_pretended_gpu.py" in line


def test_what_makes_nobody_wait_is_not_counted():
    with pretend_gpu() as waits:
        x = torch.ones(2, 3, device="cuda")
        y = x + 1 + torch.tensor(2.0)  # a CPU scalar may be mixed in
        y[:, torch.arange(2, device="cuda")] = 0
        y += torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        torch.empty(2, 3, pin_memory=True).copy_(y, non_blocking=True)
        y.repeat_interleave(2, 0), torch.where(y > 0, y, 0)
        assert y.device == x.device == torch.device("cuda:0") and y.is_cuda
    assert not waits and y.host.tolist() == [[1.0, 1.0, 5.0]] * 2


# -- the sampler -------------------------------------------------------------------------------------


class Rounded(GraphRunner):
    """The shapes of graphs, on a CPU."""

    def run(self, step, name, reads):
        return step()


@torch.inference_mode()
def sampled(model, tokens, params, runner, count_waits=None):
    """(rollouts, the waits of each block of steps)."""
    sampler = Sampler(
        model, tokens, encode_prompts(model, tokens, PROMPTS * 3), 3, params, 0, max_rows=8,
        steps_per_sync=2, runner=runner,
    )  # fmt: skip
    blocks = []
    while sampler.has_unfinished:
        before = sum(count_waits.values()) if count_waits is not None else 0
        sampler.draw_tokens()
        if count_waits is not None:
            blocks.append(sum(count_waits.values()) - before)
    return sampler.groups, blocks


@pytest.mark.parametrize(
    "kind, params, graphs",
    [
        ({}, SamplingParams(9), True),
        ({}, SamplingParams(9), False),
        ({"qk_norm": True, "attention_bias": True}, SamplingParams(9, 0.7, 9, 0.9, 0.01), True),
    ],
)
def test_sampler_waits_once_for_each_block_of_steps(tokens, kind, params, graphs):
    model = random_model(vocab_size=tokens.vocab_size, **kind).requires_grad_(False)
    tokenizer = Tokenizer(tokens.backend, range(0, tokens.vocab_size, 8))
    device = torch.device("cuda")
    expected, _ = sampled(model, tokenizer, params, Rounded(device) if graphs else EagerRunner())
    with pretend_gpu() as waits:
        model.to("cuda")
        waits.clear()
        runner = GraphRunner(device) if graphs else EagerRunner()
        groups, blocks = sampled(model, tokenizer, params, runner, waits)
    assert groups == expected
    assert len(blocks) > 6 and set(blocks) == {1}  # rows joined in several of them
    assert not graphs or any(runner.graphs.values())


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("when", ["capture", "replay"])
def test_run_goes_on_without_graphs_if_one_is_refused(model, tokens, error, when, capsys):
    def refused(*_):
        raise error("CUDA error: operation not permitted\nmore lines")

    capture = refused if when == "capture" else lambda runner, step: (refused, ())
    expected, _ = sampled(model, tokens, SamplingParams(9), Rounded(torch.device("cuda")))
    with pretend_gpu(capture):
        on_gpu = copy.deepcopy(model).to("cuda")
        groups, _ = sampled(on_gpu, tokens, SamplingParams(9), GraphRunner(torch.device("cuda")))
        assert groups == expected
        assert not graphs_enabled(torch.device("cuda"))  # from now on: the next call does not try
    assert capsys.readouterr().err == (
        "CUDA graphs are off: a decoding step could not be captured or replayed (CUDA error: "
        "operation not permitted); sampling goes on without them\n"
    )


# -- the learner -------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"beta": 0.1, "gradient_checkpointing": True},
    {"entropy_bonus": 0.1, "loss_per": "microbatch"},
    {"correction": "token-truncate", "top_entropy": 0.5, "off_policy_limit": 0.5},
    {"ratio": "sequence", "loss_per": "sequence", "overlong": "mask"},
    {"objective": "cispo", "kl": "k3-weighted", "beta": 0.1, "loss_per": "constant"},
    {"objective": "sapo", "delta": 2.0, "kl": "k1", "beta": 0.1},
    {"objective": "reinforce", "kl": "k2", "beta": 0.1},
]


def rollout(i):
    """Of prompts that are shared by two rows; some rows are cut."""
    ids = tuple(range(5, 7 + i % 4))
    return Rollout((3, 4, i // 2), ids, (-1.0 - 0.1 * i,) * len(ids), "", i % 3 > 0)


def update(device, changes, optimizer="adamw", steps=2):
    """Two updates of four micro-batches each: (metrics, weights)."""
    model = random_model().to(device)
    reference = random_model().requires_grad_(False).to(device) if changes.get("beta") else None
    model.gradient_checkpointing = changes.get("gradient_checkpointing", False)
    cfg = GRPOConfig(learner_tokens=8, completions=8, device=device, **changes)
    group = Group(Problem("", "", "", ""), [rollout(i) for i in range(8)], [], ())
    optimizers = optim.build_optimizers(model, optimizer, 0.0, state_on=cfg.optimizer_on)
    stats = []
    for _ in range(steps):
        samples = make_samples(cfg, model, [group], torch.arange(-3.0, 5)[None])
        stats.append(learner.update_minibatch(cfg, model, reference, optimizers, samples, 1e-3))
    return stats, model


def waits_in_package(waits):
    return sum(count for line, count in waits.items() if not line.startswith("tests/"))


@pytest.mark.parametrize("changes", VARIANTS)
def test_learner_gives_the_results_of_the_cpu_and_waits_once_for_an_update(changes):
    expected, model = update("cpu", changes)
    with pretend_gpu() as waits:
        stats, on_gpu = update("cuda", changes)
        assert waits_in_package(waits) == 2 * (
            1 + ("correction" in changes)
        )  # old log-probabilities
        weights = [parameter.detach().cpu() for parameter in on_gpu.parameters()]
    for ours, theirs in zip(stats, expected):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(weights, [parameter.detach() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_on_the_cpu_need_one_more_wait_for_each_optimizer(optimizer):
    with pretend_gpu() as waits:
        stats, on_device = update("cuda", {}, optimizer)
        assert waits_in_package(waits) == 2
        waits.clear()
        offloaded_stats, offloaded = update("cuda", {"optimizer_on": "cpu"}, optimizer)
        assert waits_in_package(waits) == 2 * (2 if optimizer == "adamw" else 3)
        assert stats == offloaded_stats
        for one, other in zip(on_device.parameters(), offloaded.parameters()):
            assert torch.equal(one, other)


def test_a_read_in_each_micro_batch_would_be_seen(monkeypatch):
    """The negative control of the tests above."""
    real = learner.token_logprobs

    def with_a_read(*args):
        logp_BT = real(*args)
        assert logp_BT.sum().item() < 0
        return logp_BT

    monkeypatch.setattr(learner, "token_logprobs", with_a_read)
    with pretend_gpu() as waits:
        update("cuda", {}, steps=1)
    reads = sum(count for line, count in waits.items() if "with_a_read" in line)
    assert reads > 2 and waits_in_package(waits) == 1


def test_a_tensor_left_on_the_cpu_would_be_seen(monkeypatch):
    real = learner.corrections.on_policy_rows
    monkeypatch.setattr(
        learner.corrections, "on_policy_rows", lambda *args: real(*args).new_ones(8, 1).cpu()
    )
    with pretend_gpu(), pytest.raises(RuntimeError, match="same device"):
        update("cuda", {}, steps=1)


def test_stages_side_by_side_fit_the_gpu(monkeypatch):
    monkeypatch.setattr(scheduler.os, "sched_getaffinity", lambda _: range(16), raising=False)
    with pretend_gpu():
        workers = []
        for free in (80, 40, 10):
            monkeypatch.setattr(
                torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 0)
            )
            workers.append(scheduler.default_workers("cuda"))
    assert workers == [4, 2, 1]


# -- whole runs --------------------------------------------------------------------------------------

SMALL = {"steps": 1, "problems": 2, "completions": 4, "max_new_tokens": 5, "optimizer": "adamw"}


def same_figures(ours, theirs):
    """Numbers up to rounding."""
    assert set(ours) == set(theirs)
    for name in set(ours) - {"seconds"}:
        if isinstance(ours[name], float):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
        else:
            assert ours[name] == theirs[name], name


def weights(folder):
    return checkpoint.load(folder)[0].state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"minibatches": 2, "beta": 0.1, "minibatch_of": "problems", "resample": 1},
        {"minibatches": 1, "lora_rank": 2, "merge": True},
        {"minibatches": 1, "learner_tokens": 0},
    ],
)
def test_grpo_run_is_that_of_the_cpu(tiny_grpo, tmp_path, changes, capsys):
    tiny_grpo("cpu", **SMALL | changes)
    with pretend_gpu():
        tiny_grpo("gpu", device="cuda", **SMALL | changes)
    assert "peak memory in the dry run" in capsys.readouterr().out
    expected, rows = (jsonl(tmp_path / name / "rollouts.jsonl") for name in ("cpu", "gpu"))
    for row, other in zip(rows, expected, strict=True):
        same_figures(row, other)
    torch.testing.assert_close(weights(tmp_path / "gpu"), weights(tmp_path / "cpu"))


def test_interrupted_run_resumes_on_the_gpu_with_the_same_result(tiny_grpo, tmp_path):
    changes = SMALL | {"steps": 2, "minibatches": 1, "save_every": 1, "optimizer_on": "cpu"}
    with pretend_gpu():
        tiny_grpo("whole", device="cuda", **changes)
        with interrupt(optim, "update", 2):
            tiny_grpo("cut", device="cuda", **changes)
        tiny_grpo("cut", device="cuda", **changes)
    torch.testing.assert_close(
        weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0
    )


def test_sft_is_that_of_the_cpu(folder, tmp_path):
    def run(name, **changes):
        return train_sft.main(
            train_sft.Config(
                **{"out": str(tmp_path / name), "model": folder, "rows": 8, "epochs": 1,
                   "batch_tokens": 256, "optimizer": "adamw", **changes}
            )
        )  # fmt: skip

    expected = run("cpu", device="cpu")
    with pretend_gpu() as waits:
        results = run("gpu", device="cuda")
    assert results["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    torch.testing.assert_close(weights(tmp_path / "gpu"), weights(tmp_path / "cpu"))
    norms = sum(count for line, count in waits.items() if "training/optim.py" in line)
    assert norms == results["steps"] > 1
