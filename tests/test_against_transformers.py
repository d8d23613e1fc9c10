"""Each model family and RoPE variant against transformers: logits, padding, greedy text, folders in both directions.
Reward models: scores, padding, folders in both directions.

If transformers is installed, it is run. Otherwise the comparison is with its recorded outputs, which transformers 5.23.0
wrote to transformers_logits.json. To record them again, in a separate environment:

    python -m venv reference && reference/bin/pip install -r tests/requirements-reference.txt
    reference/bin/python tests/test_against_transformers.py
    reference/bin/python -m pytest tests/test_against_transformers.py
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent.parent))
from r1mini import checkpoint
from r1mini.checkpoint import weights
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra import files
from r1mini.model.attention import PackedAttention
from r1mini.model.reward_model import RewardModel
from r1mini.model.rope import rope_frequency
from r1mini.model.transformer import Transformer
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training.logprobs import collate
from r1mini.training.scores import row_scores

NUMBERS = Path(__file__).with_name("transformers_logits.json")
needs_transformers = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="needs transformers"
)
LENGTHS = (40, 9, 23)
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Contexts, and llama3's theta, chosen so that some of these few frequencies lie on the ramp between kept and stretched.
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
CASES = {  # config.json, in both spellings
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama llama3": {
        "model_type": "llama",
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
    },
    "llama llama3, newer spelling": {
        "model_type": "llama",
        "dtype": "float32",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
    },
    "llama yarn": {"model_type": "llama", "rope_scaling": {"rope_type": "yarn", **YARN}},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 12, "rope_theta": 1e6},
    "qwen2": {
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "sliding_window": 16,
    },
    "qwen2 tied, linear": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    },
    "qwen2 yarn": {
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", **YARN},
    },
    "qwen3": {
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "head_dim": 16,
        "rope_theta": 1e6,
    },
    "qwen3 yarn, all its numbers": {
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            **YARN,
            "beta_fast": 16,
            "beta_slow": 2,
            "truncate": False,
            "attention_factor": 1.3,
        },
    },
    "qwen3 yarn, DeepSeek's mscale": {
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_scaling": {"type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.6},
    },
}
SCORED = ("llama", "qwen2", "qwen3")  # …ForSequenceClassification with one label
PADDING = 24
ROPES = {  # real sizes: 64 frequencies, and contexts of 32,768 and more
    "Llama 3.1": {
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192},
    },
    "Llama 3.2": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            **LLAMA3,
            "factor": 32.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "Qwen 2.5 at 128 k": {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "DeepSeek-V3": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 0.9,
        },
    },
    "YaRN with all its numbers": {
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 8192,
            "beta_fast": 16,
            "beta_slow": 2,
            "truncate": False,
            "attention_factor": 1.3,
        },
    },
    "context not stated": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
}


def raw(name):
    return (
        {**SMALL, **CASES[name]}
        if name in CASES
        else {
            **SMALL,
            "model_type": "llama",
            "head_dim": 128,
            "max_position_embeddings": 32768,
            **ROPES[name],
        }
    )


def rows():
    g = torch.Generator().manual_seed(0)
    return [torch.randint(64, (length,), generator=g) for length in LENGTHS]


@torch.no_grad()
def filled(model):
    """Weights that depend only on the order of parameter names, so both implementations get the same."""
    g = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        parameter.copy_(
            (torch.rand(parameter.shape, generator=g) - 0.5) * (0.5 if parameter.ndim == 2 else 1)
            + name.endswith("norm.weight")
        )
    return model.requires_grad_(False).eval()


def our_config(name, folder):
    (folder / "config.json").write_text(json.dumps(raw(name)))
    return weights.read_config(folder / "config.json")


def ours(name, folder):
    return filled(Transformer(our_config(name, folder)))


def their_config(name):
    from transformers import AutoConfig

    fields = dict(raw(name))
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def transformers_model(name):
    from transformers import AutoModelForCausalLM

    return filled(AutoModelForCausalLM.from_config(their_config(name), dtype=torch.float32))


def their_greedy(model, row, count):
    return model.generate(
        row[None],
        attention_mask=torch.ones_like(row[None]),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(row) :].tolist()


def their_rope(name):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = their_config(name)
    frequency, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    return {"frequency": frequency.tolist(), "factor": factor}


def their_numbers(name):
    model = transformers_model(name)
    return {
        "logits": [model(row[None]).logits[0, -1].tolist() for row in rows()],
        "greedy": their_greedy(model, rows()[1], 64),
    }


def transformers_reward_model(name):
    from transformers import AutoModelForSequenceClassification

    config = their_config(name)
    config.num_labels, config.pad_token_id = 1, PADDING
    return filled(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))


def their_scores(name, batch=None, left=False):
    """The scores of rows in one batch, padded on the right or on the left."""
    model, batch = transformers_reward_model(name), batch or rows()
    longest = max(map(len, batch))
    tokens_BT = torch.full((len(batch), longest), PADDING)
    mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    for i, row in enumerate(batch):
        place = slice(longest - len(row), None) if left else slice(len(row))
        tokens_BT[i, place], mask_BT[i, place] = row, 1
    position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    return model(tokens_BT, attention_mask=mask_BT, position_ids=position_BT).logits[:, 0].tolist()


def numbers(name, function, key=None):
    return (
        function(name)
        if importlib.util.find_spec("transformers")
        else json.loads(NUMBERS.read_text())[key or name]
    )


def words():
    """A tokenizer whose words name their ids, and whose end token no model here can sample."""
    backend = Backend(models.WordLevel({f"w{i:02d}": i for i in range(64)}, unk_token="w00"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, [10**6])


def text(row):
    return " ".join(f"w{i:02d}" for i in row.tolist())


def close(got, wanted):
    torch.testing.assert_close(got, torch.as_tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_text_match_transformers(name, tmp_path):
    model, wanted = ours(name, tmp_path), numbers(name, their_numbers)
    for row, logits in zip(rows(), wanted["logits"]):
        assert max(map(abs, logits)) > 0.5
        close(model(row[None])[0, -1], logits)
    [[rollout]] = sample(
        model,
        words(),
        [text(rows()[1])],
        1,
        SamplingParams(max_new_tokens=64, temperature=0),
        seed=0,
    )
    assert list(rollout.completion_ids) == wanted["greedy"]


@pytest.mark.parametrize("name", ROPES)
def test_rope_frequencies_of_real_sizes_match_transformers(name, tmp_path):
    frequency, factor = rope_frequency(our_config(name, tmp_path))
    wanted = numbers(name, their_rope)
    torch.testing.assert_close(
        frequency, torch.tensor(wanted["frequency"]), rtol=1.5e-7, atol=0
    )  # the file has 8 digits
    assert factor == pytest.approx(wanted["factor"], rel=1e-12)


@needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_rows_of_several_lengths_match_left_padding(name, tmp_path):
    longest = max(LENGTHS)
    tokens_BT, mask_BT = torch.zeros(2, len(rows()), longest, dtype=torch.long)
    for i, row in enumerate(rows()):
        tokens_BT[i, longest - len(row) :], mask_BT[i, longest - len(row) :] = row, 1
    wanted = transformers_model(name)(
        tokens_BT, attention_mask=mask_BT, position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0)
    ).logits
    model = ours(name, tmp_path)
    batch = collate([([], row.tolist()) for row in rows()])
    hidden_MD = model.hidden(
        batch.tokens_BT.flatten()[batch.token_of_flat_M],
        batch.token_of_flat_M % longest,
        PackedAttention(batch.lengths),
    )
    for i, got in enumerate(model.lm_head(hidden_MD).split(batch.lengths)):
        close(got, wanted[i, longest - len(got) :])


@needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_folders_load_in_both_directions_with_equal_logits(name, tmp_path):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model, end = transformers_model(name), {"eos_token": "w07", "pad_token": "w07"}
    for folder, size in ((tmp_path / "one", "1GB"), (tmp_path / "sharded", "20KB")):
        model.save_pretrained(folder, max_shard_size=size)
        PreTrainedTokenizerFast(
            tokenizer_object=words().backend, **end, chat_template="{{ 'hello' }}"
        ).save_pretrained(folder)
        assert (folder / "model.safetensors.index.json").exists() == (size == "20KB")
        loaded, tokens = checkpoint.load(folder)
        assert tokens.eos_id == 7 and 2 in tokens.stop_ids
        again = tmp_path / f"{folder.name} again"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "SHARD_BYTES", 20_000)
            checkpoint.save(again, loaded, tokens)
        assert len(list(again.glob("model-*.safetensors"))) > 1
        back, info = AutoModelForCausalLM.from_pretrained(
            again, dtype=torch.float32, output_loading_info=True
        )
        assert not any(info.values()), info
        tokenizer = PreTrainedTokenizerFast.from_pretrained(again)
        assert (
            tokenizer(text(rows()[0])).input_ids
            == rows()[0].tolist()
            == tokens.encode(text(rows()[0]))
        )
        assert tokenizer.chat_template == "{{ 'hello' }}" and tokenizer.pad_token == "w07"
        before, after = (json.loads((path / "config.json").read_text()) for path in (folder, again))
        assert before == after
        for row in rows():
            wanted = model(row[None]).logits
            close(loaded(row[None]), wanted)
            close(back(row[None]).logits, wanted)
    # A model that was not loaded from a folder: its config.json is written from its shape alone.
    checkpoint.save(tmp_path / "ours", ours(name, tmp_path), Tokenizer(words().backend, [2]))
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for row in rows():
        close(back(row[None]).logits, model(row[None]).logits)


# -- reward models -------------------------------------------------------------------------------------------------------


def our_reward_model(name, folder):
    return filled(RewardModel(our_config(name, folder)))


def our_scores(model, *segments):
    return row_scores(model, collate(segments)).tolist()


@pytest.mark.parametrize("name", SCORED)
def test_scores_match_transformers(name, tmp_path):
    model, wanted = our_reward_model(name, tmp_path), numbers(name, their_scores, f"{name} scores")
    assert max(wanted) - min(wanted) > 0.1
    segments = [([], row.tolist()) for row in rows()]
    close(torch.tensor(our_scores(model, *segments)), wanted)
    for row, score in zip(segments, wanted):  # unpadded
        close(torch.tensor(our_scores(model, row)), [score])


@needs_transformers
@pytest.mark.parametrize("name", SCORED)
def test_scores_match_padding_on_either_side(name, tmp_path):
    model, prompt = our_reward_model(name, tmp_path), [9, 2, PADDING, 7, 2]
    answers = [[row.tolist()[0], *row.tolist()] for row in rows()]
    ours = torch.tensor(our_scores(model, *((prompt, answer) for answer in answers)))
    batch = [torch.tensor(prompt + answer) for answer in answers]
    close(ours, their_scores(name, batch))
    close(ours, their_scores(name, batch, left=True))
    for row, score in zip(batch, ours):
        close(score[None], their_scores(name, [row]))


@needs_transformers
@pytest.mark.parametrize("name", SCORED)
def test_reward_models_load_in_both_directions_with_equal_scores(name, tmp_path, recwarn):
    from transformers import PreTrainedTokenizerFast

    model, segments = transformers_reward_model(name), [([], row.tolist()) for row in rows()]
    wanted = their_scores(name)
    for folder, size in ((tmp_path / "one", "1GB"), (tmp_path / "sharded", "20KB")):
        model.save_pretrained(folder, max_shard_size=size)
        # Many tokenizers pad with the end token; transformers then scores the one before it.
        PreTrainedTokenizerFast(
            tokenizer_object=words().backend, eos_token="w02", pad_token="w02"
        ).save_pretrained(folder)
        assert (folder / "model.safetensors.index.json").exists() == (size == "20KB")
        loaded, tokens = checkpoint.load(folder, kind=RewardModel)
        close(torch.tensor(our_scores(loaded, *segments)), wanted)
        again = tmp_path / f"{folder.name} again"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "SHARD_BYTES", 20_000)
            checkpoint.save(again, loaded, tokens)
        assert len(list(again.glob("model-*.safetensors"))) > 1
        check_scores(again, text_scores(loaded, tokens))
        before, after = (files.read_json(path / "config.json") for path in (folder, again))
        assert before == after
    # A model that was not loaded from a folder: its config.json is written from its shape alone.
    ours = our_reward_model(name, tmp_path)
    tokenizer = Tokenizer(
        words().backend, [2], 2, {"tokenizer_config.json": tokens.files["tokenizer_config.json"]}
    )
    checkpoint.save(tmp_path / "ours", ours, tokenizer)
    check_scores(tmp_path / "ours", text_scores(ours, tokenizer))
    assert not recwarn.list


def text_scores(model, tokenizer):
    """Our scores of texts that end with the end token, and have it inside."""
    return our_scores(model, *(([], tokenizer.encode(text(row))) for row in ending_rows()))


def ending_rows():
    end = torch.tensor([2])
    return [torch.cat([row[:3], end, row, end]) for row in rows()]


def check_scores(folder, wanted):
    """transformers loads the folder without a complaint, and its tokenizer pads to equal scores."""
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    back, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert back.config.num_labels == 1
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(list(map(text, ending_rows())), padding=True, return_tensors="pt")
        position_BT = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        scores = back(batch.input_ids, batch.attention_mask, position_ids=position_BT).logits[:, 0]
        close(scores.detach(), wanted)


if __name__ == "__main__":
    reference = {
        **{name: their_numbers(name) for name in CASES},
        **{name: their_rope(name) for name in ROPES},
        **{f"{name} scores": their_scores(name) for name in SCORED},
    }
    shorter = json.loads(json.dumps(reference), parse_float=lambda x: float(f"{float(x):.8g}"))
    for name in ROPES:
        shorter[name]["factor"] = reference[name]["factor"]
    NUMBERS.write_text(
        "{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in shorter.items()) + "\n}\n"
    )
