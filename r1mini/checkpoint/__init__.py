"""Model folders in Hugging Face's layout: `load` and `save`.

A folder holds config.json, generation_config.json, safetensors, tokenizer.json and further files of
the tokenizer. The embedded base models are such folders. Left out: quantised weights.
Only `load` and `save` import torch; rendering a prompt does not need it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra.files import read_file, read_json, replace_files

if TYPE_CHECKING:
    import torch

    from r1mini.model.config import ModelConfig
    from r1mini.model.transformer import Transformer

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = ("base", "student-base")
TOKENIZER_FILES = (  # saved unchanged
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "tekken.json")  # without tokenizer.json
HUB_FILES = [
    "config.json",
    "adapter_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    *TOKENIZER_FILES,
]


def resolve(name: str | Path) -> Path:
    """The folder of a path, of an embedded model's name, or of a Hugging Face hub id (owner/name).

    If the hub cannot be reached, uses a model from the hub's cache. If `owner` is a local
    folder, the name is a path.
    """
    if str(name) in EMBEDDED and not Path(name).exists():
        return ASSETS / name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or Path(name).parent.is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # comes with tokenizers; slow to import

    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own errors, its HTTP library's and the system's
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name}: no such model folder, and it could not be downloaded from the "
            f"Hugging Face hub ({reason})"
        ) from None


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    check_config: Callable[[ModelConfig], None] | None = None,
    kind: type[Transformer] | None = None,
) -> tuple[Transformer, Tokenizer]:
    """(model, tokenizer) of a folder, an embedded model ("base", "student-base") or a hub id.

    `dtype` is float32 by default. `check_config` may refuse the model before its weights are read.
    `kind`: Transformer, a language model, by default; or RewardModel.
    ValueError naming the file, and what is missing, unknown or misshaped.
    """
    import torch

    from r1mini.checkpoint.weights import load_model, read_config
    from r1mini.model.transformer import Transformer

    folder = resolve(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such model folder (embedded models: {', '.join(EMBEDDED)}; "
            "a Hugging Face hub id is owner/name)"
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not any(folder.glob("model*.safetensors")):
        base = read_json(adapter).get("base_model_name_or_path") or "an unnamed model"
        raise ValueError(
            f"{folder}: a LoRA adapter of {base}, not a model; merge the two (in peft: "
            "merge_and_unload) and give the merged model's folder"
        )
    config = read_config(folder / "config.json")
    if check_config:
        check_config(config)
    tokenizer = load_tokenizer(folder)
    ids_of = {"tokenizer.json": tokenizer.backend.get_vocab().values(), **read_stop_ids(folder)}
    for name, ids in ids_of.items():
        if max(ids, default=0) >= config.vocab_size:
            raise ValueError(
                f"{folder / name}: token id {max(ids)}, "
                f"but the model has embeddings for {config.vocab_size}"
            )
    dtype, kind = dtype or torch.float32, kind or Transformer
    return load_model(folder, config, device, dtype, kind), tokenizer


def save(folder: str | Path, model: Transformer, tokenizer: Tokenizer) -> None:
    """Write a model folder, with all fields and files that the model was loaded with.

    The weights keep their dtype. Call it on all ranks; the main rank writes. config.json is written
    last.
    """
    from r1mini.checkpoint.weights import model_files
    from r1mini.infra.distributed import main_rank_only

    folder = Path(folder)

    @main_rank_only
    def write_model() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files = model_files(model, tokenizer)
        # The shards of an earlier model would be loaded with this one, or instead of it.
        shard = r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
        others = [path for path in folder.iterdir() if path.name not in files]
        replace_files(folder, files, [path for path in others if re.fullmatch(shard, path.name)])

    write_model()


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder.

    It stops at the end token of tokenizer_config.json and at all of config.json's and
    generation_config.json's. The padding token is unused: masks come from lengths.
    """
    folder = resolve(folder)
    path = folder / "tokenizer.json"
    for name in SLOW_TOKENIZERS:
        if (folder / name).is_file() and not path.is_file():
            raise ValueError(
                f'{path}: no such file; transformers makes it of {name}: python -c "from '
                f"transformers import AutoTokenizer as T; T.from_pretrained('{folder}')"
                f".save_pretrained('{folder}')\""
            )
    content = read_file(path)
    try:
        backend = Backend.from_buffer(content)
        backend.encode("1 + 1 = \u4e8c\n")  # some faults appear only in use
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers' panics are not Exceptions
        raise ValueError(f"{path}: not a tokenizer ({error})") from None
    stop_ids = chain(*read_stop_ids(folder).values())
    path = folder / "tokenizer_config.json"
    eos = read_json(path).get("eos_token") if path.is_file() else None
    if isinstance(eos, dict):
        eos = eos.get("content")
    eos_id = backend.token_to_id(str(eos)) if eos else None
    if eos and eos_id is None:
        raise ValueError(f"{path}: eos_token {eos!r} is not in tokenizer.json")
    paths = [folder / name for name in TOKENIZER_FILES]
    files = {path.name: read_file(path) for path in paths if path.is_file()}
    try:
        return Tokenizer(backend, stop_ids, eos_id, files)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def eos_token_ids(config: Mapping[str, Any]) -> list[Any]:
    """eos_token_id may be a list, one id or absent."""
    ids = config.get("eos_token_id")
    if isinstance(ids, list):
        return ids
    return [] if ids is None else [ids]


def read_stop_ids(folder: Path) -> dict[str, list[int]]:
    """The eos_token_ids of each JSON file that may name some."""
    ids_of = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        ids = ids_of[name] = eos_token_ids(read_json(path)) if path.is_file() else []
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{path}: eos_token_id {ids!r} is not a token id")
    return ids_of


def weights_fingerprint(model: str) -> list:
    """Name, size and time of each file of a model folder: quicker than reading gigabytes."""
    return [
        [file.name, file.stat().st_size, int(file.stat().st_mtime)]
        for file in sorted(resolve(model).glob("*"))
        if file.suffix in (".safetensors", ".json", ".jinja") and file.name != "run.json"
    ]
