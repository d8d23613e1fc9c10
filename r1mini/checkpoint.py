"""Model folders in Hugging Face's layout, and files that are whole or not there.

A model folder holds config.json, generation_config.json, safetensors, tokenizer.json and what else its tokenizer came
with; [weights.py](weights.py) reads and writes the first and the third. The embedded base models are such folders and are
loaded as any other. Left out: quantised weights, chat templates (they are carried along).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer as Backend

from r1mini.distributed import on_first
from r1mini.model import ModelConfig, Transformer
from r1mini.tokenizer import Tokenizer
from r1mini.weights import config_json, json_object, json_text, load_weights, read_config, read_file, read_json, shards

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("base", "student-base")
# Files of a folder that are saved with its tokenizer as they are.
CARRIED = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
           "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model")


def resolve(name: str | Path) -> Path:
    """A folder as given, an embedded model by its name, or a model of the Hugging Face hub by its id (owner/name): from
    the hub's cache where the hub cannot be reached. Where `owner` is a folder here, a folder is meant."""
    if str(name) in EMBEDDED and not Path(name).exists():
        return ASSETS / name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or Path(name).parent.is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # comes with tokenizers; slow to import

    try:
        return Path(snapshot_download(str(name), allow_patterns=[
            "config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json", *CARRIED]))
    except Exception as error:  # the hub's own, its HTTP library's and the system's
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{name}: no such model folder, and not to be had from the Hugging Face hub ({reason})") from None


