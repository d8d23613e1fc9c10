"""Model folders in Hugging Face's layout: `load` and `save`.

A folder holds config.json, generation_config.json, safetensors, tokenizer.json and further files of
the tokenizer. The embedded base models are such folders. A folder of LoRA's adapters (adapter.py)
loads with its base model. Left out: quantised weights.
Only `load` and `save` import torch; rendering a prompt does not need it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
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
ADAPTER_CONFIG = "adapter_config.json"
MERGE_IT = "merge it with its base (python -m r1mini.checkpoint --adapter …), and use that model"
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
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
    "base_model.json",
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
    return download(str(name))


@cache  # asks the hub once in a run, which then reads one version of the model
def download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # comes with tokenizers; slow to import

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own errors, its HTTP library's and the system's
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name}: no such model folder, and it could not be downloaded from the "
            f"Hugging Face hub ({reason})"
        ) from None


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds LoRA's adapters and no model. Downloads a hub id."""
    folder = resolve(model)
    is_model = any(folder.glob("model*.safetensors"))
    return (folder / ADAPTER_CONFIG).is_file() and not is_model


def base_name(model: str | Path, base: str = "") -> str:
    """The base model of an adapter folder: `base`, or else the one that its adapter_config.json
    names. Of any other model its own name; then `base` raises ValueError."""
    if not is_adapter(model):
        if base:
            raise ValueError(f"--base {base}: {model} is not a LoRA adapter, so it has no base")
        return str(model)
    path = resolve(model) / ADAPTER_CONFIG
    name = base or read_json(path).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(f"{path}: it names no base_model_name_or_path: give one with --base")
    folder = resolve(name)
    if is_adapter(folder):
        raise ValueError(f"{path}: its base {name} is itself a LoRA adapter: {MERGE_IT}")
    if not folder.is_dir():
        where = f"--base {base}" if base else f"{path}: its base {name}"
        raise ValueError(f"{where}: no such model folder: name the base model with --base")
    return name


def tokenizer_folder(model: str | Path, base: str = "") -> Path:
    """The folder with the tokenizer and the chat template of a model: an adapter folder without a
    tokenizer has its base's."""
    folder = resolve(model)
    if is_adapter(folder) and not (folder / "tokenizer.json").is_file():
        return resolve(base_name(folder, base))
    return folder


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    check_config: Callable[[ModelConfig], None] | None = None,
    kind: type[Transformer] | None = None,
    base: str = "",
    vector_dtype: torch.dtype | None = None,
) -> tuple[Transformer, Tokenizer]:
    """(model, tokenizer) of a folder, an embedded model ("base", "student-base") or a hub id. Of a
    folder with LoRA's adapters, the base model with the adapters beside its frozen weights.

    `dtype` is float32 by default; adapters are always float32, and norms and biases have
    `vector_dtype` if it is given. `check_config` may refuse the model before its weights are read.
    `kind`: Transformer, a language model, by default; or RewardModel. `base`: the base model of an
    adapter folder, if it is not where the folder says.
    ValueError naming the file, and what is missing, unknown or misshaped.
    """
    import torch

    from r1mini.checkpoint.weights import load_model, read_config
    from r1mini.model.transformer import Transformer

    folder, kind = resolve(folder), kind or Transformer
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such model folder (embedded models: {', '.join(EMBEDDED)}; "
            "a Hugging Face hub id is owner/name)"
        )
    base_model = base_name(folder, base)
    adapter = folder if is_adapter(folder) else None
    if adapter and kind is not Transformer:
        raise ValueError(f"{folder}: a LoRA adapter, not a reward model")
    model_folder = resolve(base_model)
    config = read_config(model_folder / "config.json")
    if check_config:
        check_config(config)
    with_tokenizer = tokenizer_folder(folder, base)
    tokenizer = load_tokenizer(with_tokenizer, model_folder)
    vocabulary = {with_tokenizer / "tokenizer.json": tokenizer.backend.get_vocab().values()}
    for path, ids in (vocabulary | read_stop_ids(with_tokenizer, model_folder)).items():
        if max(ids, default=0) >= config.vocab_size:
            raise ValueError(
                f"{path}: token id {max(ids)}, but the model has embeddings for {config.vocab_size}"
            )
    if adapter:  # report an error before the weights of the base are read
        from r1mini.checkpoint.adapter import load_adapter, read_plan

        read_plan(adapter, config)
    dtype = dtype or torch.float32
    model = load_model(model_folder, config, device, dtype, kind, vector_dtype)
    if adapter:
        load_adapter(adapter, model, base_model, model_folder)
    return model, tokenizer


