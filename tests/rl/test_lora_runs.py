"""Whole runs that train adapters: GRPO and SFT."""

import json
from pathlib import Path

import pytest
import torch
from conftest import interrupt, jsonl, some_tokens
from safetensors.torch import load_file, save_file

import sample
import train_grpo
import train_sft
from r1mini import checkpoint
from r1mini.checkpoint import __main__ as merge_command
from r1mini.checkpoint.adapter import weights_hash
from r1mini.config import parse
from r1mini.model import lora
from r1mini.rl import config, metrics
from r1mini.rl import rollouts as rl_rollouts
from r1mini.rl.config import GRPOConfig
from r1mini.rl.learner import update_minibatch
from r1mini.training import run_state as state
from r1mini.training.setup import trains_adapters

WEIGHTS = "adapter_model.safetensors"
TIMES = {"seconds", "step_time", "time/sample", "time/update"}


@pytest.fixture
def grpo(tiny_grpo):
    def call(name="out", **changes):
        lora_options = {"lora_rank": 3, "lora_learning_rate": 1e-2}
        default = {"learning_rate": GRPOConfig.learning_rate, **lora_options}
        return tiny_grpo(name, **{**default, **changes})

    return call


@pytest.fixture
def sft(folder, tmp_path):
    def call(name="out", **changes):
        options = {
            **{"model": folder, "out": str(tmp_path / name), "rows": 24, "epochs": 1},
            **{"tasks": ("elements",), "batch_tokens": 384, "device": "cpu", "progress": False},
            **{"lora_rank": 3, "lora_learning_rate": 1e-2, **changes},
        }
        return train_sft.main(train_sft.Config(**options))

    return call


def adapters(folder):
    return load_file(Path(folder) / WEIGHTS)


def equal(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def rows(folder):
    lines = jsonl(Path(folder) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines]


@pytest.fixture(params=["grpo", "sft"])
def train(request):
    return request.getfixturevalue(request.param)


def test_run_trains_adapters_and_leaves_the_base_as_it_is(train, folder, tmp_path):
    before = weights_hash(Path(folder))
    train("one", seed=1)
    trained = adapters(tmp_path / "one")
    assert all(x.any() for name, x in trained.items() if "lora_B" in name)  # zero at the start
    assert weights_hash(Path(folder)) == before
    assert not (tmp_path / "one/model.safetensors").exists()
    model, _ = checkpoint.load(tmp_path / "one")
    base, _ = checkpoint.load(folder)
    assert all(model.get_parameter(name).equal(x) for name, x in base.named_parameters())
    record = json.loads((tmp_path / "one/base_model.json").read_text())
    assert record["sha256"] == before


def test_run_goes_on_from_its_adapter(train, tmp_path):
    train("one")
    first = adapters(tmp_path / "one")
    train("two", model=str(tmp_path / "one"), lora_rank=0)
    second = adapters(tmp_path / "two")
    assert first.keys() == second.keys() and not equal(first, second)
    one, two = ((tmp_path / x / "adapter_config.json").read_bytes() for x in ("one", "two"))
    assert one == two


def test_same_command_gives_the_same_bits(grpo, tmp_path):
    for name in ("one", "two"):
        grpo(name, beta=0.1)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "beta": 0.1, "reference_every": 2, "minibatches": 3},
        {"bf16": True, "beta": 0.1, "gradient_checkpointing": True},
    ],
    ids=["muon", "adamw and a reference", "bf16"],
)
@pytest.mark.parametrize(
    ("where", "call"), [((rl_rollouts, "sample"), 5), ((metrics, "rollout_rows"), 4)]
)
def test_resumed_run_is_bit_identical(grpo, tmp_path, changes, where, call):
    changes = {"steps": 5, "save_every": 3, **changes}
    grpo("whole", **changes)
    with interrupt(*where, call):
        grpo("cut", **changes)
    saved = state.latest_valid(tmp_path / "cut")
    files = {path.name for path in saved.iterdir()}
    assert WEIGHTS in files and "model.safetensors" not in files
    if "beta" in changes:  # the adapters alone, too
        assert load_file(saved / "reference.safetensors").keys() == {
            f"{name}.lora_{x}" for name in lora.linear_names(2) for x in "AB"
        }
    grpo("cut", **changes)
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_resumed_sft_run_is_bit_identical(sft, tmp_path):
    changes = {"rows": 60, "save_every": 2}
    sft("whole", **changes)
    with interrupt(train_sft, "accumulate_gradient", 4):
        sft("cut", **changes)
    sft("cut", **changes)
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_resumed_run_notices_another_base(grpo, folder, tmp_path):
    base = tmp_path / "base"
    checkpoint.save(base, *checkpoint.load(folder))
    with interrupt(rl_rollouts, "sample", 2):
        grpo("cut", model=str(base), save_every=1)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(
        ValueError,
        match="base_model.json: the weights of the base model have changed since .* another --out$",
    ):
        grpo("cut", model=str(base), save_every=1)


