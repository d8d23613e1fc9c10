import copy
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes

from r1mini import checkpoint
from r1mini.checkpoint import weights
from r1mini.checkpoint.chat_template import load_chat_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT, Tokenizer
from r1mini.model.config import ModelConfig

# As Hugging Face writes them, without irrelevant fields.
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = {
    **QWEN2,
    "model_type": "qwen3",
    "hidden_size": 1024,
    "head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "attention_bias": False,
    "rope_scaling": None,
    "sliding_window": None,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def config_of(tmp_path, raw):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    return weights.read_config(path)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of a model folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


# -- config.json -------------------------------------------------------------------------------------------------------


def test_qwen2_config(tmp_path):
    assert config_of(tmp_path, QWEN2) == ModelConfig(
        vocab_size=151936,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        head_dim=64,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        attention_bias=True,
        qk_norm=False,
    )


def test_qwen3_config(tmp_path):
    config = config_of(tmp_path, QWEN3)
    assert (config.head_dim, config.qk_norm, config.attention_bias) == (128, True, False)


def test_llama_config_with_hugging_faces_defaults(tmp_path):
    config = config_of(tmp_path, LLAMA)
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10_000.0)
    assert not config.tie_word_embeddings and not config.attention_bias and not config.qk_norm


def test_rope_theta_of_newer_configs(tmp_path):
    assert (
        config_of(
            tmp_path, {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
        ).rope_theta
        == 5e5
    )


def test_both_spellings_of_rope_give_the_same_config(tmp_path):
    older = config_of(tmp_path, {**LLAMA, "rope_theta": 5e5, "rope_scaling": LLAMA3})
    newer = config_of(tmp_path, {**LLAMA, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert older == newer and (older.rope_theta, older.rope_scaling) == (5e5, LLAMA3)
    oldest = config_of(tmp_path, {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}})
    assert oldest.rope_scaling == {"rope_type": "linear", "factor": 2}


@pytest.mark.parametrize("scaling", [LLAMA3, {"type": "linear", "factor": 2}, {"type": "default"}])
def test_theta_of_rope_parameters_stays_beside_rope_scaling(tmp_path, scaling):
    for parameters in ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}):
        both = {**LLAMA, "rope_scaling": scaling, "rope_parameters": parameters}
        older = config_of(tmp_path, {**LLAMA, "rope_scaling": scaling, "rope_theta": 5e5})
        assert config_of(tmp_path, both) == older and older.rope_theta == 5e5
        assert config_of(tmp_path, {**both, "rope_theta": 7e5}) == older
    own = {**scaling, "rope_theta": 9e5}  # of the object that has the scaling, as before
    assert config_of(tmp_path, {**both, "rope_scaling": own}).rope_theta == 9e5
    for wrong in (
        {"rope_theta": 0.5},
        {"full": {"rope_theta": 5e5}},
        {"partial_rotary_factor": 0.5},
    ):
        with pytest.raises(ValueError, match="rope_theta 0.5|not one object|partial_rotary_factor"):
            config_of(tmp_path, {**both, "rope_parameters": wrong})


def test_yarn_defaults_come_from_the_context_length(tmp_path):
    yarn = {
        "rope_scaling": {"rope_type": "yarn", "factor": None},
        "original_max_position_embeddings": 128,
    }
    assert config_of(tmp_path, {**LLAMA, **yarn}).rope_scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    assert (
        config_of(tmp_path, {**LLAMA, **yarn}).rope_scaling["original_max_position_embeddings"]
        == 512
    )


@pytest.mark.parametrize(
    "harmless",
    [
        {"model_type": "mistral", "sliding_window": 512},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 16},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
        },
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["full_attention"] * 2,
        },
        {"quantization_config": None},
    ],
)
def test_fields_without_effect_are_accepted(tmp_path, harmless):
    config_of(tmp_path, {**LLAMA, "num_key_value_heads": 2, **harmless})