def save(folder: str | Path, model: Transformer, tokenizer: Tokenizer) -> None:
    """Write a model folder, with all fields and files that the model was loaded with; of a model
    with LoRA's adapters, an adapter folder without the base.

    The weights keep their dtype. Call it on all ranks; the main rank writes. config.json, or
    adapter_config.json, is written last.
    """
    from r1mini.infra.distributed import main_rank_only

    main_rank_only(write_model)(Path(folder), model, tokenizer)


def write_model(folder: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    from r1mini.checkpoint.adapter import saved_files

    folder.mkdir(parents=True, exist_ok=True)
    files = saved_files(model, tokenizer)
    # The weights of an earlier model would be loaded with this one, or instead of it.
    weights = r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|adapter_(model|config)\..*"
    others = [path for path in folder.iterdir() if path.name not in files]
    replace_files(folder, files, [path for path in others if re.fullmatch(weights, path.name)])


def save_merged(
    folder: str | Path, adapter: str | Path, dtype: str = "float32", base: str = ""
) -> None:
    """Write a plain model folder: the model of an adapter folder, merged in fp32 and rounded to
    this dtype. Prints which share of the update the rounding keeps. Needs memory for the model
    twice, on the CPU. Call it on all ranks; the main rank works."""
    from r1mini.infra.distributed import main_rank_only

    main_rank_only(write_merged)(Path(folder), adapter, dtype, base)


def write_merged(folder: Path, adapter: str | Path, dtype_name: str, base: str) -> None:
    import torch

    from r1mini.model.lora import merged, surviving_share

    model, tokenizer = load(adapter, base=base)
    dtype, share = getattr(torch, dtype_name), ""
    if dtype != torch.float32:
        survives = surviving_share(model, dtype)
        share = f"; of the update, {survives:.0%} survives the rounding to {dtype_name}"
    write_model(folder, merged(model, dtype), tokenizer)
    print(f"{folder}: merged{share}", flush=True)


def load_tokenizer(folder: str | Path, base_folder: Path | None = None) -> Tokenizer:
    """The tokenizer of a model folder; of an adapter folder, with its base's stop tokens.

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
    stop_ids = chain(*read_stop_ids(folder, base_folder).values())
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


def read_stop_ids(folder: Path, base_folder: Path | None = None) -> dict[Path, list[int]]:
    """The eos_token_ids of each JSON file that may name some. An adapter folder that r1mini wrote
    has a generation_config.json with all of them; others have none, and the base's count."""
    ids_of = {}
    complete = (folder / "generation_config.json").is_file()
    for place in [folder] if complete or base_folder is None else [folder, base_folder]:
        for path in (place / "config.json", place / "generation_config.json"):
            ids = ids_of[path] = eos_token_ids(read_json(path)) if path.is_file() else []
            if not all(type(i) is int and i >= 0 for i in ids):
                raise ValueError(f"{path}: eos_token_id {ids!r} is not a token id")
    return ids_of


def weights_fingerprint(model: str, base: str = "") -> list:
    """Name, size and time of each file of a model folder, and of an adapter's base: quicker than
    reading gigabytes."""
    folders = [resolve(model)]
    if is_adapter(model):
        folders.append(resolve(base_name(model, base)))
    return [
        [file.name, file.stat().st_size, int(file.stat().st_mtime)]
        for folder in folders
        for file in sorted(folder.glob("*"))
        if file.suffix in (".safetensors", ".json", ".jinja") and file.name != "run.json"
    ]
