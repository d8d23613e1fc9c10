# ruff: noqa: E402
"""Two ranks compute the same as one: two gloo processes, which torchrun starts from this file."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, interrupt, jsonl, random_model
from safetensors.torch import load_file

import train_grpo
import train_sft
from r1mini.infra import distributed, files, signals
from r1mini.infra.device import pick_device
from r1mini.records import Group, Problem, Rollout
from r1mini.reward_model import training
from r1mini.rl import learner, metrics
from r1mini.rl.samples import make_samples
from r1mini.training import memory, run_state

LETTERS = """import os
def letters(completions, **columns):
    if os.environ.get("RANK") == os.environ.get("FAULTY", "none"):
        raise ValueError("no letters here")
    return [text.count("a") + 0.1 * text.count("e") for text in completions]
"""


def sft(folder, out, **changes):
    return train_sft.Config(
        **{
            "model": folder,
            "out": str(out),
            "rows": 40,
            "epochs": 1,
            "tasks": ("elements",),
            "batch_tokens": 384,
            "optimizer": "adamw",
            "learning_rate": 1e-4,
            "device": "cpu",
            "progress": False,
            **changes,
        }
    )


def grpo(folder, out, **changes):
    """Five problems, and micro-batches that do not divide evenly between two ranks."""
    return train_grpo.Config(
        **{
            "model": folder,
            "out": str(out),
            "steps": 3,
            "problems": 5,
            "completions": 4,
            "minibatches": 2,
            "max_new_tokens": 12,
            "tasks": ("elements",),
            "reward": f"{Path(out).parent / 'letters.py'}:letters",
            "beta": 0.1,
            "reference_every": 1,
            "learner_tokens": 256,
            "learning_rate": 2e-5,
            "device": "cpu",
            "progress": False,
            "show": 0,
            "save_every": 2,
            **changes,
        }
    )


def reward_model(folder, out, **changes):
    """Micro-batches that do not divide evenly between two ranks."""
    pairs = Path(out).parent / "pairs.jsonl"
    return training.Config(
        **{
            "model": folder,
            "out": str(out),
            "data": str(pairs),
            "batch_pairs": 5,
            "held_out": 0.3,
            "learner_tokens": 30,
            "optimizer": "adamw",
            "learning_rate": 1e-4,
            "device": "cpu",
            **changes,
        }
    )


class Kept:
    """An optimizer that keeps the gradients."""

    param_groups = ()

    def __init__(self, model):
        self.model = model

    def step(self):
        self.gradients = {
            name: p.grad.detach().clone() for name, p in self.model.named_parameters()
        }

    def zero_grad(self, set_to_none):
        self.model.zero_grad()


def gradients(beta):
    """(gradients, metrics) of one update of a random model."""
    generator = torch.Generator().manual_seed(0)
    rollouts = []
    for count in (3, 9, 4, 7, 5, 8, 2):
        ids = torch.randint(3, 300, (count + 2,), generator=generator).tolist()
        rollouts.append(Rollout(tuple(ids[:2]), tuple(ids[2:]), (-5.0,) * count, "", True))
    cfg = train_grpo.Config(
        beta=beta,
        entropy_bonus=0.01,
        learner_tokens=20,
        max_grad_norm=1e9,
        clip_high=1e9,
        clip_low=1.0,
    )
    policy, reference = random_model(), random_model(initializer_range=0.1).requires_grad_(False)
    policy, reference = distributed.shard(policy), distributed.shard(reference)
    optimizer = Kept(policy)
    adv_NG = torch.tensor([[1.0, -1.0, 0.5, 0.3, -0.7, 0.2, -0.4]])
    samples = make_samples(cfg, policy, [Group(Problem("", "", "", ""), rollouts, [], ())], adv_NG)
    stats = learner.update_minibatch(
        cfg, policy, reference if beta else None, [optimizer], samples, 0.0
    )
    return {name: distributed.gather_tensor(g) for name, g in optimizer.gradients.items()}, stats


def moved():
    """Fraction of a model's weights that change in bf16 when they are changed by a thousandth."""
    policy = distributed.shard(random_model())
    before = metrics.bf16_weights(policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.001)
    return metrics.changed_fraction(before, metrics.bf16_weights(policy))


LORA = {"lora_rank": 3, "lora_learning_rate": 1e-4, "learning_rate": 4e-4}
SFT_LORA = LORA | {"learning_rate": 2e-3, "merge": True}
THIN = LORA | {"lora_rank": 1, "steps": 1}  # A cannot be divided between two ranks