def replace(folder: Path, files: Mapping[str, bytes | Callable[[Path], None]], stale: Iterable[Path] = ()) -> None:
    """Write files, each given by its content or by what writes it to a path, so that each is whole at any moment, the old
    one or the new one, also when the power fails; if one of them cannot be written, all stay as they are. `stale` ones go.
    While several change, the last of them is missing."""
    temporary = {name: folder / f"{name}.tmp" for name in files}
    try:
        for name, content in files.items():
            write(temporary[name], content, folder / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    if len(files) > 1:
        (folder / name).unlink(missing_ok=True)
        for path in stale:
            path.unlink(missing_ok=True)
    for name, path in temporary.items():
        os.replace(path, folder / name)
    sync(folder)


def write(path: Path, content: bytes | Callable[[Path], None], told: Path) -> None:
    """A new file, by its content or by what writes it to a path; it is on the disk when this returns. ValueError naming
    `told` if it cannot be written, or its writer refuses to."""
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        sync(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{told}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    except ValueError as error:
        raise ValueError(f"{told}: {error}") from None


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # told with it
        raise
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    replace(path.parent, {path.name: text.encode()})


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json_text(value))


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
         fits: Callable[[ModelConfig], None] = lambda config: None) -> tuple[Transformer, Tokenizer]:
    """(model, tokenizer) of a Hugging Face folder, an embedded model ("base", "student-base") or a hub id. `fits` may refuse
    the model by its shape, before a weight is read.

    Raises ValueError naming the file, and what is missing, extra or misshaped.
    """
    folder = resolve(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder (embedded models: {', '.join(EMBEDDED)})")
    config = read_config(folder / "config.json")
    fits(config)
    tokenizer = load_tokenizer(folder)
    for name, ids in {"tokenizer.json": tokenizer.backend.get_vocab().values(), "config.json": end_ids(folder / "config.json"),
                      "generation_config.json": end_ids(folder / "generation_config.json")}.items():
        if (largest := max(ids, default=0)) >= config.vocab_size:
            raise ValueError(f"{folder / name}: token id {largest}, but the model has embeddings for {config.vocab_size}")
    with torch.device("meta"):  # shapes alone
        model = Transformer(config)
    load_weights(folder, model, device, dtype)
    model.source = read_json(folder / "config.json")
    return model, tokenizer


def listed(ids: Any) -> list[Any]:
    """eos_token_id may be one, several or none."""
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def end_ids(path: Path) -> list[int]:
    given = listed(read_json(path).get("eos_token_id")) if path.is_file() else []
    if not all(type(i) is int and i >= 0 for i in given):
        raise ValueError(f"{path}: eos_token_id {given!r} is not a token id")
    return given


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. It stops at the end token of tokenizer_config.json and all of config.json's and
    generation_config.json's; a padding token plays no part, masks come from lengths."""
    folder = resolve(folder)
    path = folder / "tokenizer.json"
    content = read_file(path)
    try:
        backend = Backend.from_buffer(content)
        backend.encode("1 + 1 = \u4e8c\n")  # some faults show in use alone
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and for a panic of its own no Exception at all
        raise ValueError(f"{path}: not a tokenizer ({error})") from None
    stop = [*end_ids(folder / "config.json"), *end_ids(folder / "generation_config.json")]
    path = folder / "tokenizer_config.json"
    end = read_json(path).get("eos_token") if path.is_file() else None
    end = end.get("content") if isinstance(end, dict) else end
    end_id = None if end is None else backend.token_to_id(str(end))
    if end is not None and end_id is None:
        raise ValueError(f"{path}: eos_token {end!r} is not in tokenizer.json")
    files = {name: read_file(folder / name) for name in CARRIED if (folder / name).is_file()}
    try:
        return Tokenizer(backend, stop, end_id, files)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def model_files(model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype | None = None, shard_bytes: int = 5_000_000_000
                ) -> dict[str, bytes | Callable[[Path], None]]:
    """The files of a model folder: what they hold, or what writes them."""
    files = {**shards(model, dtype, shard_bytes), **tokenizer.files,
             "tokenizer.json": tokenizer.backend.to_str(pretty=True).encode()}
    generation = json.loads(files.get("generation_config.json", "{}"))
    if set(listed(generation.get("eos_token_id"))) != tokenizer.stop_ids:
        files["generation_config.json"] = json_text({**generation, "eos_token_id": sorted(tokenizer.stop_ids)}).encode()
    kind = dtype or model.lm_head.weight.dtype
    return {**files, "config.json": json_text(config_json(model, tokenizer.stop_ids, kind)).encode()}


@on_first
def save(folder: str | Path, model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype | None = None,
         shard_bytes: int = 5_000_000_000) -> None:
    """Write a model folder, with what the tokenizer and config.json came with; config.json comes last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = model_files(model, tokenizer, dtype, shard_bytes)
    # An earlier model's shards would be loaded with it, or instead.
    replace(folder, files, [path for path in folder.glob("model*.safetensors*") if path.name not in files and
                            re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", path.name)])


def prepare_folder(out: Path) -> None:
    """Make a folder that can be written to, or say which `--out` cannot."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None


def number(value: Any) -> bool:
    """Is it a finite number that arithmetic takes? NaN and integers of any length are JSON to Python."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(File and line, object) of each line of a JSONL file; none if there is no file. What an interruption left of the last
    line is passed over, anything else that is no object is a ValueError."""
    *lines, cut = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for count, line in enumerate(lines, 1):
        if line:
            yield f"{path}:{count}", json_object(line, f"{path}:{count}")
    if cut:
        with suppress(ValueError):
            yield f"{path}:{len(lines) + 1}", json_object(cut, path)


def read_metrics(path: Path, *needed: str) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl. ValueError for a value that is no finite number, and where one of those needed is missing."""
    rows = []
    for where, row in read_lines(path):
        for name in [*needed, *row]:
            if not number(row.get(name)):
                raise ValueError(f"{where}: {name[:60]} {row.get(name)!r:.60} is not a finite number")
        rows.append(row)
    return rows


def read_record(path: Path, *numbers: str) -> dict[str, Any]:
    """A run.json. ValueError where it is not as a run writes it, with these numbers in it or in its configuration."""
    record = read_json(path)
    config = record.get("config")
    whole = {**config, **record} if isinstance(config, dict) else {}
    wrong = [name for name in numbers if not number(whole.get(name))] + ["seconds"] * (not number(record.get("seconds", 0)))
    if not whole or type(record.get("finished")) is not bool or wrong:
        raise ValueError(f"{path}: not what a run writes ({', '.join(wrong) or 'config, finished'})")
    return record