def test_missing_fields_have_transformers_defaults(tmp_path):
    config = config_of(
        tmp_path,
        {**LLAMA, "model_type": "qwen3", "num_attention_heads": 32, "max_position_embeddings": 9},
    )
    assert (config.num_key_value_heads, config.head_dim) == (32, 128)
    with pytest.raises(ValueError, match="sliding_window 4096 of 131072"):
        config_of(
            tmp_path,
            {
                k: v
                for k, v in {**LLAMA, "model_type": "mistral", "num_attention_heads": 8}.items()
                if k != "max_position_embeddings"
            },
        )


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        (
            {"model_type": "qwen3_moe"},
            "model_type 'qwen3_moe' is not one of llama, mistral, qwen2, qwen3",
        ),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, "model_type ..llama.."),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope type dynamic is not supported",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type longrope is not supported"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}},
            "rope type llama3: low_freq_factor None",
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor is not below high_freq_factor",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope type linear: factor None"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope type linear: factor '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope type linear: factor 0"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}},
            "rope type yarn: beta_fast -1",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "not one object of numbers"),
        ({"rope_theta": -1.0}, "rope_theta -1.0"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
        ({"hidden_size": 1e400}, "infinity"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            {"model_type": "mistral", "sliding_window": 511, "num_key_value_heads": 2},
            "sliding_window 511 of 512",
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 16,
                "max_window_layers": 1,
                "num_key_value_heads": 2,
            },
            "sliding_window 16 of 512",
        ),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 16,
                "num_key_value_heads": 2,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "sliding_window 16 of 512",
        ),
        ({"hidden_size": "wide"}, "wide"),
        ({"hidden_size": None}, "NoneType"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": "linear"}, "rope"),
    ],
)
def test_unsupported_config_is_refused_naming_the_field(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=f"config.json: .*{complaint}"):
        config_of(tmp_path, {**LLAMA, **change})


def test_missing_field_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json: num_hidden_layers is missing"):
        config_of(
            tmp_path, {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}
        )


# -- model folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize(
    "family",
    [{}, {"attention_bias": True}, {"qk_norm": True, "head_dim": 16}, {"rope_scaling": LLAMA3}],
    ids=["llama", "qwen2", "qwen3", "llama3"],
)
def test_saved_model_loads_unchanged(tmp_path, tokens, family, tied, shard_bytes, monkeypatch):
    saved = random_model(vocab_size=tokens.vocab_size, tie_word_embeddings=tied, **family)
    monkeypatch.setattr(weights, "SHARD_BYTES", shard_bytes)
    checkpoint.save(tmp_path, saved, tokens)
    loaded, tokenizer = checkpoint.load(tmp_path)
    assert loaded.config == saved.config
    row = torch.tensor([[1, 2, 3]])
    assert loaded(row).equal(saved(row))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert (
        tokenizer.encode("5+8=13 配平") == tokens.encode("5+8=13 配平")
        and tokenizer.stop_ids == tokens.stop_ids
    )


def test_folder_has_hugging_faces_layout(folder):
    folder = Path(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": [0],
    }
    assert {key: config.get(key) for key in expected} == expected
    names = load_file(folder / "model.safetensors").keys()
    assert "model.layers.1.self_attn.q_proj.weight" in names and "model.norm.weight" in names
    assert "lm_head.weight" not in names  # tied


def test_redundant_tied_weight_is_accepted(copied, model):
    tensors = load_file(copied / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        copied / "model.safetensors",
    )
    assert checkpoint.load(copied)[0].lm_head.weight.equal(model.lm_head.weight)


def test_bf16_weights_are_saved_on_request_and_loaded_as_fp32(tmp_path, model, tokens):
    checkpoint.save(tmp_path, copy.deepcopy(model).to(torch.bfloat16), tokens)
    loaded, _ = checkpoint.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert loaded.lm_head.weight.equal(model.lm_head.weight.bfloat16().float())


