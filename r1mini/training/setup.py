"""Set-up that both training scripts share: from a configuration to a model ready for training."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date

import torch

from r1mini import checkpoint
from r1mini.checkpoint.chat_template import ChatTemplate, load_chat_template
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import TrainOptions
from r1mini.infra import distributed
from r1mini.model.config import ModelConfig
from r1mini.model.transformer import Transformer
from r1mini.training import memory, optim
from r1mini.training.run_state import Run


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

    def check_memory(config):
        memory.require(memory_needed(config), device, cfg)

    model, tokenizer = load(cfg.model, device, check_config=check_memory)
    template = load_chat_template(cfg.model, cfg.template)
    if template.shows_date:
        day = run.settings.get("date") or date.today().isoformat()
        run.settings["date"] = distributed.all_gather([day])[0]
        template = replace(template, date=run.settings["date"])
    return model, template.adapt_tokenizer(tokenizer), template


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
