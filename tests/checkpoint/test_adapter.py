import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import shape, some_tokens
from safetensors.torch import load_file, save_file

from r1mini import checkpoint
from r1mini.checkpoint import adapter
from r1mini.checkpoint.adapter import add_adapter, read_plan
from r1mini.checkpoint.chat_template import load_chat_template
from r1mini.model import lora
from r1mini.model.config import LINEAR
from r1mini.model.reward_model import RewardModel

WEIGHTS = "adapter_model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@torch.no_grad()
def trained(base, targets=LINEAR, rank=3):
    """(a model with adapters that are not zero, its tokenizer)"""
    model, tokenizer = checkpoint.load(base)
    add_adapter(model, str(base), rank, 6.0, targets, seed=0)
    generator = torch.Generator().manual_seed(0)
    for linear in lora.adapters(model).values():
        linear.lora_B.normal_(0, 0.1, generator=generator)
    return model, tokenizer


@pytest.fixture
def base(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "base"))


@pytest.fixture
def saved(base, tmp_path):
    """An adapter folder that may be changed."""
    checkpoint.save(tmp_path / "adapter", *trained(base))
    return tmp_path / "adapter"


def change(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_weights(folder, changed):
    tensors = load_file(folder / WEIGHTS)
    changed(tensors)
    save_file(tensors, folder / WEIGHTS)


# -- round trips ---------------------------------------------------------------------------------


def test_folder_loads_as_it_was_saved(base, saved, tmp_path):
    model, tokenizer = trained(base)
    loaded, same_tokenizer = checkpoint.load(saved)
    tokens_BT = some_tokens(2, 9)
    assert loaded(tokens_BT).equal(model(tokens_BT))
    assert not loaded(tokens_BT).allclose(checkpoint.load(base)[0](tokens_BT))
    assert same_tokenizer.backend.to_str() == tokenizer.backend.to_str()
    assert same_tokenizer.stop_ids == tokenizer.stop_ids
    assert {n for n, x in loaded.named_parameters() if x.requires_grad} == set(
        lora.own_parameters(loaded)
    )  # it trains on, and is not frozen
    checkpoint.save(tmp_path / "again", loaded, same_tokenizer)
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_folder_has_the_adapters_and_no_base(base, saved):
    names = {path.name for path in saved.iterdir()}
    expected = {"adapter_config.json", WEIGHTS, "base_model.json", "tokenizer.json"}
    assert expected < names and "model.safetensors" not in names and "config.json" not in names
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 6.0, "none")
    assert config["target_modules"] == sorted(LINEAR)
    assert config["base_model_name_or_path"] == str(base.resolve())
    tensors = load_file(saved / WEIGHTS)
    assert len(tensors) == 2 * 7 * 2 and tensors[Q0].shape == (3, 32)
    assert {x.dtype for x in tensors.values()} == {torch.float32}


def test_base_is_never_written(base, tmp_path):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    model, tokenizer = trained(base)
    checkpoint.save(tmp_path / "adapter", model, tokenizer)
    checkpoint.save_merged(tmp_path / "merged", tmp_path / "adapter")
    assert before == {path.name: path.read_bytes() for path in base.iterdir()}


