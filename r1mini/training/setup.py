"""Set-up that the training scripts share: from a configuration to a model ready for training."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from functools import partial

import torch

from r1mini import checkpoint
from r1mini.checkpoint.adapter import add_adapter
from r1mini.checkpoint.chat_template import ChatTemplate, load_chat_template
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import PolicyOptions, TrainOptions, flag, format_value
from r1mini.infra import distributed
from r1mini.model import lora
from r1mini.model.config import ModelConfig
from r1mini.model.transformer import Transformer
from r1mini.training import memory, optim
from r1mini.training.run_state import Run

LORA_RATE = 10  # times --learning-rate


def load_model(
    cfg: TrainOptions,
    run: Run,
    device: torch.device,
    memory_needed: Callable[[ModelConfig], Mapping[str, int]],
    load: Callable[..., tuple[Transformer, Tokenizer]] = checkpoint.load,
) -> tuple[Transformer, Tokenizer, ChatTemplate]:
    """The model that a run starts from. A template that shows the day keeps the run's first one.

    Raises ValueError, before a weight is read, if the run would not fit the device's memory.
    """
    base = cfg.base if isinstance(cfg, PolicyOptions) else ""
    if not isinstance(cfg, PolicyOptions) and checkpoint.is_adapter(cfg.model):
        raise ValueError(
            f"--model {cfg.model}: a LoRA adapter, and not all its weights: {checkpoint.MERGE_IT}"
        )

    def check_memory(config):
        memory.require(memory_needed(config), device, cfg)

    model, tokenizer = load(cfg.model, device, check_config=check_memory)
    template = load_chat_template(checkpoint.tokenizer_folder(cfg.model, base), cfg.template)
    if template.shows_date:
        day = run.settings.get("date") or date.today().isoformat()
        run.settings["date"] = distributed.all_gather([day])[0]
        template = replace(template, date=run.settings["date"])
    return model, template.adapt_tokenizer(tokenizer), template


def load_policy(
    cfg: PolicyOptions,
    run: Run,
    device: torch.device,
    memory_needed: Callable[[ModelConfig], Mapping[str, int]],
) -> tuple[Transformer, Tokenizer, ChatTemplate]:
    """The language model that a run trains: all of it, or with `--lora-rank` new adapters beside
    it; an adapter folder's adapters train on. Raises ValueError as `load_model`, and for flags
    that have no effect without adapters, or with them."""
    adapted = trains_adapters(cfg)
    if not adapted:
        return load_model(cfg, run, device, memory_needed)
    options = {"base": cfg.base, "dtype": memory.base_dtype(cfg), "vector_dtype": torch.float32}
    load = partial(checkpoint.load, **options)
    policy, tokenizer, template = load_model(cfg, run, device, memory_needed, load)
    if cfg.lora_rank:
        targets, alpha = cfg.lora_targets, cfg.lora_alpha
        add_adapter(policy, cfg.model, cfg.lora_rank, alpha, targets, cfg.seed)
    if options["dtype"] != torch.float32:
        lora.keep_stream_in_fp32(policy)
    return policy, tokenizer, template


def trains_adapters(cfg: PolicyOptions) -> bool:
    """Whether a run trains adapters, new ones or an adapter folder's. Raises ValueError for flags
    that only then have an effect."""
    loaded = cfg.model != "new" and checkpoint.is_adapter(cfg.model)
    if loaded and cfg.lora_rank:
        raise ValueError(
            f"--lora-rank {cfg.lora_rank}: {cfg.model} is a LoRA adapter already and trains on as "
            "it is: --lora-rank 0; for new adapters, start from a merged model"
        )
    adapted = bool(loaded or cfg.lora_rank)
    for name in () if adapted else ("lora_learning_rate", "base_dtype", "merge"):
        if getattr(cfg, name) != getattr(type(cfg), name):
            raise ValueError(
                f"{flag(name)} {format_value(getattr(cfg, name))}: has no effect without "
                "--lora-rank or an adapter folder as --model"
            )
    # No effect, or another one than promised: adapters are matrices alone, and the mean of two
    # factors A and B is not that of their products.
    for name in ("rest_lr", "reference_mix") if adapted else ():
        if getattr(cfg, name, 1.0) != 1.0:
            raise ValueError(f"{flag(name)} {getattr(cfg, name)}: is for full fine-tuning")
    if cfg.base:
        checkpoint.base_name(cfg.model, cfg.base)
    if cfg.base_dtype == "bfloat16" and not cfg.bf16:
        raise ValueError("--base-dtype bfloat16: needs --bf16, which computes in bfloat16")
    return adapted


def peak_rate(cfg: PolicyOptions, model: Transformer) -> float:
    """The peak learning rate of what is trained. Adapters need about ten times the rate of full
    fine-tuning [Schulman et al. 2025, LoRA Without Regret]."""
    if not lora.adapters(model):
        return cfg.learning_rate
    rate = cfg.lora_learning_rate or LORA_RATE * cfg.learning_rate
    count = sum(x.numel() for x in lora.own_parameters(model).values())
    print(f"training {count:,} parameters of adapters at a peak learning rate of {rate:g}")
    return rate


def prepare(
    model: Transformer, cfg: TrainOptions, adamw_scale: float = 1.0
) -> tuple[Transformer, list[torch.optim.Optimizer]]:
    """The model, compiled and sharded over the ranks, and its optimizers."""
    model.gradient_checkpointing = cfg.gradient_checkpointing
    if cfg.compile:
        model.compile_layers()
    model = distributed.shard(model)
    return model, optim.build_optimizers(
        model, cfg.optimizer, cfg.weight_decay, adamw_scale, cfg.optimizer_on
    )
