"""Random weights of a new model."""

import torch

from r1mini.model.transformer import Transformer


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """Normal(0, initializer_range); the two projections that write to the residual stream are
    scaled by 1/sqrt(2L) (GPT-2 §2.3)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = model.config.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * model.config.num_hidden_layers) ** 0.5
            weight = torch.empty(parameter.shape).normal_(0, std, generator=generator)
            parameter.copy_(weight)