def test_bf16_base_keeps_fp32_adapters(saved):
    model, _ = checkpoint.load(saved, dtype=torch.bfloat16)
    own = lora.own_parameters(model)
    assert {x.dtype for x in own.values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model(some_tokens(1, 5)).isfinite().all()
    model, _ = checkpoint.load(saved, dtype=torch.bfloat16, vector_dtype=torch.float32)
    assert model.model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_folder_is_a_plain_model(base, saved, tmp_path, capsys, dtype):
    checkpoint.save_merged(tmp_path / "merged", saved, dtype)
    out, tokens_BT = capsys.readouterr().out, some_tokens(2, 9)
    assert ("survives the rounding to bfloat16" in out) == (dtype == "bfloat16")
    plain, close = checkpoint.load(tmp_path / "merged")[0], 1e-5 if dtype == "float32" else 0.3
    assert not lora.adapters(plain)
    expected = checkpoint.load(saved)[0](tokens_BT)
    torch.testing.assert_close(plain(tokens_BT), expected, atol=close, rtol=close)


def test_folder_holds_either_a_model_or_an_adapter(base, saved, tmp_path):
    model, tokenizer = checkpoint.load(base)
    checkpoint.save(saved, model, tokenizer)
    assert not checkpoint.is_adapter(saved) and not (saved / WEIGHTS).exists()
    checkpoint.save(saved, *trained(base))
    assert checkpoint.is_adapter(saved) and not (saved / "model.safetensors").exists()


def test_tokenizer_and_template_of_an_adapter_without_them_are_the_bases(base, saved):
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    template = load_chat_template(checkpoint.tokenizer_folder(saved))
    assert template.name == "plain"
    (saved / "tokenizer.json").unlink()
    assert checkpoint.tokenizer_folder(saved) == base.resolve()
    assert "jinja" in load_chat_template(checkpoint.tokenizer_folder(saved)).name
    assert checkpoint.load(saved)[1].stop_ids == checkpoint.load(base)[1].stop_ids


def test_stop_tokens_of_the_base_count_without_generation_config(base, saved):
    generation = {"eos_token_id": [5, 7]}
    (base / "generation_config.json").write_text(json.dumps(generation))
    assert not {5, 7} & checkpoint.load(saved)[1].stop_ids  # the folder's own list is complete
    (saved / "generation_config.json").unlink()
    assert {5, 7} < checkpoint.load(saved)[1].stop_ids


# -- the base ------------------------------------------------------------------------------------


def test_moved_base_is_named_with_base(base, saved, tmp_path):
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="adapter_config.json: its base .*base.*no such.*--base"):
        checkpoint.load(saved)
    model, tokenizer = checkpoint.load(saved, base=str(moved))
    checkpoint.save(saved, model, tokenizer)
    assert checkpoint.base_name(saved) == str(moved)  # the new place is saved
    with pytest.raises(ValueError, match="--base nowhere: no such model folder"):
        checkpoint.load(saved, base="nowhere")
    change(saved, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base_model_name_or_path: give one with --base"):
        checkpoint.load(saved)


def test_base_with_other_weights_is_noticed(base, saved):
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ValueError, match=r"base_model.json: .* other weights .* --base"):
        checkpoint.load(saved)
    (saved / "base_model.json").unlink()
    assert checkpoint.load(saved)


def test_hash_does_not_depend_on_the_files(base, tmp_path, monkeypatch):
    model, tokenizer = checkpoint.load(base)
    monkeypatch.setattr("r1mini.checkpoint.weights.SHARD_BYTES", 20_000)
    checkpoint.save(tmp_path / "shards", model, tokenizer)
    assert len(list((tmp_path / "shards").glob("model-*"))) > 2
    assert adapter.weights_hash(tmp_path / "shards") == adapter.weights_hash(base)


def test_adapter_of_an_adapter_is_refused(saved, tmp_path):
    second = Path(shutil.copytree(saved, tmp_path / "second"))
    change(second, base_model_name_or_path=str(saved))
    with pytest.raises(
        ValueError, match="its base .* is itself a LoRA adapter: merge it with its base"
    ):
        checkpoint.load(second)


def test_base_of_a_plain_model_is_refused(base):
    with pytest.raises(ValueError, match="--base x: .* is not a LoRA adapter, so it has no base"):
        checkpoint.load(base, base="x")


def test_adapter_as_a_reward_model_is_refused(saved):
    with pytest.raises(ValueError, match="a LoRA adapter, not a reward model"):
        checkpoint.load(saved, kind=RewardModel)


def test_quantised_base_is_refused(base, saved):
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json: quantization_config is not supported"):
        checkpoint.load(saved)


# -- adapter_config.json -------------------------------------------------------------------------

PEFT = {  # what PEFT writes
    **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"},
    **{"target_modules": ["q_proj", "up_proj"], "auto_mapping": None, "peft_version": "0.21.2"},
    **{"base_model_name_or_path": "x", "revision": None, "inference_mode": True},
    **{"exclude_modules": None, "lora_dropout": 0.05, "fan_in_fan_out": False},
    **{"use_rslora": False, "modules_to_save": None, "init_lora_weights": True},
    **{"layers_to_transform": None, "layers_pattern": None, "rank_pattern": {}},
    **{"alpha_pattern": {}, "megatron_config": None, "megatron_core": "megatron.core"},
    **{"trainable_token_indices": None, "loftq_config": {}, "eva_config": None},
    **{"corda_config": None, "use_dora": False, "use_qalora": False, "qalora_group_size": 16},
    **{"layer_replication": None, "lora_bias": False, "target_parameters": None},
    **{"arrow_config": None, "ensure_weight_tying": False},
}


def plan_of(tmp_path, **keys):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | keys))
    return read_plan(tmp_path, shape())


