import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model
from safetensors.torch import load_file, save_file

from r1mini import checkpoint
from r1mini.model import ModelConfig

# As Hugging Face writes them (fields that do not matter left out).
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
         "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
         "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
         "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
         "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False,
         "vocab_size": 151936}
QWEN3 = {**QWEN2, "model_type": "qwen3", "hidden_size": 1024, "head_dim": 128, "num_attention_heads": 16,
         "num_key_value_heads": 8, "num_hidden_layers": 28, "intermediate_size": 3072, "attention_bias": False,
         "rope_scaling": None, "sliding_window": None}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 96, "vocab_size": 100, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}


def config_of(tmp_path, raw):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    return checkpoint.read_config(path)


@pytest.fixture
def copied(folder, tmp_path):
    """A model folder of one's own to damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


# -- config.json -------------------------------------------------------------------------------------------------------


def test_qwen2_config(tmp_path):
    assert config_of(tmp_path, QWEN2) == ModelConfig(
        vocab_size=151936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, head_dim=64, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6,
        tie_word_embeddings=True, attention_bias=True, qk_norm=False)


def test_qwen3_config(tmp_path):
    config = config_of(tmp_path, QWEN3)
    assert (config.head_dim, config.qk_norm, config.attention_bias) == (128, True, False)


def test_llama_config_with_hugging_faces_defaults(tmp_path):
    config = config_of(tmp_path, LLAMA)
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10_000.0)
    assert not config.tie_word_embeddings and not config.attention_bias and not config.qk_norm


def test_rope_theta_of_newer_configs(tmp_path):
    assert config_of(tmp_path, {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).rope_theta == 5e5


@pytest.mark.parametrize("change, complaint", [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"model_type": None}, "model_type None"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "rope type llama3"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type linear"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope type yarn"),
    ({"hidden_act": "gelu"}, "hidden_act gelu"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"attention_bias": True}, "attention_bias"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"model_type": "mistral", "sliding_window": 4096}, "use_sliding_window"),
    ({"hidden_size": "wide"}, "wide"),
    ({"hidden_size": None}, "NoneType"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
    ({"rope_scaling": "linear"}, "rope"),
])
def test_config_that_is_not_supported_is_refused_by_name(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=f"config.json: .*{complaint}"):
        config_of(tmp_path, {**LLAMA, **change})


def test_missing_field_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json: num_hidden_layers is missing"):
        config_of(tmp_path, {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"})


# -- model folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [{}, {"attention_bias": True}, {"qk_norm": True, "head_dim": 16}],
                         ids=["llama", "qwen2", "qwen3"])
def test_model_comes_back_as_it_was_saved(tmp_path, tokens, family, tied):
    saved = random_model(vocab_size=tokens.vocab_size, tie_word_embeddings=tied, **family)
    checkpoint.save(tmp_path, saved, tokens)
    loaded, found = checkpoint.load(tmp_path)
    assert loaded.config == saved.config
    row = torch.tensor([[1, 2, 3]])
    assert loaded(row).equal(saved(row))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert found.encode("5+8=13 配平") == tokens.encode("5+8=13 配平") and found.stop_ids == tokens.stop_ids


def test_folder_is_as_hugging_face_writes_it(folder):
    folder = Path(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((folder / "config.json").read_text())
    expected = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "head_dim": 8,
                "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 10_000.0, "rms_norm_eps": 1e-6,
                "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "eos_token_id": [0]}
    assert {key: config.get(key) for key in expected} == expected
    names = load_file(folder / "model.safetensors").keys()
    assert "model.layers.1.self_attn.q_proj.weight" in names and "model.norm.weight" in names
    assert "lm_head.weight" not in names  # tied


def test_tied_weight_that_is_stored_all_the_same_is_accepted(copied, model):
    tensors = load_file(copied / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, copied / "model.safetensors")
    assert checkpoint.load(copied)[0].lm_head.weight.equal(model.lm_head.weight)


def test_half_precision_is_stored_as_asked_and_loaded_as_single(tmp_path, model, tokens):
    checkpoint.save(tmp_path, model, tokens, torch.bfloat16)
    loaded, _ = checkpoint.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert loaded.lm_head.weight.equal(model.lm_head.weight.bfloat16().float())


def test_all_end_tokens_of_both_files_stop(copied, tokens):
    for name, value in (("config.json", 5), ("generation_config.json", [6, 7])):
        raw = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps({**raw, "eos_token_id": value}))
    assert checkpoint.load_tokenizer(copied).stop_ids == {5, 6, 7, tokens.end_id}


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


@pytest.mark.parametrize("damage, file, complaint", [
    (change_tensors(lambda t: t.pop("model.norm.weight")), "model.safetensors", "model.norm.weight is missing"),
    (change_tensors(lambda t: t.update(extra=torch.ones(1))), "model.safetensors", "extra is unknown"),
    (change_tensors(lambda t: t.update({"model.norm.weight": torch.ones(31)})), "model.safetensors",
     r"model.norm.weight has shape \(31,\), not \(32,\)"),
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
])
def test_damaged_folder_is_one_value_error_naming_the_file(copied, damage, file, complaint):
    damage(copied)
    with pytest.raises(ValueError, match=f"{file}: .*{complaint}") as error:
        checkpoint.load(copied)
    assert "\n" not in str(error.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent: no such model folder.*embedded models: base"):
        checkpoint.load(tmp_path / "absent")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "resume.pt"])
def test_full_disk_leaves_the_old_files_and_no_others(copied, tokens, monkeypatch, name):
    checkpoint.save_state(copied, {"step": 1})
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2] if path.name == f"{name}.tmp" else content)
        if path.name == f"{name}.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=f"{name}: cannot be written .No space left on device"):
        checkpoint.save(copied, random_model(num_hidden_layers=1, vocab_size=tokens.vocab_size), tokens)
        checkpoint.save_state(copied, {"step": 2})
    after = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert after.keys() == before.keys()
    assert after[name] == before[name]
    checkpoint.load(copied)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_state_comes_back(tmp_path):
    assert checkpoint.load_state(tmp_path) is None
    state = {"step": 3, "model": {"w": torch.randn(2, 2)}, "reference": None, "optimizers": [{"lr": 0.1}]}
    checkpoint.save_state(tmp_path, state)
    loaded = checkpoint.load_state(tmp_path)
    assert loaded["model"]["w"].equal(state["model"]["w"])
    assert {**loaded, "model": 0} == {**state, "model": 0}


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_damaged_state_is_named(tmp_path, content):
    (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(ValueError, match="resume.pt: damaged"):
        checkpoint.load_state(tmp_path)


def test_nothing_in_a_state_is_executed(tmp_path):
    torch.save({"step": Path}, tmp_path / "resume.pt")  # a class: pickle would call it
    with pytest.raises(ValueError, match="resume.pt: damaged"):
        checkpoint.load_state(tmp_path)


def test_run_goes_from_new_to_begun_to_finished(tmp_path):
    config = {"out": "x", "steps": 3, "tasks": ("a", "b")}
    assert not checkpoint.has_finished(tmp_path, config)
    for _ in range(2):
        checkpoint.start_run(tmp_path, config)
        assert not checkpoint.has_finished(tmp_path, config)
    checkpoint.save_state(tmp_path, {"step": 1})
    checkpoint.finish_run(tmp_path, loss=0.5)
    assert checkpoint.has_finished(tmp_path, config)
    assert checkpoint.read_json(tmp_path / "run.json")["loss"] == 0.5
    assert checkpoint.load_state(tmp_path) is None  # optimizer states are large


def test_logs_are_cut_back_to_the_saved_step_and_to_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "rew', encoding="utf-8")
    checkpoint.keep_lines(path, lambda row: row["step"] < 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    path.write_text('{"step": 0}', encoding="utf-8")  # cut just before its line end
    checkpoint.keep_lines(path, lambda row: True)
    assert path.read_text() == ""


def test_completions_with_line_separators_stay_one_line(tmp_path):
    # json leaves U+2028 and U+0085 as they are, and str.splitlines cuts at them.
    path = tmp_path / "rollouts.jsonl"
    line = json.dumps({"step": 0, "completion": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n"
    path.write_text(line, encoding="utf-8")
    checkpoint.keep_lines(path, lambda row: True)
    assert path.read_text(encoding="utf-8") == line