def on_two(cfg):
    """What each of the two ranks runs: everything that is compared, in one launch."""
    folder, out = cfg.model, Path(cfg.out).parent
    for beta in (0.0, 0.1):
        values, stats = gradients(beta)
        if distributed.is_main_rank():
            torch.save({"gradients": values, "metrics": stats}, out / f"gradients-{beta}.pt")
    assert moved() == float(os.environ["MOVED"])
    with pytest.MonkeyPatch.context() as patch:  # as on GPUs; the single rank runs without it
        patch.setattr(memory, "raises_oom", lambda device: True)
        train_sft.main(sft(folder, out / "sft-2"))
        train_grpo.main(grpo(folder, out / "grpo-2"))
        training.main(reward_model(folder, out / "rm-2"))
        train_sft.main(sft(folder, out / "sft-lora-2", **SFT_LORA))
        train_grpo.main(grpo(folder, out / "grpo-lora-2", **LORA))
        train_grpo.main(grpo(folder, out / "grpo-thin-2", **THIN))
        train_grpo.main(grpo(folder, out / "bf16-lora-2", **LORA, bf16=True))
    train_grpo.main(grpo(folder, out / "from-1"))
    interrupted(out / "from-2", folder)
    train_grpo.main(grpo(folder, out / "lora-from-1", **LORA))
    interrupted(out / "lora-from-2", folder, **LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            signals, "first_time", None if distributed.is_main_rank() else 0.0
        )  # only one of them received the signal
        with pytest.raises(KeyboardInterrupt):
            train_grpo.main(grpo(folder, out / "asked"))


def interrupted(out, folder, **changes):
    with interrupt(metrics.StepLog, "print_step", 3):
        train_grpo.main(grpo(folder, out, **changes))


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    (out / "letters.py").write_text(LETTERS)
    with (out / "pairs.jsonl").open("w") as file:
        for n in range(40):
            sides = {"chosen": f"{n} gold", "rejected": f"lead {n}" + "." * (n % 7)}
            file.write(json.dumps({"prompt": f"{n // 2}\n", **sides}) + "\n")
    interrupted(out / "from-1", folder)
    interrupted(out / "lora-from-1", folder, **LORA)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*torchrun, __file__, folder, out],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MOVED": str(moved())},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    train_sft.main(sft(folder, out / "sft-1"))
    train_grpo.main(grpo(folder, out / "grpo-1"))
    training.main(reward_model(folder, out / "rm-1"))
    train_sft.main(sft(folder, out / "sft-lora-1", **SFT_LORA))
    train_grpo.main(grpo(folder, out / "grpo-lora-1", **LORA))
    train_grpo.main(grpo(folder, out / "grpo-thin-1", **THIN))
    return out