def test_config_that_peft_writes(tmp_path):
    plan = plan_of(tmp_path)
    assert plan == {
        f"model.layers.{layer}.{name}": (4, 2.0)
        for layer in (0, 1)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }


def test_rank_stabilised_scale(tmp_path):
    assert set(plan_of(tmp_path, use_rslora=True).values()) == {(4, 4.0)}  # 8 / sqrt(4)


def test_patterns_of_ranks_and_alphas(tmp_path):
    plan = plan_of(
        tmp_path,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 16},
        alpha_pattern={"model.layers.0.mlp.up_proj": 40},
    )
    assert plan == {
        "model.layers.0.self_attn.q_proj": (2, 4.0),
        "model.layers.1.self_attn.q_proj": (2, 4.0),
        "model.layers.0.mlp.up_proj": (4, 10.0),
        "model.layers.1.mlp.up_proj": (16, 0.5),
    }


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 14),
        (r".*\.(q|v)_proj", 4),
        (["layers.0.mlp.up_proj"], 1),
        (["q_proj", "not_here"], 2),
    ],
)
def test_target_modules_may_be_names_or_a_regular_expression(tmp_path, targets, count):
    assert len(plan_of(tmp_path, target_modules=targets)) == count


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"use_dora": True}, "use_dora true: DoRA is not supported"),
        ({"bias": "all"}, 'bias "all": trained biases are not supported'),
        ({"bias": "lora_only"}, 'bias "lora_only": trained biases'),
        ({"lora_bias": True}, "lora_bias true: this key is not supported"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save \["lm_head"\]: fully trained'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa": its base may not be the one'),
        ({"init_lora_weights": "pissa_niter_4"}, "change the base's weights"),
        ({"init_lora_weights": "olora"}, "such as PiSSA and OLoRA"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"task_type": "SEQ_CLS"}, 'task_type "SEQ_CLS": only CAUSAL_LM'),
        ({"fan_in_fan_out": True}, "fan_in_fan_out true: this key is not supported"),
        ({"layers_to_transform": [0]}, r"layers_to_transform \[0\]"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"revision": "v2"}, 'revision "v2"'),
        ({"from_the_future": 1}, "from_the_future 1: this key is not supported"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            "an adapter on lm_head is not supported: where",
        ),
        ({"target_modules": ["embed_tokens"]}, "an adapter on model.embed_tokens"),
        ({"target_modules": ".*"}, "an adapter on lm_head"),
        ({"target_modules": ["c_attn"]}, r"target_modules \['c_attn'\] names no linear layer"),
        ({"target_modules": 3}, "target_modules 3 is not a list of names"),
        ({"target_modules": "("}, "adapter_config.json: "),
        ({"r": 0}, "rank 0 of model.layers.0.self_attn.q_proj is not a positive integer"),
        ({"rank_pattern": {"up_proj": "a"}}, "rank 'a' of model.layers.0.mlp.up_proj"),
        ({"rank_pattern": [3]}, "rank_pattern"),
        ({"lora_alpha": None}, "alpha None of "),
        ({"lora_alpha": 0}, "alpha 0 of .* is not a number other than 0"),
    ],
)
def test_unsupported_keys_are_refused_by_name(tmp_path, keys, message):
    with pytest.raises(ValueError, match=f"adapter_config.json: .*{message}|^.*{message}") as error:
        plan_of(tmp_path, **keys)
    assert "adapter_config.json" in str(error.value) and "\n" not in str(error.value)


# -- adapter_model.safetensors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: x.pop(Q0), f"{Q0} is missing"),
        (lambda x: x.update({Q0: x[Q0][:2].clone()}), r"has shape \(2, 32\), not \(3, 32\)"),
        (lambda x: x[Q0].fill_(torch.nan), f"{Q0} contains NaN or infinity"),
        (lambda x: x.update({Q0: x[Q0].int()}), "is stored as I32, not as floats"),
        (
            lambda x: x.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 32)}),
            "'base_model.model.lm_head.lora_A.weight' is unknown",
        ),
        (
            lambda x: x.update(
                {Q0.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(3)}
            ),
            "lora_magnitude_vector' is unknown",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, changed, message):
    change_weights(saved, changed)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: .*{message}"):
        checkpoint.load(saved)


def test_missing_and_damaged_weights(saved):
    (saved / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=f"{WEIGHTS}: damaged"):
        checkpoint.load(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS}: no such file"):
        checkpoint.load(saved)
    (saved / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match=r"adapter_model.bin is not read: pickle"):
        checkpoint.load(saved)
