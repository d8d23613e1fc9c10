"""LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.

An adapter folder also has the tokenizer's files, so that it loads with nothing but its base model,
and base_model.json: the base's name and a hash of its weights. PEFT reads the folder as its own.
rsLoRA, `rank_pattern` and `alpha_pattern` are read. Refused by name: whatever else would change
what the model computes, such as DoRA, biases, `modules_to_save`, adapters on embeddings or head,
and initialisations that change the base (PiSSA, OLoRA).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from r1mini.checkpoint import ADAPTER_CONFIG, is_adapter, resolve
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.checkpoint.weights import (
    is_finite,
    locate_tensors,
    model_files,
    open_safetensors,
    tokenizer_files,
    weight_files,
    write_tensors,
)
from r1mini.infra.files import Content, json_text, read_json
from r1mini.model import lora
from r1mini.model.config import LINEAR, ModelConfig
from r1mini.model.transformer import Transformer

ADAPTER_WEIGHTS, BASE_MODEL = "adapter_model.safetensors", "base_model.json"
PREFIX = "base_model.model."  # before the names of the base's modules
READ = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "use_rslora")
PATTERNS = ("rank_pattern", "alpha_pattern")
# Without effect on a trained adapter's output. --lora-* flags decide how one is trained.
WITHOUT_EFFECT = ("peft_version", "auto_mapping", "inference_mode", "lora_dropout", "eva_config")
NEUTRAL = {  # values that change nothing, besides null, false and empty ones
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),  # these leave the base as it is
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
    "revision": ("main",),
    "runtime_config": ({"ephemeral_gpu_offload": False},),
}
REASONS = {
    "use_dora": "DoRA is not supported",
    "bias": "trained biases are not supported",
    "modules_to_save": "fully trained modules beside the adapters are not supported",
    "init_lora_weights": "its base may not be the one that it names: some initialisations, such as "
    "PiSSA and OLoRA, change the base's weights",
    "task_type": "only CAUSAL_LM is supported",
}


# -- adapter_config.json ---------------------------------------------------------------------------


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder. ValueError names a key that is not supported."""
    path = folder / ADAPTER_CONFIG
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {raw.get('peft_type')!r} is not LORA")
    for key, value in raw.items():
        if key in (*READ, *PATTERNS, *WITHOUT_EFFECT) or not value:
            continue
        if not any(value is x or (type(value) is type(x) and value == x) for x in neutral(key)):
            reason = REASONS.get(key, "this key is not supported")
            raise ValueError(f"{path}: {key} {json.dumps(value)[:80]}: {reason}")
    return raw


def neutral(key: str) -> Sequence[Any]:
    return NEUTRAL.get(key, ())


def read_plan(folder: Path, config: ModelConfig) -> lora.Plan:
    """Rank and scale of each adapter of a folder, from its adapter_config.json alone."""
    raw, path = read_adapter_config(folder), folder / ADAPTER_CONFIG
    try:
        plan = dict(planned(raw, config))
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"{path}: {error}") from None
    if not plan:
        raise ValueError(
            f"{path}: target_modules {raw.get('target_modules')!r:.80} names no linear layer of "
            f"the base model ({', '.join(LINEAR)})"
        )
    return plan


def planned(raw: Mapping[str, Any], config: ModelConfig) -> Iterator[tuple[str, tuple[int, float]]]:
    targets = raw.get("target_modules")
    for name in ("lm_head", "model.embed_tokens"):
        if targets != "all-linear" and matches(targets, name):
            raise ValueError(
                f"target_modules: an adapter on {name} is not supported: where head and embeddings "
                "share a weight, it would change both"
            )
    ranks, alphas = (pattern_table(raw, key) for key in PATTERNS)
    for name in lora.linear_names(config.num_hidden_layers):
        if targets != "all-linear" and not matches(targets, name):
            continue
        rank, alpha = lookup(ranks, name, raw.get("r")), lookup(alphas, name, raw.get("lora_alpha"))
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank {rank!r} of {name} is not a positive integer")
        if type(alpha) not in (int, float) or not math.isfinite(alpha) or not alpha:
            # With 0, nothing would be learned, and everything would look alive.
            raise ValueError(f"alpha {alpha!r} of {name} is not a number other than 0")
        yield name, (rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank))


def matches(targets: Any, name: str) -> bool:
    """Whether target_modules, a regular expression or a list of (ends of) names, has this name."""
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, name))
    if not isinstance(targets, list) or not all(isinstance(x, str) for x in targets):
        raise ValueError(f"target_modules {targets!r:.80} is not a list of names")
    return any(name == target or name.endswith(f".{target}") for target in targets)


def pattern_table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{key} {table!r:.80} is not an object")
    return table