def difference(one, other):
    one, other = (load_file(run / "model.safetensors") for run in (one, other))
    if "score.weight" not in other:  # a reward model beside the language model that it was
        one.pop("score.weight", None)
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_two_ranks_give_the_gradients_and_metrics_of_one(runs, beta):
    saved = torch.load(runs / f"gradients-{beta}.pt")
    expected, stats = gradients(beta)
    assert saved["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(saved["gradients"][name], gradient, rtol=1e-5, atol=1e-6), name
    assert saved["metrics"] == pytest.approx(stats, rel=1e-5)


def trained_adapters(run):
    return load_file(run / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["sft-lora", "grpo-lora", "grpo-thin"])
def test_adapters_trained_on_two_ranks_equal_those_of_one(runs, kind):
    one, two = (trained_adapters(runs / f"{kind}-{ranks}") for ranks in (1, 2))
    assert one.keys() == two.keys() and len(one) == 28
    for name, x in one.items():
        assert x.any() and torch.allclose(x, two[name], atol=1e-6, rtol=1e-3), name
    first, second = (jsonl(runs / f"{kind}-{ranks}/metrics.jsonl") for ranks in (1, 2))
    assert [row["loss"] for row in first] == pytest.approx(
        [row["loss"] for row in second], rel=1e-3, abs=1e-5
    )


def test_two_ranks_merge_as_one_does(runs):
    assert 0 < difference(runs / "sft-lora-1/merged", runs / "sft-lora-2/merged") < 1e-5


def test_bf16_base_is_sharded_with_its_fp32_adapters(runs):
    adapters = trained_adapters(runs / "bf16-lora-2")
    assert all(x.dtype == torch.float32 and x.any() for x in adapters.values())
    kl = [row["kl"] for row in jsonl(runs / "bf16-lora-2/metrics.jsonl")]
    assert len(kl) == 3 and max(kl) < 0.1


@pytest.mark.parametrize("kind", ["sft", "grpo", "rm"])
def test_run_on_two_ranks_equals_run_on_one(runs, kind):
    one, two = runs / f"{kind}-1", runs / f"{kind}-2"
    assert sorted(path.name for path in one.iterdir()) == sorted(
        path.name for path in two.iterdir()
    )
    assert (
        0
        < difference(one, two)
        < 1e-5
        < difference(one, Path(files.read_json(one / "run.json")["config"]["model"]))
    )
    for expected, actual in zip(
        jsonl(one / "metrics.jsonl"), jsonl(two / "metrics.jsonl"), strict=True
    ):
        assert expected.keys() == actual.keys()
        for name in expected.keys() - {"seconds", "step_time", "time/sample", "time/update"}:
            assert actual[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    if kind == "grpo":
        assert (one / "rollouts.jsonl").read_bytes() == (two / "rollouts.jsonl").read_bytes()
        logged = zip(*(jsonl(run / "tokens.jsonl") for run in (one, two)), strict=True)
        for expected, actual in logged:
            for name in ("logprobs", "new_logprobs", "entropies"):
                assert actual.pop(name) == pytest.approx(expected.pop(name), abs=2e-4), name
            assert actual == expected


def test_saved_state_is_independent_of_the_number_of_ranks(runs, folder, tmp_path):
    (tmp_path / "letters.py").write_text(LETTERS)
    interrupted(tmp_path / "one", folder)
    one_rank, two_ranks = (
        run_state.latest_valid(run) for run in (tmp_path / "one", runs / "from-2")
    )
    assert sorted(path.name for path in one_rank.iterdir()) == sorted(
        path.name for path in two_ranks.iterdir()
    )
    for path in one_rank.glob("*.safetensors"):
        one, two = load_file(path), load_file(two_ranks / path.name)
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one), path
    one, two = (files.read_json(folder / run_state.VALUES) for folder in (one_rank, two_ranks))
    assert (
        one.keys() == two.keys()
        and (one["ranks"], two["ranks"]) == (1, 2)
        and one["step"] == two["step"]
    )
    train_grpo.main(grpo(folder, runs / "from-2"))
    assert difference(runs / "from-2", runs / "grpo-1") < 1e-5
    assert difference(runs / "from-1", runs / "grpo-1") < 1e-5


def test_adapters_resume_on_another_number_of_ranks(runs, folder):
    train_grpo.main(grpo(folder, runs / "lora-from-2", **LORA))
    expected = trained_adapters(runs / "grpo-lora-1")
    for name in ("lora-from-1", "lora-from-2"):
        resumed = trained_adapters(runs / name)
        assert resumed.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(resumed[key], value, atol=1e-5, rtol=0)


def test_signal_to_one_rank_ends_all_after_the_same_step(runs):
    assert run_state.latest_valid(runs / "asked").name == "step-00000001"


def on_ranks(cwd, *argv, faulty=""):
    """(exit codes, all of stderr) of two ranks, as torchrun would start them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FAULTY": faulty,
    }
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, argv)],
            cwd=cwd,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        stderr = [process.communicate(timeout=60)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], "".join(stderr)


def test_error_on_one_rank_stops_all_with_one_line(folder, tmp_path):
    (tmp_path / "letters.py").write_text(LETTERS)
    codes, stderr = on_ranks(
        tmp_path,
        ROOT / "train_grpo.py",
        "--model",
        folder,
        "--reward",
        "letters.py:letters",
        "--problems",
        2,
        "--max-new-tokens",
        4,
        "--tasks",
        "elements",
        "--no-progress",
        "--device",
        "cpu",
        faulty="1",
    )
    assert codes == [2, 2]
    assert len(stderr.splitlines()) == 1 and "no letters here" in stderr


def test_only_the_first_rank_to_fail_reports_the_error():
    store = dist.HashStore()
    assert [distributed.is_first_to_fail(store) for _ in range(3)] == [True, False, False]


def test_each_rank_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [str(pick_device(name, 0)) for name in ("cpu", "cuda")] == ["cpu", "cuda:1"]
    assert chosen == ["cuda:1"]
    with pytest.raises(
        ValueError, match="--device cuda:0: each of the 2 ranks needs its own device"
    ):
        pick_device("cuda:0", 0)


@pytest.mark.parametrize(("parts", "ranks"), [(5, 2), (1, 3), (6, 3), (7, 4)])
def test_ranks_run_equal_numbers_of_passes_and_count_each_micro_batch_once(
    monkeypatch, parts, ranks
):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares, slices = [], []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.assign_micro_batches(list(range(parts))))
        slices += range(parts)[distributed.rank_slice(parts)]
    assert len({len(share) for share in shares}) == 1
    assert (
        sorted(part for share in shares for part, weight in share if weight)
        == slices
        == list(range(parts))
    )


if __name__ == "__main__":
    distributed.distributed_main(on_two)(grpo(sys.argv[1], Path(sys.argv[2]) / "none"))
