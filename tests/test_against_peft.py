"""LoRA against PEFT: logits of loaded adapters, folders in both directions, gradients, merged folders.

Skipped without peft and transformers, which `make test` does without:

    python -m venv reference && reference/bin/pip install -r tests/requirements-reference.txt
    reference/bin/python -m pytest tests/test_against_peft.py
"""

import copy
import importlib.util
import json

import pytest
import torch
from conftest import CONFIGS, random_model, some_tokens

from r1mini import checkpoint
from r1mini.checkpoint.adapter import add_adapter
from r1mini.model import lora
from r1mini.model.config import LINEAR

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("peft") and importlib.util.find_spec("transformers")),
    reason="needs peft and transformers",
)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
KINDS = {
    "all linear layers": {},
    "rank-stabilised": {"use_rslora": True, "r": 4},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 40, "o_proj": 3},
    },
    "regular expression": {"target_modules": r".*\.(q|v)_proj"},
    "some layers": {"target_modules": ["o_proj", "layers.1.mlp.down_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def base(request, tokens, tmp_path):
    changes = {"vocab_size": tokens.vocab_size, "initializer_range": 0.1}
    checkpoint.save(tmp_path / "base", random_model(**CONFIGS[request.param], **changes), tokens)
    return tmp_path / "base"


def hugging_face(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)


def peft_model(base, **options):
    """PEFT's model with adapters that are not zero."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 3, "lora_alpha": 6, "target_modules": list(LINEAR)} | options
    model = get_peft_model(hugging_face(base), LoraConfig(task_type="CAUSAL_LM", **options))
    return randomize(model)


@torch.no_grad()
def randomize(model):
    generator = torch.Generator().manual_seed(3)
    for name, x in sorted(model.named_parameters()):
        if "lora_B" in name:
            x.normal_(0, 0.1, generator=generator)
    return model


def ids():
    return some_tokens(2, 12, vocab=400)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_folder_gives_pefts_logits(base, tmp_path, kind):
    theirs = peft_model(base, **KINDS[kind])
    theirs.save_pretrained(tmp_path / "adapter")
    ours, _ = checkpoint.load(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()), theirs(ids()).logits, **CLOSE)
        assert not ours(ids()).allclose(checkpoint.load(base)[0](ids()), atol=1e-2)


def test_our_folder_gives_our_logits_in_peft(base, tmp_path, tokens):
    from peft import PeftModel

    ours = checkpoint.load(base)[0]
    add_adapter(ours, str(base), 3, 5.0, ("q_proj", "o_proj", "up_proj"), seed=0)
    checkpoint.save(tmp_path / "adapter", randomize(ours), tokens)
    theirs = PeftModel.from_pretrained(hugging_face(base), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()), theirs(ids()).logits, **CLOSE)


def test_peft_reads_what_we_make_of_its_folder(base, tmp_path):
    from peft import PeftModel

    theirs = peft_model(base, **KINDS["patterns"])
    theirs.save_pretrained(tmp_path / "adapter")
    checkpoint.save(tmp_path / "again", *checkpoint.load(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(hugging_face(base), tmp_path / "again")
    with torch.no_grad():
        assert again(ids()).logits.equal(theirs(ids()).logits)


def test_gradients_of_one_step_are_pefts(base, tmp_path):
    theirs = peft_model(base)
    theirs.save_pretrained(tmp_path / "adapter")
    ours, _ = checkpoint.load(tmp_path / "adapter")
    for logits_BTV in (ours(ids()), theirs(ids()).logits):
        logp_BTV = logits_BTV.log_softmax(-1)
        logp_BTV[:, :-1].gather(-1, ids()[:, 1:, None]).mean().backward()
    expected = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): x.grad
        for name, x in theirs.named_parameters()
        if x.requires_grad
    }
    own = lora.own_parameters(ours)
    assert own.keys() == expected.keys()
    for name, x in own.items():
        torch.testing.assert_close(x.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_start_has_pefts_distribution(base):
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(
        hugging_face(base), LoraConfig(r=64, target_modules=list(LINEAR), task_type="CAUSAL_LM")
    )
    ours = checkpoint.load(base)[0]
    add_adapter(ours, str(base), 64, 8.0, LINEAR, seed=0)
    for name, x in lora.adapters(ours).items():
        other = theirs.get_parameter(f"base_model.model.{name}.lora_A.default.weight")
        assert float(x.lora_A.std()) == pytest.approx(float(other.detach().std()), rel=0.05)
        assert float(x.lora_A.abs().max()) == pytest.approx(float(other.abs().max()), rel=0.02)


def test_merged_folder_loads_in_transformers(base, tmp_path, tokens):
    ours = checkpoint.load(base)[0]
    add_adapter(ours, str(base), 3, 5.0, LINEAR, seed=0)
    checkpoint.save(tmp_path / "adapter", randomize(ours), tokens)
    checkpoint.save_merged(tmp_path / "merged", tmp_path / "adapter")
    with torch.no_grad():
        theirs = hugging_face(tmp_path / "merged")(ids()).logits
        torch.testing.assert_close(theirs, ours(ids()), **CLOSE)


def test_merged_weights_are_pefts(base, tmp_path):
    theirs = peft_model(base)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = lora.merged(checkpoint.load(tmp_path / "adapter")[0])
    merged = copy.deepcopy(theirs).merge_and_unload().state_dict()
    for name, x in ours.named_parameters():
        torch.testing.assert_close(x, merged[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora true: DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_what_is_not_supported_is_refused_as_peft_writes_it(base, tmp_path, options, message):
    peft_model(base, **options).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "LORA"
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        checkpoint.load(tmp_path / "adapter")