def test_state_is_an_adapter_folder(grpo, tmp_path):
    with interrupt(rl_rollouts, "sample", 2):
        grpo("cut", save_every=1)
    model, _ = checkpoint.load(tmp_path / "cut/checkpoints/step-00000001")
    assert len(lora.adapters(model)) == 14


@pytest.mark.parametrize("bf16", [False, True])
def test_kl_is_exactly_zero_before_the_first_update(grpo, tmp_path, monkeypatch, bf16):
    """The reference is the model as it was loaded: the base of new adapters, the adapter of then."""
    kls = []

    def recorded(*args):
        stats = update_minibatch(*args)
        kls.append(stats["kl"])
        return stats

    monkeypatch.setattr("r1mini.rl.learner.update_minibatch", recorded)
    options = {"beta": 0.1, "minibatches": 1, "steps": 2, "reference_every": 0, "bf16": bf16}
    grpo("one", **options)
    assert kls[0] == 0.0 < kls[1]
    kls.clear()
    grpo("two", model=str(tmp_path / "one"), lora_rank=0, **options)
    assert kls[0] == 0.0 < kls[1]


def test_reference_is_renewed(grpo, tmp_path):
    options = {"beta": 0.1, "minibatches": 1, "steps": 4, "reference_every": 2}
    grpo("out", **options)
    kl = [row["kl"] for row in rows(tmp_path / "out")]
    assert kl[0] == kl[2] == 0.0 < min(kl[1], kl[3])


def test_merged_model_is_saved_beside_the_adapter(train, tmp_path, capsys):
    train("out", merge=True)
    assert f"{tmp_path / 'out/merged'}: merged\n" in capsys.readouterr().out
    merged, _ = checkpoint.load(tmp_path / "out/merged")
    model, _ = checkpoint.load(tmp_path / "out")
    tokens_BT = some_tokens(2, 9)
    torch.testing.assert_close(merged(tokens_BT), model(tokens_BT), atol=1e-5, rtol=1e-5)
    train("rounded", merge=True, merge_dtype="bfloat16")
    assert "of the update, " in capsys.readouterr().out
    stored = load_file(tmp_path / "rounded/merged/model.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize("bf16", [False, True])
def test_base_has_the_dtype_of_the_compute(grpo, monkeypatch, bf16):
    dtypes, load = [], train_grpo.load_policy

    def load_policy(*args):
        result = load(*args)
        frozen = [x for x in result[0].parameters() if not x.requires_grad and x.ndim > 1]
        dtypes[:] = [
            {x.dtype for x in frozen},
            {x.dtype for x in lora.own_parameters(result[0]).values()},
        ]
        return result

    monkeypatch.setattr(train_grpo, "load_policy", load_policy)
    grpo("out", bf16=bf16, steps=1)
    assert dtypes == [{torch.bfloat16 if bf16 else torch.float32}, {torch.float32}]


def test_adapter_can_be_sampled_from_and_evaluated(grpo, script, folder, tmp_path):
    grpo("out")
    flags = "--tasks elements --eval --problems 2 --samples 2 --max-new-tokens 8 --device cpu"
    out = tmp_path / "figures.json"
    code, _, err = script("sample.py", "--model", tmp_path / "out", *flags.split(), "--out", out)
    assert (code, err) == (0, "") and out.exists()
    code, out, err = script(
        "sample.py", "--model", tmp_path / "out", "--base", folder, "--prompt", "x", "--bf16"
    )
    assert (code, err) == (0, "")
    with pytest.raises(ValueError, match="--base x: .* is not a LoRA adapter"):
        sample.main(sample.Config(model=folder, base="x", prompt="y"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"lora_alpha": 3.0, "lora_rank": 0},
            "--lora-alpha 3.0: has no effect without --lora-rank",
        ),
        ({"lora_targets": ("q_proj",), "lora_rank": 0}, "--lora-targets q_proj: has no effect"),
        ({"lora_targets": ("lm_head",)}, "--lora-targets lm_head: must be q_proj, k_proj"),
        ({"lora_rank": -1}, "--lora-rank -1: must be at least 0"),
        ({"learning_rate": 1e-3}, "--learning-rate 0.001: has no effect with --lora-learning-rate"),
        ({"lora_rank": 0}, "--lora-learning-rate 0.01: has no effect without --lora-rank or an"),
        (
            {"lora_rank": 0, "lora_learning_rate": 0.0, "merge": True},
            "--merge True: has no effect without --lora-rank",
        ),
        (
            {"lora_rank": 0, "lora_learning_rate": 0.0, "base_dtype": "float32"},
            "--base-dtype float32: has no effect without",
        ),
        ({"base": "elsewhere"}, "--base elsewhere: .* is not a LoRA adapter"),
        ({"base_dtype": "bfloat16"}, "--base-dtype bfloat16: needs --bf16"),
        ({"merge_dtype": "bfloat16"}, "--merge-dtype bfloat16: has no effect without --merge"),
    ],
)
def test_flags_without_effect_are_refused(train, flags, message):
    with pytest.raises(ValueError, match=message):
        train("out", **flags)