def lookup(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def new_config(base: str, rank: int, alpha: float, targets: Sequence[str]) -> dict[str, Any]:
    """The adapter_config.json of new adapters, with the same rank everywhere."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "bias": "none",
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "init_lora_weights": True,
        "fan_in_fan_out": False,
    }


def planned_adapters(cfg: Any, config: ModelConfig) -> lora.Plan:
    """The adapters that a run will train on a model of this shape: new ones of `--lora-rank`, or
    those of the adapter folder `--model`; empty for full fine-tuning."""
    if rank := getattr(cfg, "lora_rank", 0):
        return dict(planned(new_config("", rank, cfg.lora_alpha, cfg.lora_targets), config))
    name = getattr(cfg, "model", "new")
    return read_plan(resolve(name), config) if name != "new" and is_adapter(name) else {}


# -- the base --------------------------------------------------------------------------------------


def weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's tensors with their names, whatever files they are in."""
    _, files = weight_files(folder)
    file_of = {}
    for path in files:
        with open_safetensors(path) as file:
            file_of |= dict.fromkeys(file.keys(), path)
    sha256 = hashlib.sha256()
    for name in sorted(file_of):
        with open_safetensors(file_of[name]) as file:
            tensor = file.get_tensor(name)
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def lasting_name(base: str) -> str:
    """A folder's absolute path, because the next run may start elsewhere; or a name as it is."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def base_record(name: str, folder: Path) -> dict[str, str]:
    """What base_model.json says of a base: its name and the hash of its weights."""
    return {"name_or_path": name, "sha256": weights_hash(folder)}


def is_trained_on(folder: Path, base: Mapping[str, str]) -> bool:
    """Whether the folder's adapter was trained on these weights, as far as base_model.json says."""
    path = folder / BASE_MODEL
    return not path.is_file() or read_json(path).get("sha256") == base["sha256"]


def check_base(folder: Path, base: Mapping[str, str]) -> None:
    """ValueError if the folder's adapter was trained on a base with other weights. Adapters from
    elsewhere have no base_model.json, and are not checked."""
    if not is_trained_on(folder, base):
        raise ValueError(
            f"{folder / BASE_MODEL}: the adapter was trained on other weights than those of its "
            f"base {base['name_or_path']} now: name the right model with --base, or delete this "
            "file to use the adapter all the same"
        )


def check_state(folder: Path, model: Transformer) -> None:
    """ValueError if a saved state's adapters do not fit the model that is to resume from it: its
    base has other weights now, or its `--model` other adapters."""
    advice = "since this state was saved: restore it, or choose another --out"
    if not is_trained_on(folder, model.adapter_files[BASE_MODEL]):
        raise ValueError(
            f"{folder / BASE_MODEL}: the weights of the base model have changed {advice}"
        )
    if read_plan(folder, model.config) != lora.plan_of(model):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: the adapter at --model has another rank, alpha or other "
            f"targets {advice}"
        )


# -- load and save ---------------------------------------------------------------------------------


def load_adapter(folder: Path, model: Transformer, base: str, base_folder: Path) -> None:
    """Attaches a folder's adapters to their base model."""
    base = lasting_name(base)
    raw, record = read_adapter_config(folder), base_record(base, base_folder)
    check_base(folder, record)
    lora.attach(model, read_plan(folder, model.config))
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(f"{path}: no such file (adapter_model.bin is not read: pickle)")
    own = {peft_name(name): x for name, x in lora.own_parameters(model).items()}
    shapes = {name: tuple(x.shape) for name, x in own.items()}
    locate_tensors(path, [path], shapes, tied=False)
    with open_safetensors(path) as file, torch.no_grad():
        for name, parameter in own.items():
            tensor = file.get_tensor(name)
            if not is_finite(tensor):
                raise ValueError(f"{path}: {name} contains NaN or infinity")
            parameter.copy_(tensor)
    set_files(model, {**raw, "base_model_name_or_path": base}, record)


def add_adapter(
    model: Transformer, base: str, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> None:
    """Attaches new adapters to a model that was loaded from `base`: they add nothing yet."""
    folder, name = resolve(base), lasting_name(base)
    raw = new_config(name, rank, alpha, targets)
    lora.attach(model, dict(planned(raw, model.config)))
    lora.init_adapters(model, seed)
    set_files(model, raw, base_record(name, folder))


def set_files(model: Transformer, raw: Mapping[str, Any], record: Mapping[str, str]) -> None:
    model.adapter_files = {BASE_MODEL: dict(record), ADAPTER_CONFIG: dict(raw)}


def peft_name(name: str) -> str:
    """
    >>> peft_name("model.layers.0.mlp.up_proj.lora_A")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    return f"{PREFIX}{name}.weight"


def own_name(peft_name: str) -> str:
    """
    >>> own_name("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    'model.layers.0.mlp.up_proj.lora_A'
    """
    return peft_name.removeprefix(PREFIX).removesuffix(".weight")


def saved_files(model: Transformer, tokenizer: Tokenizer) -> dict[str, Content]:
    """The files of a model folder, or of an adapter folder if the model has adapters; the one that
    makes it such a folder is the last."""
    if not lora.adapters(model):
        return model_files(model, tokenizer)
    own = {peft_name(name): x.detach() for name, x in lora.own_parameters(model).items()}
    files = {ADAPTER_WEIGHTS: partial(write_tensors, own), **tokenizer_files(tokenizer)}
    return files | {name: json_text(x).encode() for name, x in model.adapter_files.items()}