def test_end_tokens_of_both_config_files_are_stop_tokens(copied, tokens):
    for name, value in (("config.json", 5), ("generation_config.json", [6, 7])):
        raw = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps({**raw, "eos_token_id": value}))
    assert checkpoint.load_tokenizer(copied).stop_ids == {5, 6, 7, tokens.eos_id}


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def sharded(tmp_path, model, tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "SHARD_BYTES", 30_000)
        checkpoint.save(tmp_path / "sharded", model, tokens)
    return tmp_path / "sharded"


def test_shards_have_hugging_faces_names(sharded, model):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert (
        files
        == [f"model-0000{i}-of-0000{len(files)}.safetensors" for i in range(1, len(files) + 1)]
        and len(files) > 2
    )
    stored = {name: file for file in files for name in load_file(sharded / file)}
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    sizes = {file: sum(t.nbytes for t in load_file(sharded / file).values()) for file in files}
    assert all(
        size <= 30_000 or len(load_file(sharded / file)) == 1 for file, size in sizes.items()
    )


def test_weights_have_the_same_permissions_as_other_files(sharded):
    assert len({path.stat().st_mode for path in sharded.iterdir()}) == 1


def test_saving_again_removes_old_shards(sharded, model, tokens, monkeypatch):
    (sharded / "model-of-mine.safetensors").write_text("not ours")
    checkpoint.save(sharded, model, tokens)
    assert [path.name for path in sorted(sharded.glob("model*"))] == [
        "model-of-mine.safetensors",
        "model.safetensors",
    ]
    monkeypatch.setattr(weights, "SHARD_BYTES", 30_000)
    checkpoint.save(sharded, model, tokens)
    assert not (sharded / "model.safetensors").exists()
    checkpoint.load(sharded)