def test_flags_that_do_not_fit_an_adapter_folder(grpo, tmp_path):
    grpo("one")
    one = {"model": str(tmp_path / "one")}
    with pytest.raises(ValueError, match="--lora-rank 3: .*one is a LoRA adapter already"):
        grpo("two", **one)
    with pytest.raises(ValueError, match="--base nowhere: no such model folder"):
        grpo("two", **one, lora_rank=0, base="nowhere")
    with pytest.raises(ValueError, match="--rest-lr 0.5: is for full fine-tuning"):
        grpo("two", **one, lora_rank=0, rest_lr=0.5)


def test_reference_is_not_a_mean_of_factors(grpo):
    mean = {"beta": 0.1, "reference_every": 1, "reference_mix": 0.5, "steps": 2}
    with pytest.raises(ValueError, match="--reference-mix 0.5: is for full fine-tuning"):
        grpo("out", **mean)


def test_resumed_run_notices_another_adapter_at_model(grpo, tmp_path):
    """The state has A and B, and their scale would be that of the folder."""
    grpo("one")
    two = {"model": str(tmp_path / "one"), "lora_rank": 0, "save_every": 1}
    with interrupt(rl_rollouts, "sample", 2):
        grpo("two", **two)
    path = tmp_path / "one/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 5}))
    with pytest.raises(ValueError, match="adapter at --model has another rank, alpha or other"):
        grpo("two", **two)


def test_merge_that_failed_is_made_up_for(grpo, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(checkpoint, "save_merged", raise_disk_full)
        grpo("out", merge=True)
    assert not (tmp_path / "out/merged").exists()
    grpo("out", merge=True)  # the run has finished; the merge is left
    merged = tmp_path / "out/merged/model.safetensors"
    command = ["--adapter", str(tmp_path / "out"), "--out", str(tmp_path / "other")]
    merge_command.main(parse(merge_command.Config, command))
    assert merged.read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="not a folder of LoRA's adapters"):
        merge_command.main(merge_command.Config(adapter=folder))


def raise_disk_full(*_):
    raise OSError("disk full")


def test_new_model_has_no_weights_to_freeze(sft):
    with pytest.raises(ValueError, match="--lora-rank 3: --model new has no weights to freeze"):
        sft(model="new")


def test_shape_of_the_adapters_is_fixed_on_resume(grpo):
    with interrupt(rl_rollouts, "sample", 2):
        grpo("cut", save_every=1)
    for changes in ({"lora_rank": 4}, {"lora_alpha": 3.0}, {"lora_targets": ("q_proj",)}):
        with pytest.raises(ValueError, match="holds another run .--lora-"):
            grpo("cut", save_every=1, allow_changes=True, **changes)


def test_reward_model_of_an_adapter_is_refused(grpo, tmp_path):
    from r1mini.reward_model import training

    grpo("one")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    options = {"model": str(tmp_path / "one"), "data": str(pairs), "out": str(tmp_path / "rm")}
    with pytest.raises(ValueError, match="--model .*one: a LoRA adapter, .* -m r1mini.checkpoint"):
        training.main(training.Config(**options))


def test_adapters_train_at_ten_times_the_rate(train, tmp_path, capsys):
    rates = []
    for changes in ({"lora_learning_rate": 0.0}, {}, {"lora_rank": 0, "lora_learning_rate": 0.0}):
        train(f"out-{len(rates)}", **changes)
        out = capsys.readouterr().out
        rates.append(
            float(out.split("peak learning rate of ")[1].split()[0]) if "peak" in out else 0
        )
    default = 4e-4 if train.__qualname__.startswith("grpo") else 2e-3
    assert rates == [10 * default, 1e-2, 0]


@pytest.mark.parametrize("rank", [0, 8])
def test_presets_work_with_and_without_adapters(rank):
    for name in ("small-gpu", "lora-7b"):
        flags = ["--preset", name, "--lora-rank", str(rank)]
        cfg = config.resolve(parse(GRPOConfig, flags, config.PRESETS))
        assert trains_adapters(cfg) == bool(rank) and cfg.learning_rate == 1e-6
