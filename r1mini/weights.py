"""config.json and safetensors of Hugging Face's layout, into a Transformer and out of it again.

Tensors are read one at a time, straight to the device and dtype they are wanted in: in memory are the weights, and one
tensor of the file. Refused by name: what the model cannot compute (other architectures, mixtures of experts, quantised
weights, sliding windows shorter than the context, other kinds of RoPE), and weights as pickle (.bin, .pt).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from r1mini.model import ModelConfig, Transformer

LARGEST = 2**26  # bytes of a file that is read as a whole: a tokenizer of 260,000 tokens takes half of it
FAMILIES: dict[str, dict[str, Any]] = {  # and what transformers takes for a field that config.json leaves out
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
}
ROPE = {  # kinds, and the numbers that they must have
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", "attn_factor", "mscale", "mscale_all_dim")  # yarn's
PRECISIONS = ("F64", "F32", "F16", "BF16")


def read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes are too many (at most {LARGEST:,})")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    return json_object(read_file(path), path)


def json_object(content: bytes, where: Any) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
        if b"\\ud" in content.lower():  # perhaps half of a surrogate pair, which nothing can encode
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # also of integers too long, and of values too deep
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object")
    return value


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# -- config.json -------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> ModelConfig:
    """The model's shape from a Hugging Face config.json; what is not supported is refused by name."""
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in list(FAMILIES):  # not hashed: it may be anything
        raise ValueError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    try:
        return model_config(family, {**FAMILIES[family], **raw})
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def model_config(family: str, raw: Mapping[str, Any]) -> ModelConfig:
    sizes = {name: int(raw[name]) for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                               "intermediate_size", "max_position_embeddings")}
    for name, size in sizes.items():  # each layer becomes a module before a weight is read
        if not 1 <= size <= (1000 if name == "num_hidden_layers" else 2**24):
            raise ValueError(f"{name} {size} is not positive, or too large")
    heads, layers, context = sizes["num_attention_heads"], sizes["num_hidden_layers"], sizes["max_position_embeddings"]
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"num_key_value_heads {kv_heads} does not divide {heads} heads")
    head_dim = int(raw.get("head_dim") or sizes["hidden_size"] // heads)
    if head_dim % 2 or not 2 <= head_dim <= 2**16:
        raise ValueError(f"head_dim {head_dim} is not even and positive, or too large")
    eps, tied = raw.get("rms_norm_eps", 1e-6), raw.get("tie_word_embeddings", False)
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        raise ValueError(f"rms_norm_eps {eps!r} is not a number from 0 to 1")
    if type(tied) is not bool:
        raise ValueError(f"tie_word_embeddings {tied!r} is not true or false")

    window = raw.get("sliding_window") if family == "mistral" or raw.get("use_sliding_window") else None
    if family.startswith("qwen"):  # some layers may slide and others not
        slides = "sliding_attention" in (raw.get("layer_types") or ["sliding_attention"] *
                                         (raw.get("max_window_layers", 28) < layers))
    else:
        slides = family == "mistral"
    refused = {
        f"hidden_act {raw.get('hidden_act')}": raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(raw.get("mlp_bias")),
        "attention_bias (of the output projection)": family != "qwen2" and bool(raw.get("attention_bias")),
        "quantization_config": raw.get("quantization_config") is not None,
        f"sliding_window {window} of {context} positions": slides and window is not None and window < context,
    }
    for what, present in refused.items():
        if present:
            raise ValueError(f"{what} is not supported")
    theta, scaling = rope(raw, context)
    return ModelConfig(
        **sizes, num_key_value_heads=kv_heads, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling,
        rms_norm_eps=float(eps), initializer_range=float(raw.get("initializer_range", 0.02)),
        tie_word_embeddings=tied,
        attention_bias=family == "qwen2", qk_norm=family == "qwen3")


def rope(raw: Mapping[str, Any], context: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) of either spelling: rope_theta and rope_scaling, or rope_parameters with both (transformers 5)."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ValueError(f"rope_scaling {given!r} is not one object of numbers")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE:
        raise ValueError(f"rope type {kind} is not supported")
    theta = float(given.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    if not 1 < theta < math.inf:
        raise ValueError(f"rope_theta {theta} is not above 1")
    for settings in (given, raw):
        if settings.get("partial_rotary_factor", 1) not in (1, None):
            raise ValueError(f"partial_rotary_factor {settings['partial_rotary_factor']} is not supported")
    if kind == "default":
        return theta, None
    scaling = {name: value for name, value in given.items() if name in (*ROPE[kind], *OPTIONAL, "truncate")}
    if kind != "linear":
        original = raw.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings") or context
        scaling["original_max_position_embeddings"] = original
        if kind == "yarn" and scaling.get("factor") is None:
            scaling["factor"] = context / original
    for name in (*ROPE[kind], *(name for name in OPTIONAL if scaling.get(name) is not None)):
        value = scaling.get(name)
        if type(value) not in (int, float) or not 1e-6 < value < 1e9:
            raise ValueError(f"rope type {kind}: {name} {value!r} is not a positive number, or too large")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError("rope type llama3: low_freq_factor is not below high_freq_factor")
    return theta, {"rope_type": kind, **scaling}


def config_json(model: Transformer, stop_ids: frozenset[int], dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a model: that of the folder it came from, with the dtype it is saved in."""
    kept = str(dtype).removeprefix("torch.")
    if model.source:
        found = {**model.source, "dtype" if "dtype" in model.source else "torch_dtype": kept}
        for name in ("rope_scaling", "rope_parameters"):
            if (found.get(name) or {}).get("attn_factor"):  # which transformers does not read
                found[name] = {**found[name], "attention_factor": model.rope_factor}
        return found
    fields = dataclasses.asdict(model.config)
    name = "qwen3" if fields.pop("qk_norm") else "qwen2" if model.config.attention_bias else "llama"
    for left_out in ["attention_bias"] * (name == "qwen2") + ["rope_scaling"] * (model.config.rope_scaling is None):
        del fields[left_out]
    return {
        "architectures": [f"{name.capitalize()}ForCausalLM"],
        "model_type": name,
        "hidden_act": "silu",
        **fields,
        "eos_token_id": sorted(stop_ids),
        "torch_dtype": kept,
    }


# -- safetensors -------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def weight_files(folder: Path) -> tuple[Path, list[Path]]:
    """What to name in a complaint, and the files with tensors: one, or the shards of an index."""
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if path.exists() or not index.is_file():
        if not path.is_file():
            pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
            raise ValueError(f"{path}: no such file" + (f" ({pickles[0]} is not read: pickle)" if pickles else ""))
        return path, [path]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is missing")
    for name in names.values():  # no separator of any system, no "..": a shard lies in this folder
        if not isinstance(name, str) or not name.endswith(".safetensors") or set("/\\:\0") & set(name):
            raise ValueError(f"{index}: {name!r} is not the name of a shard in this folder")
    return index, [folder / name for name in sorted(set(names.values()))]


def load_weights(folder: Path, model: Transformer, device: str | torch.device, dtype: torch.dtype) -> None:
    """Fill a model that was made on the meta device. Names, shapes and dtypes are compared before a tensor is read."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # a tied one once
    named, paths = weight_files(folder)
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        with opened(path) as file:
            for name in file.keys():
                about = file.get_slice(name)
                shape, kind = tuple(about.get_shape()), about.get_dtype()
                if name in found:
                    problems.append(f"{name} is in {found[name].name} and in {path.name}")
                elif name in wanted and shape != wanted[name]:
                    problems.append(f"{name} has shape {shape}, not {wanted[name]}")
                elif name in wanted and kind not in PRECISIONS:
                    problems.append(f"{name} is stored as {kind}, not as floats")
                elif name not in wanted and not name.endswith("rotary_emb.inv_freq"):  # old Llamas store what they compute
                    if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
                        problems.append(f"{name[:100]!r} is unknown")
                found[name] = path
    problems += [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    if problems:
        raise ValueError(f"{named}: " + "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" * (len(problems) > 8)))

    def read(name: str) -> torch.Tensor:
        # Opened for each tensor: the pages that were read stay in memory for as long as the file is mapped. Copied
        # always: a mapped weight would change with the file.
        with opened(found[name]) as file:
            tensor = file.get_tensor(name)
            if not math.isfinite(tensor.sum(dtype=torch.float32)):  # one pass, and no memory
                raise ValueError(f"{found[name]}: {name} holds NaN or infinity")
            return tensor.to(device, dtype, copy=True)

    model.load_state_dict({name: read(name) for name in wanted}, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
        if "lm_head.weight" in found and not read("lm_head.weight").equal(model.lm_head.weight):
            raise ValueError(f"{named}: lm_head.weight is not model.embed_tokens.weight, but config.json ties them")
    model.to(device)  # what is left: the buffer


def shards(model: Transformer, dtype: torch.dtype | None, shard_bytes: int) -> dict[str, bytes | Callable[[Path], None]]:
    """Files to write by name: one, or shards of at most `shard_bytes` (but one tensor at least) and their index."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for name, parameter in model.named_parameters():  # a tied one once
        count = parameter.numel() * (dtype or parameter.dtype).itemsize
        if parts[-1] and size + count > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = parameter.detach()
        size, total = size + count, total + count
    if len(parts) == 1:
        return {"model.safetensors": partial(write_shard, parts[0], dtype)}
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    weight_map = {name: file for file, part in zip(names, parts) for name in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {**{file: partial(write_shard, part, dtype) for file, part in zip(names, parts)},
            "model.safetensors.index.json": json_text(index).encode()}


def write_shard(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, path: Path) -> None:
    written = {name: t.to("cpu", dtype or t.dtype).contiguous() for name, t in tensors.items()}
    for name, tensor in written.items():
        if not math.isfinite(tensor.sum(dtype=torch.float32)):  # as it is read
            raise ValueError(f"{name} holds NaN or infinity, so nothing is saved")
    path.touch()
    mode = path.stat().st_mode
    save_file(written, path, {"format": "pt"})
    path.chmod(mode)  # safetensors 0.8 puts a file in its place that only its owner may read