def test_files_and_fields_of_other_tools_are_preserved(copied, tmp_path):
    change(
        copied / "config.json",
        bos_token_id=3,
        pad_token_id=None,
        auto_map={"a": "b"},
        eos_token_id=7,
    )
    change(copied / "generation_config.json", temperature=0.6, eos_token_id=[7, 0])
    extra = {
        "tokenizer_config.json": b'{"model_max_length": 9,  "eos_token": {"content": "<|endoftext|>"}}',
        "chat_template.jinja": "{{ messages }} 配".encode(),
        "special_tokens_map.json": b"{}",
        "merges.txt": b"a b",
    }
    for name, content in {**extra, "run.json": b"{}", "pytorch_model.bin": b"?"}.items():
        (copied / name).write_bytes(content)
    model, tokens = checkpoint.load(copied)
    checkpoint.save(tmp_path / "again", model.to(torch.bfloat16), tokens)
    files = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert files.keys() == {
        *extra,
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert {name: files[name] for name in extra} == extra
    assert files["generation_config.json"] == (copied / "generation_config.json").read_bytes()
    before, after = (
        json.loads((copied / "config.json").read_text()),
        json.loads(files["config.json"]),
    )
    assert after == {**before, "torch_dtype": "bfloat16"}
    # In the newer spelling too. A tokenizer with other stop tokens records them in the file that other tools read.
    change(copied / "config.json", dtype="float32", torch_dtype="kept")
    checkpoint.save(
        tmp_path / "again",
        checkpoint.load(copied)[0],
        Tokenizer(tokens.backend, [9], files=tokens.files),
    )
    after = json.loads((tmp_path / "again/config.json").read_text())
    assert (after["dtype"], after["torch_dtype"]) == ("float32", "kept")
    after = json.loads((tmp_path / "again/generation_config.json").read_text())
    assert after == {"temperature": 0.6, "eos_token_id": [0, 9]}


def test_tokenizer_config_sets_the_training_end_token(copied, tokens):
    think = tokens.backend.token_to_id("<think>")
    for written in ("<think>", {"content": "<think>", "lstrip": False}):
        (copied / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": written, "pad_token": "</think>"})
        )
        tokenizer = checkpoint.load_tokenizer(copied)
        assert tokenizer.eos_id == think and tokenizer.stop_ids == {
            think,
            tokens.eos_id,
        }  # without the padding token


@pytest.mark.parametrize("empty", ["", {"content": ""}, None])
def test_empty_end_token_is_none(copied, tokens, empty):
    (copied / "tokenizer_config.json").write_text(json.dumps({"eos_token": empty}))
    assert checkpoint.load_tokenizer(copied).eos_id == tokens.eos_id
    assert load_chat_template(copied).render([{"role": "assistant", "content": "a"}], False) == (
        f"a{END_OF_TEXT}"
    )
    for wrong in (" ", "</s>"):
        (copied / "tokenizer_config.json").write_text(json.dumps({"eos_token": wrong}))
        with pytest.raises(ValueError, match=f"eos_token '{wrong}' is not in tokenizer.json"):
            checkpoint.load_tokenizer(copied)


def test_loading_skips_initialisation_and_copies_mapped_weights(copied):
    before = torch.get_rng_state()
    model, _ = checkpoint.load(copied)
    assert torch.get_rng_state().equal(before)
    weight = model.lm_head.weight.detach().clone()
    with open(
        copied / "model.safetensors", "r+b"
    ) as file:  # in place: changes the file that was mapped
        file.seek(-4000, os.SEEK_END)
        file.write(b"\xff" * 4000)
    assert model.lm_head.weight.equal(weight)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_weights_are_loaded_in_the_requested_dtype(copied):
    model, _ = checkpoint.load(copied, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([[1, 2]])).dtype == torch.bfloat16


def test_buffers_of_old_llamas_are_ignored(copied, model):
    change_tensors(
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )(copied)
    assert checkpoint.load(copied)[0].lm_head.weight.equal(model.lm_head.weight)


def test_truncation_and_padding_of_the_tokenizer_file_are_ignored(copied, tokens):
    tokens.backend.enable_truncation(2)
    tokens.backend.enable_padding(length=9)
    (copied / "tokenizer.json").write_text(tokens.backend.to_str())
    tokens.backend.no_truncation()
    tokens.backend.no_padding()
    tokenizer = checkpoint.load_tokenizer(copied)
    assert tokenizer.encode_batch(["5+8=13", "5"]) == tokens.encode_batch(["5+8=13", "5"])


def change_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def truncated(name, share):
    def damage(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


@pytest.mark.parametrize(
    "damage, file, complaint",
    [
        (
            change_tensors(lambda t: t.pop("model.norm.weight")),
            "model.safetensors",
            "model.norm.weight is missing",
        ),
        (
            change_tensors(lambda t: t.update(extra=torch.ones(1))),
            "model.safetensors",
            "'extra' is unknown",
        ),
        (
            change_tensors(lambda t: t.update({"model.norm.weight": torch.ones(31)})),
            "model.safetensors",
            r"model.norm.weight has shape \(31,\), not \(32,\)",
        ),
        (
            change_tensors(
                lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})
            ),
            "model.safetensors",
            "model.norm.weight is stored as I8",
        ),
        (
            change_tensors(lambda t: t.update({f"extra{i}": torch.ones(1) for i in range(20)})),
            "model.safetensors",
            "and 12 more",
        ),
        (
            change_tensors(lambda t: t.update({"lm_head.weight": torch.ones(400, 32)})),
            "model.safetensors",
            "lm_head.weight is not model.embed_tokens.weight",
        ),
        (
            lambda f: change(f / "config.json", num_hidden_layers=3),
            "model.safetensors",
            "model.layers.2.*is missing",
        ),
        (
            lambda f: change(f / "config.json", vocab_size=399),
            "tokenizer.json",
            "token id 399, but .* embeddings for 399",
        ),
        (
            lambda f: change(f / "generation_config.json", eos_token_id=-1),
            "generation_config.json",
            "eos_token_id",
        ),
        (
            lambda f: change(f / "generation_config.json", eos_token_id=400),
            "generation_config.json",
            "token id 400",
        ),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "<no>"}'),
            "tokenizer_config.json",
            "'<no>' is not in",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}"),
            "model.safetensors",
            "damaged",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "model.safetensors",
            "pytorch_model.bin is not read",
        ),
        (
            lambda f: os.truncate(f / "tokenizer.json", 2**26 + 1),
            "tokenizer.json",
            "67,108,865 bytes are too many",
        ),
        (lambda f: os.truncate(f / "config.json", 2**26 + 1), "config.json", "too many"),
        (
            lambda f: (f / "chat_template.jinja").open("w").truncate(2**26 + 1),
            "chat_template.jinja",
            "too many",
        ),
        (truncated("model.safetensors", 0.5), "model.safetensors", "damaged"),
        (truncated("model.safetensors", 0.0), "model.safetensors", "damaged"),
        (truncated("config.json", 0.5), "config.json", "not valid JSON"),
        (truncated("generation_config.json", 0.5), "generation_config.json", "not valid JSON"),
        (truncated("tokenizer.json", 0.5), "tokenizer.json", "not a tokenizer"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json", "not a JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json", "not valid JSON"),
        (lambda f: (f / "config.json").unlink(), "config.json", "no such file"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors", "no such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "no such file"),
    ],
)
def test_damaged_folder_raises_one_error_naming_the_file(copied, damage, file, complaint):
    damage(copied)
    with pytest.raises(ValueError, match=f"{file}: .*{complaint}") as error:
        checkpoint.load(copied)
    assert "\n" not in str(error.value)


