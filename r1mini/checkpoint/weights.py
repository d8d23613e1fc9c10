"""config.json and safetensors in Hugging Face's layout, read into a Transformer and written back.

Tensors are read one at a time, directly to their device and dtype: memory holds the weights and one
tensor of the file. Refused by name: what the model cannot compute (other architectures, mixtures of
experts, quantised weights, sliding windows shorter than the context, other kinds of RoPE), and
pickled weights (.bin, .pt).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from r1mini.checkpoint import eos_token_ids
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra.files import Content, json_text, read_json
from r1mini.model.config import ModelConfig
from r1mini.model.reward_model import RewardModel
from r1mini.model.transformer import Transformer

QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096}
FAMILIES = {  # with transformers' defaults for missing fields
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
}
ROPE = {  # kinds of RoPE scaling, and their required numbers
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
YARN_OPTIONS = (
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "attn_factor",
    "mscale",
    "mscale_all_dim",
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
CLASSIFIER = "ForSequenceClassification"
PRECISIONS = ("F64", "F32", "F16", "BF16")
SHARD_BYTES = 5_000_000_000


# -- config.json -----------------------------------------------------------------------------------


def read_config(path: Path) -> ModelConfig:
    """The model's shape from a Hugging Face config.json. ValueError names what is unsupported."""
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in list(FAMILIES):  # a list: the value may be unhashable
        raise ValueError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    try:
        return model_config(family, {**FAMILIES[family], **raw})
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def model_config(family: str, raw: Mapping[str, Any]) -> ModelConfig:
    sizes = {name: int(raw[name]) for name in SIZES}
    for name, size in sizes.items():  # each layer becomes a module before a weight is read
        if not 1 <= size <= (1000 if name == "num_hidden_layers" else 2**24):
            raise ValueError(f"{name} {size} is not positive, or too large")
    heads = sizes["num_attention_heads"]
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
    refuse_unsupported(family, raw, sizes)
    theta, scaling = rope_config(raw, sizes["max_position_embeddings"])
    return ModelConfig(
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(eps),
        initializer_range=float(raw.get("initializer_range", 0.02)),
        tie_word_embeddings=tied,
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def refuse_unsupported(family: str, raw: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """ValueError for a setting that the model does not compute."""
    window, context = raw.get("sliding_window"), sizes["max_position_embeddings"]
    if family.startswith("qwen"):  # some layers may have a sliding window and others not
        if layer_types := raw.get("layer_types"):
            slides = "sliding_attention" in layer_types
        else:
            slides = raw.get("max_window_layers", 28) < sizes["num_hidden_layers"]
        slides = slides and raw.get("use_sliding_window")
    else:
        slides = family == "mistral"
    unsupported = {
        f"hidden_act {raw.get('hidden_act')}": raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": raw.get("mlp_bias"),
        "attention_bias (of the output projection)": (
            family != "qwen2" and raw.get("attention_bias")
        ),
        "quantization_config": raw.get("quantization_config") is not None,
        f"sliding_window {window} of {context} positions": (
            slides and window is not None and window < context
        ),
    }
    for setting, present in unsupported.items():
        if present:
            raise ValueError(f"{setting} is not supported")


def rope_config(raw: Mapping[str, Any], context: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) from rope_theta and rope_scaling, or transformers 5's rope_parameters."""
    objects = [raw[name] for name in ("rope_scaling", "rope_parameters") if raw.get(name)]
    for rope in objects:
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(f"rope_scaling {rope!r} is not one object of numbers")
    rope = next(iter(objects), {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE:
        raise ValueError(f"rope type {kind} is not supported")
    theta = None
    for settings in (*objects, raw):
        theta = theta or settings.get("rope_theta")
        factor = settings.get("partial_rotary_factor")
        if factor not in (1, None):
            raise ValueError(f"partial_rotary_factor {factor} is not supported")
    theta = float(theta or 10_000.0)
    if not 1 < theta < math.inf:
        raise ValueError(f"rope_theta {theta} is not above 1")
    if kind == "default":
        return theta, None
    numbers = (*ROPE[kind], *YARN_OPTIONS)
    scaling = {name: value for name, value in rope.items() if name in (*numbers, "truncate")}
    if kind != "linear":
        name = "original_max_position_embeddings"
        scaling[name] = raw.get(name) or scaling.get(name) or context
        if kind == "yarn" and scaling.get("factor") is None:
            scaling["factor"] = context / scaling[name]
    for name in numbers:
        value = scaling.get(name)
        if name in YARN_OPTIONS and value is None:
            continue
        if type(value) not in (int, float) or not 1e-6 < value < 1e9:
            raise ValueError(
                f"rope type {kind}: {name} {value!r} is not a positive number, or too large"
            )
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError("rope type llama3: low_freq_factor is not below high_freq_factor")
    return theta, {"rope_type": kind, **scaling}


def config_json(model: Transformer, stop_ids: frozenset[int]) -> dict[str, Any]:
    """The config.json of a model: the one that it was loaded with, if any, with its dtype now."""
    dtype_name = str(model.head.weight.dtype).removeprefix("torch.")
    is_classifier = isinstance(model, RewardModel)
    if model.hf_config:
        config = {
            **model.hf_config,
            **(classifier_fields(model.hf_config) if is_classifier else {}),
            "dtype" if "dtype" in model.hf_config else "torch_dtype": dtype_name,
        }
        for name in ("rope_scaling", "rope_parameters"):
            if (config.get(name) or {}).get("attn_factor"):  # transformers does not read it
                config[name] = {**config[name], "attention_factor": model.rope_factor}
        return config
    fields = dataclasses.asdict(model.config)
    family = "llama"
    if fields.pop("qk_norm"):
        family = "qwen3"
    elif fields["attention_bias"]:
        family = "qwen2"
        del fields["attention_bias"]
    if fields["rope_scaling"] is None:
        del fields["rope_scaling"]
    config = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "hidden_act": "silu",
        **fields,
        "eos_token_id": sorted(stop_ids),
        "torch_dtype": dtype_name,
    }
    return config | (classifier_fields(config) if is_classifier else {})


def architecture(config: Mapping[str, Any]) -> str:
    """The class that config.json names, such as `LlamaForCausalLM`; "" without one."""
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    return ""


def classifier_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a config.json that of a reward model: `…ForSequenceClassification`, one label."""
    name = architecture(config) or f"{config['model_type'].capitalize()}ForCausalLM"
    return {
        "architectures": [re.sub("For.*", CLASSIFIER, name)],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def padding_id(config: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """The padding token of a reward model: transformers scores the last token that is no padding,
    and a text may end with any stop token. Another special token if need be, or else any token."""
    special = [i for i, token in sorted(tokenizer.added.items()) if token.special]
    candidates = [config.get("pad_token_id"), *special, *range(len(tokenizer.stop_ids) + 1)]
    known = [i for i in candidates if type(i) is int and 0 <= i < config["vocab_size"]]
    return next(i for i in known if i not in tokenizer.stop_ids)


def with_padding(files: Mapping[str, Content], token: str | None) -> dict[str, Content]:
    """The tokenizer's files in which this token is the padding."""
    changed = dict(files)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            content = json.loads(files.get(name, b""))
        except ValueError:  # no such file, or one that no one reads
            continue
        if token is not None and isinstance(content, dict):
            changed[name] = json_text(content | {"pad_token": token}).encode()
    return changed


# -- safetensors -----------------------------------------------------------------------------------


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def weight_files(folder: Path) -> tuple[Path, list[Path]]:
    """The file that errors name, and the files with tensors: one, or the shards of an index."""
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if path.is_file():
        return path, [path]
    if path.exists() or not index.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        hint = f" ({pickles[0]} is not read: pickle)" if pickles else ""
        raise ValueError(f"{path}: no such file{hint}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is missing")
    for name in names.values():  # no path separator of any system: a shard lies in this folder
        if not re.fullmatch(r"[^/\\:\0]*\.safetensors", str(name)):
            raise ValueError(f"{index}: {name!r} is not the name of a shard in this folder")
    return index, [folder / name for name in sorted(set(names.values()))]


def load_model(
    folder: Path,
    config: ModelConfig,
    device: str | torch.device,
    dtype: torch.dtype,
    kind: type[Transformer] = Transformer,
    vector_dtype: torch.dtype | None = None,
) -> Transformer:
    """The model with a folder's weights: a language model, or a RewardModel. Checks names, shapes
    and dtypes before it reads tensors. `vector_dtype`: of norms and biases, if it is another one.

    ValueError naming the file, and each tensor that is missing, unknown or misshaped.
    """
    with torch.device("meta"):  # allocates nothing
        model = kind(config)
    config, model.hf_config = model.config, read_json(folder / "config.json")
    check_kind(folder / "config.json", model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied one once
    listing, files = weight_files(folder)
    file_of = locate_tensors(listing, files, shapes, config.tie_word_embeddings)

    def read(name: str) -> torch.Tensor:
        # Opens the file for each tensor, because the pages read stay in memory while it is mapped;
        # always copies, because a mapped weight would change with the file.
        with open_safetensors(file_of[name]) as file:
            tensor = file.get_tensor(name)
            if not is_finite(tensor):
                raise ValueError(f"{file_of[name]}: {name} contains NaN or infinity")
            own = dtype if tensor.ndim > 1 else vector_dtype or dtype
            return tensor.to(device, own, copy=True)

    model.load_state_dict({name: read(name) for name in shapes}, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
        if "lm_head.weight" in file_of and not read("lm_head.weight").equal(model.lm_head.weight):
            raise ValueError(
                f"{listing}: lm_head.weight is not model.embed_tokens.weight, "
                "but config.json ties them"
            )
    return model.to(device)  # the buffer, too


def check_kind(path: Path, model: Transformer) -> None:
    """ValueError if a language model is loaded as a reward model, the other way round, or if a
    reward model has several labels."""
    name, is_classifier = architecture(model.hf_config), isinstance(model, RewardModel)
    if name and name.endswith(CLASSIFIER) != is_classifier:
        expected, use = "a language model (…ForCausalLM)", "use it in --reward NAME=FOLDER"
        if is_classifier:
            expected = f"a reward model (…{CLASSIFIER})"
            use = "train one with python -m r1mini.reward_model"
        raise ValueError(f"{path}: {name} is not {expected}; {use}")
    labels = model.hf_config.get("id2label")
    if is_classifier and isinstance(labels, dict) and len(labels) != 1:
        raise ValueError(f"{path}: {len(labels)} labels (id2label); a reward model has one")


def locate_tensors(
    listing: Path, files: list[Path], shapes: Mapping[str, tuple[int, ...]], tied: bool
) -> dict[str, Path]:
    """The file of each tensor. ValueError unless they are the tensors of these names and shapes."""
    file_of, problems = {}, []
    for path in files:
        with open_safetensors(path) as file:
            for name in file.keys():
                view = file.get_slice(name)
                shape, precision = tuple(view.get_shape()), view.get_dtype()
                if name in file_of:
                    problems.append(f"{name} is in {file_of[name].name} and in {path.name}")
                elif name not in shapes:
                    # Old Llamas store a buffer; some files store a tied weight twice.
                    tied_copy = tied and name == "lm_head.weight"
                    if not tied_copy and not name.endswith("rotary_emb.inv_freq"):
                        problems.append(f"{name[:100]!r} is unknown")
                elif shape != shapes[name]:
                    problems.append(f"{name} has shape {shape}, not {shapes[name]}")
                elif precision not in PRECISIONS:
                    problems.append(f"{name} is stored as {precision}, not as floats")
                file_of[name] = path
    problems += [f"{name} is missing" for name in sorted(shapes.keys() - file_of.keys())]
    if len(problems) > 8:
        problems[8:] = [f"and {len(problems) - 8} more"]
    if problems:
        raise ValueError(f"{listing}: " + "; ".join(problems))
    return file_of


def is_finite(tensor: torch.Tensor) -> bool:
    """Checks the sum: one pass, and no extra memory."""
    return math.isfinite(tensor.sum(dtype=torch.float32))


def model_files(model: Transformer, tokenizer: Tokenizer) -> dict[str, Content]:
    """The files of a model folder by name; config.json is the last."""
    files = {**shards(model), **tokenizer_files(tokenizer)}
    config = config_json(model, tokenizer.stop_ids)
    if isinstance(model, RewardModel):
        config["pad_token_id"] = padding_id(config, tokenizer)
        files = with_padding(files, tokenizer.backend.id_to_token(config["pad_token_id"]))
    files["config.json"] = json_text(config).encode()
    return files


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Content]:
    files = dict(tokenizer.files)
    files["tokenizer.json"] = tokenizer.backend.to_str(pretty=True).encode()
    generation = json.loads(files.get("generation_config.json", "{}"))
    if set(eos_token_ids(generation)) != tokenizer.stop_ids:
        generation["eos_token_id"] = sorted(tokenizer.stop_ids)
        files["generation_config.json"] = json_text(generation).encode()
    return files


def shards(model: Transformer) -> dict[str, Content]:
    """One file, or shards of at most SHARD_BYTES (but at least one tensor) and their index."""
    parts, size, total = [{}], 0, 0
    for name, parameter in model.named_parameters():  # a tied one once
        if parts[-1] and size + parameter.nbytes > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = parameter.detach()
        size += parameter.nbytes
        total += parameter.nbytes
    if len(parts) == 1:
        return {"model.safetensors": partial(write_tensors, parts[0])}
    files, weight_map = {}, {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        files[file] = partial(write_tensors, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json_text(index).encode()}


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. ValueError for a tensor that `load_model` would refuse."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{name} contains NaN or infinity, so nothing is saved")
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(mode)  # safetensors 0.8 replaces the file by one that only its owner may read
