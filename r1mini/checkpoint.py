"""Model folders in Hugging Face's layout, and the state of an unfinished run beside them.

A model folder holds config.json, generation_config.json, model.safetensors and tokenizer.json. The embedded base
models are such folders and are loaded as any other. Left out: sharded weights, quantised weights, chat templates.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from tokenizers import Tokenizer as Backend

from r1mini.model import ModelConfig, Transformer
from r1mini.tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("base", "student-base")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def resolve(name: str | Path) -> Path:
    """A folder as given, or an embedded model by its name."""
    return ASSETS / name if str(name) in EMBEDDED and not Path(name).exists() else Path(name)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files so that each is whole at any moment, the old one or the new one; if one of them cannot be written,
    all stay as they are. The last one given appears last."""
    temporary = {name: folder / f"{name}.tmp" for name in files}
    try:
        for name, content in files.items():
            temporary[name].write_bytes(content)
    except OSError as error:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise ValueError(f"{folder / name}: cannot be written ({error.strerror})") from None
    for name, path in temporary.items():
        os.replace(path, folder / name)


def replace_text(path: Path, text: str) -> None:
    replace(path.parent, {path.name: text.encode()})


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json_text(value))


def read_config(path: Path) -> ModelConfig:
    """The model's shape from a Hugging Face config.json; what is not supported is refused by name."""
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_scaling {rope!r} is not an object")
    refused = {
        "rope type " + str(rope.get("rope_type", rope.get("type"))): rope.get("rope_type", rope.get("type", "default"))
        != "default",
        "hidden_act " + str(raw.get("hidden_act")): raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(raw.get("mlp_bias")),
        "attention_bias (of the output projection)": family != "qwen2" and bool(raw.get("attention_bias")),
        "quantization_config": "quantization_config" in raw,
        "use_sliding_window": bool(raw.get("use_sliding_window"))
        or (family == "mistral" and raw.get("sliding_window") is not None),
    }
    for what, present in refused.items():
        if present:
            raise ValueError(f"{path}: {what} is not supported")
    try:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if int(raw[name]) < 1:
                raise ValueError(f"{name} {raw[name]} is not positive")
        heads = int(raw["num_attention_heads"])
        if heads % int(raw.get("num_key_value_heads") or heads):
            raise ValueError(f"num_key_value_heads {raw['num_key_value_heads']} does not divide {heads} heads")
        return ModelConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            intermediate_size=int(raw["intermediate_size"]),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            initializer_range=float(raw.get("initializer_range", 0.02)),
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def family(config: ModelConfig) -> str:
    return "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"


def config_json(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    name = family(config)
    fields = dataclasses.asdict(config)
    del fields["qk_norm"]
    if name == "qwen2":
        del fields["attention_bias"]
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[name]],
        "model_type": name,
        "hidden_act": "silu",
        **fields,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def load(folder: str | Path, device: str | torch.device = "cpu",
         dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """(model, tokenizer) of a Hugging Face folder or an embedded model ("base", "student-base").

    Raises ValueError naming the file, and what is missing, extra or misshaped.
    """
    folder = resolve(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder (embedded models: {', '.join(EMBEDDED)})")
    config = read_config(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config)
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"{name} is unknown" for name in sorted(tensors.keys() - wanted.keys())]
    problems += [f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
                 for name, shape in wanted.items() if name in tensors and tuple(tensors[name].shape) != shape]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" * (len(problems) > 5)))
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{folder / 'tokenizer.json'}: {tokenizer.vocab_size} tokens, but the model has embeddings for "
                         f"{config.vocab_size}")
    model = Transformer(config).to(device=device, dtype=dtype)
    model.load_state_dict(tensors, strict=False)
    return model, tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    folder = resolve(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path}: not a tokenizer ({error})") from None
    stop: list[int] = []
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            given = read_json(folder / name).get("eos_token_id")
            given = given if isinstance(given, list) else [] if given is None else [given]
            if not all(type(i) is int and i >= 0 for i in given):
                raise ValueError(f"{folder / name}: eos_token_id {given!r} is not a token id")
            stop += given
    return Tokenizer(backend, stop)


def save(folder: str | Path, model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
    """Write a model folder; config.json comes last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to(dtype or t.dtype).contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    kind = next(iter(tensors.values())).dtype
    replace(folder, {
        "model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "tokenizer.json": tokenizer.backend.to_str(pretty=True).encode(),
        "generation_config.json": json_text({"eos_token_id": sorted(tokenizer.stop_ids)}).encode(),
        "config.json": json_text(config_json(model.config, tokenizer, kind)).encode(),
    })


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished run (nested dicts of tensors, numbers and strings) as one file, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(dict(state), content)
    replace(folder, {"resume.pt": content.getvalue()})


def load_state(folder: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None. Tensors and plain values only: nothing in the file is ever executed."""
    path = folder / "resume.pt"
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: damaged ({type(error).__name__}); delete it to start this run again") from None


def prepare_folder(out: Path) -> None:
    """Make a folder that can be written to, or say which `--out` cannot."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None


def has_finished(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run with this configuration has finished in `out`. Another configuration's run is refused; what only
    concerns the display may differ."""
    path = out / "run.json"
    if not path.is_file():
        return False
    record, config = read_json(path), json.loads(json.dumps(config))
    before = record.get("config", {})
    for key in sorted((config.keys() | before.keys()) - {"out", "progress", "show", "save_every"}):
        if config.get(key) != before.get(key):
            raise ValueError(f"--out {out}: holds another run (--{key.replace('_', '-')} was {before.get(key)!r}, "
                             f"now {config.get(key)!r}); choose another folder")
    return bool(record.get("finished"))


def start_run(out: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder and record its configuration. Called after everything that a wrong flag could stop."""
    prepare_folder(out)
    write_json(out / "run.json", {"config": config, "finished": False})


def finish_run(out: Path, **summary: Any) -> None:
    record = read_json(out / "run.json")
    write_json(out / "run.json", {**record, "finished": True, **summary})
    (out / "resume.pt").unlink(missing_ok=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL log, none if there is no log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []


def keep_lines(path: Path, wanted) -> None:
    """Drop the lines of a JSONL log that the resumed run will write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # the last was cut by the interruption, or is empty
        if wanted(json.loads(line)):
            kept.append(line + "\n")
    replace_text(path, "".join(kept))