def shard_of(folder, number):
    return sorted(folder.glob("model-*.safetensors"))[number]


def lie(folder):
    """The first shard's header, with a tensor's end moved so that it has more bytes than its shape."""
    path = shard_of(folder, 0)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 4
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + whole[8 + length :])


def renamed(shard):
    return lambda folder: change(
        folder / "model.safetensors.index.json", weight_map={"model.norm.weight": shard}
    )


@pytest.mark.parametrize(
    "damage, file, complaint",
    [
        (renamed("../model.safetensors"), "index.json", "not the name of a shard in this folder"),
        (renamed("/tmp/model.safetensors"), "index.json", "not the name of a shard"),
        (renamed("..\\model.safetensors"), "index.json", "not the name of a shard"),
        (renamed("model-1.bin"), "index.json", "not the name of a shard"),
        (renamed(3), "index.json", "not the name of a shard"),
        (
            renamed("model-00001-of-00009.safetensors"),
            "model-00001-of-00009.safetensors",
            "no such file",
        ),
        (
            lambda f: change(f / "model.safetensors.index.json", weight_map=[]),
            "index.json",
            "weight_map is missing",
        ),
        (truncated("model.safetensors.index.json", 0.5), "index.json", "not valid JSON"),
        (
            lambda f: os.truncate(shard_of(f, 1), 9000),
            "model-00002-of-0000.\\.safetensors",
            "damaged",
        ),
        (lambda f: shard_of(f, 1).unlink(), "model-00002-of-0000.\\.safetensors", "no such file"),
        (
            lambda f: shutil.copy(shard_of(f, 0), shard_of(f, 1)),
            "index.json",
            "is in model-00001-of.* and in model-00002-of",
        ),
        (lie, "model-00001-of-0000.\\.safetensors", "damaged"),
    ],
)
def test_damaged_shards_raise_one_error_naming_the_file(sharded, damage, file, complaint):
    damage(sharded)
    with pytest.raises(ValueError, match=f"{file}: .*{complaint}") as error:
        checkpoint.load(sharded)
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(tmp_path, monkeypatch, folder):
    """A hub cache with one model in it, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    checkpoint.download.cache_clear()
    cached = tmp_path / "hub/models--someone--model"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)


def test_hub_id_is_loaded_from_the_cache_offline(hub, model):
    assert checkpoint.load("someone/model")[0].lm_head.weight.equal(model.lm_head.weight)


def test_hub_is_asked_once(hub, monkeypatch):
    import huggingface_hub

    folder = checkpoint.resolve("someone/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert checkpoint.resolve("someone/model") == folder


def test_hub_id_that_cannot_be_downloaded_is_a_one_line_error(hub):
    with pytest.raises(
        ValueError,
        match="^someone/other: no such model folder, and it could not be downloaded .* hub",
    ) as error:
        checkpoint.load("someone/other")
    assert "\n" not in str(error.value)


def test_missing_folder_in_an_existing_one_is_not_a_hub_id(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="^runs/absent: no such model folder .embedded models"):
        checkpoint.load("runs/absent")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent: no such model folder.*embedded models: base"):
        checkpoint.load(tmp_path / "absent")


@pytest.mark.parametrize("name", ["gpt2", "Qwen2.5-0.5B", "a/b/c"])
def test_bare_name_says_how_hub_ids_look(hub, name):
    with pytest.raises(ValueError, match=f"^{name}: no such model folder.*hub id is owner/name"):
        checkpoint.load(name)


def test_model_folder_with_a_merged_adapters_config_is_a_model(copied):
    adapter = {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B", "peft_type": "LORA"}
    (copied / "adapter_config.json").write_text(json.dumps(adapter))
    assert checkpoint.load(copied)  # tests/checkpoint/test_adapter.py has folders without a model
    (copied / "adapter_config.json").unlink()
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors: no such file"):
        checkpoint.load(copied)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_other_tokenizer_says_how_to_convert_it(copied, name):
    (copied / name).write_text("{}")
    assert checkpoint.load_tokenizer(copied)  # beside tokenizer.json
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=f"tokenizer.json: no such file.*{name}.*save_pretrained"):
        checkpoint.load(copied)
    (copied / name).unlink()
    with pytest.raises(ValueError, match="tokenizer.json: no such file$"):
        checkpoint.load(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_full_disk_leaves_only_the_old_files(copied, tokens, monkeypatch, name):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2] if path.name == f"{name}.tmp" else content)
        if path.name == f"{name}.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_of_tensors(tensors, path, metadata):
        full(path, to_bytes(tensors, metadata))

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(weights, "save_file", full_of_tensors)
    with pytest.raises(ValueError, match=f"{name}: cannot be written .No space left on device"):
        checkpoint.save(
            copied, random_model(num_hidden_layers=1, vocab_size=tokens.vocab_size), tokens
        )
    after = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert after.keys() == before.keys()
    assert after[name] == before[name]
    checkpoint.load(copied)


def test_weights_that_cannot_be_written_are_named(tmp_path, model, tokens, monkeypatch):
    def full(*_):  # as safetensors 0.8 does on a full disk
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(ValueError, match="model.safetensors: cannot be written .*No space left"):
        checkpoint.save(tmp_path, model, tokens)
    assert not list(tmp_path.iterdir())


def test_non_finite_weights_are_refused_at_load(copied):
    tensors = weights.safe_open(copied / "model.safetensors", "pt")
    change_tensors(lambda t: t["model.norm.weight"].fill_(float("nan")))(copied)
    del tensors
    with pytest.raises(
        ValueError, match="model.safetensors: model.norm.weight contains NaN or infinity"
    ):
        checkpoint.load(copied)


def test_interrupted_save_leaves_nothing_behind(copied, tokens, monkeypatch):
    before = sorted(path.name for path in copied.iterdir())

    def interrupted(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(copied, random_model(vocab_size=tokens.vocab_size), tokens)
    assert sorted(path.name for path in copied.iterdir()) == before
    checkpoint.load(copied)


def test_folder_of_a_killed_save_is_not_a_model(copied, tokens, monkeypatch):
    real, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(copied, random_model(vocab_size=tokens.vocab_size), tokens)
    with pytest.raises(ValueError, match="config.json: no such file"):
        checkpoint.load(copied)


def test_attn_factor_is_written_as_transformers_reads_it(copied, tokens):
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "attn_factor": 0.8782,
    }
    change(copied / "config.json", rope_scaling=scaling)
    model, _ = checkpoint.load(copied)
    checkpoint.save(copied / "again", model, tokens)
    written = json.loads((copied / "again/config.json").read_text())["rope_scaling"]
    assert written == {**scaling, "attention_factor": pytest.approx(model.rope_factor)}
    assert checkpoint.load(copied / "again")[0].rope_factor == model.rope_factor
