"""Reward models' folders: what is saved, and what is refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, random_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from r1mini import checkpoint
from r1mini.checkpoint import weights
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.model.reward_model import RewardModel
from r1mini.reward_model.training import convert


def load(folder):
    return checkpoint.load(folder, kind=RewardModel)


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def reward_model(model):
    return convert(copy.deepcopy(model), seed=0)


@pytest.fixture(scope="module")
def saved(reward_model, tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward-model")
    checkpoint.save(folder, reward_model, tokens)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a reward model's folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_unchanged(tmp_path, tokens, family, tied, shard_bytes, monkeypatch):
    settings = {**CONFIGS[family], "vocab_size": tokens.vocab_size, "tie_word_embeddings": tied}
    model = convert(random_model(**settings), seed=0)
    monkeypatch.setattr(weights, "SHARD_BYTES", shard_bytes)
    checkpoint.save(tmp_path, model, tokens)
    assert (len(list(tmp_path.glob("model-*"))) > 2) == (shard_bytes == 20_000)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [f"{family.capitalize()}ForSequenceClassification"]
    assert len(config["id2label"]) == len(config["label2id"]) == 1
    loaded, _ = load(tmp_path)
    row = torch.tensor([[1, 2, 3]])
    assert loaded(row).shape == (1, 3, 1) and loaded(row).equal(model(row))
    assert not any("lm_head" in name for name, _ in loaded.named_parameters())
    checkpoint.save(tmp_path / "again", loaded, tokens)
    assert json.loads((tmp_path / "again/config.json").read_text()) == config


def test_language_model_that_was_loaded_keeps_its_fields(tmp_path, folder, tokens):
    language_model, tokenizer = checkpoint.load(folder)
    language_model.hf_config |= {
        "architectures": ["LlamaForCausalLM"],
        "note": 1,
        "pad_token_id": 5,
    }
    checkpoint.save(tmp_path, convert(language_model, seed=0), tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["note"] == 1 and config["pad_token_id"] == 5
    assert language_model.hf_config["architectures"] == ["LlamaForCausalLM"]


def test_bf16_weights_are_loaded_and_saved(saved, tmp_path, tokens):
    model, _ = checkpoint.load(saved, dtype=torch.bfloat16, kind=RewardModel)
    assert model.score.weight.dtype == torch.bfloat16
    checkpoint.save(tmp_path, model, tokens)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["score.weight"].dtype == torch.bfloat16


# -- the padding token: transformers scores the last token that is not padding ---------------------


def with_special(tokens, *names):
    backend = copy.deepcopy(tokens.backend)
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    return backend


@pytest.mark.parametrize(
    ("pad", "special", "expected"),
    [
        (None, (), 1),  # no pad token in the config: the first token that ends no text
        (0, (), 1),  # the end token is the padding, as in many models
        (-1, (), 1),
        (7, ("<|pad|>",), 7),
        (0, ("<|im_end|>", "<|pad|>"), 401),  # a special token, if there is one that ends nothing
    ],
)
def test_padding_never_ends_a_text(model, tokens, tmp_path, pad, special, expected):
    backend = with_special(tokens, *special)
    stop_ids = [0, *(backend.token_to_id(name) for name in special if "end" in name)]
    files = {
        name: json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}).encode()
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    }
    reward_model = convert(random_model(vocab_size=402), seed=0)
    reward_model.hf_config = weights.config_json(reward_model, frozenset([0])) | {
        "pad_token_id": pad
    }
    checkpoint.save(tmp_path, reward_model, Tokenizer(backend, stop_ids, 0, files))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pad_token_id"] == expected
    for name in files:  # a tokenizer that pads with another token would change the scores
        written = json.loads((tmp_path / name).read_text())
        assert backend.token_to_id(written["pad_token"]) == expected
        assert written["eos_token"] == "<|endoftext|>"
    load(tmp_path)


def test_language_model_s_padding_is_not_changed(copied, model, tokens, tmp_path):
    files = {"tokenizer_config.json": b'{"pad_token": "<|endoftext|>"}'}
    checkpoint.save(tmp_path, model, Tokenizer(tokens.backend, [0], 0, files))
    assert (tmp_path / "tokenizer_config.json").read_bytes() == files["tokenizer_config.json"]
    assert "pad_token_id" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_unreadable_map_of_special_tokens_is_saved_as_it_is(
    reward_model, tokens, tmp_path, content
):
    """transformers 5 does not need the file; nothing here reads it."""
    files = {"special_tokens_map.json": content}
    checkpoint.save(tmp_path, reward_model, Tokenizer(tokens.backend, [0], 0, files))
    assert (tmp_path / "special_tokens_map.json").read_bytes() == content


def test_folder_s_own_padding_does_not_change_the_scores(copied, tokens):
    """Lengths decide which token is the last: a config whose padding is the end token, or that has
    none, gives the same scores."""
    model, _ = load(copied)
    row = torch.tensor([[5, tokens.eos_id, 9, tokens.eos_id]])
    for pad in (tokens.eos_id, None, 9):
        change(copied / "config.json", pad_token_id=pad)
        assert load(copied)[0](row).equal(model(row))


# -- what is refused -------------------------------------------------------------------------------


def tensors(change):
    def damage(folder):
        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors")

    return damage


def rows(count):
    return tensors(lambda stored: stored.update({"score.weight": torch.zeros(count, 32)}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            tensors(lambda stored: stored.pop("score.weight")),
            "model.safetensors: score.weight is missing",
        ),
        (
            tensors(lambda stored: stored.update({"score.bias": torch.zeros(1)})),
            "model.safetensors: 'score.bias' is unknown",
        ),
        (
            tensors(lambda stored: stored.update({"lm_head.weight": torch.zeros(400, 32)})),
            "model.safetensors: 'lm_head.weight' is unknown",
        ),
        (rows(5), r"model.safetensors: score.weight has shape \(5, 32\), not \(1, 32\)"),
        (
            lambda folder: (
                rows(2)(folder),
                (folder / "config.json").write_text(  # transformers' default is two labels
                    (folder / "config.json").read_text().replace("id2label", "other")
                ),
            ),
            r"model.safetensors: score.weight has shape \(2, 32\), not \(1, 32\)",
        ),
        (
            lambda folder: change(
                folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(5)}
            ),
            r"config.json: 5 labels \(id2label\); a reward model has one",
        ),
        (
            lambda folder: change(folder / "config.json", architectures=["LlamaForRewardModel"]),
            "config.json: LlamaForRewardModel is not a reward model .…ForSequenceClassification.",
        ),
    ],
)
def test_damaged_folder_is_one_line_naming_the_file(copied, damage, complaint):
    damage(copied)
    with pytest.raises(ValueError, match=complaint) as error:
        load(copied)
    assert "\n" not in str(error.value)


def test_language_model_is_not_a_reward_model(folder):
    message = "config.json: LlamaForCausalLM is not a reward model .*python -m r1mini.reward_model"
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_reward_model_is_not_a_language_model(saved):
    message = "config.json: LlamaForSequenceClassification is not a language model .* --reward NAME"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved)


def test_folder_without_architectures_is_judged_by_its_tensors(copied, folder, tmp_path):
    change(copied / "config.json", architectures=None)
    load(copied)
    with pytest.raises(ValueError, match="model.safetensors: 'score.weight' is unknown"):
        checkpoint.load(copied)
    other = Path(shutil.copytree(folder, tmp_path / "language-model"))
    change(other / "config.json", architectures=[])
    with pytest.raises(ValueError, match="model.safetensors: .*score.weight is missing"):
        load(other)
