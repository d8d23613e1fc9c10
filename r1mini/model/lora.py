"""LoRA: a trained low-rank product beside a frozen linear layer [Hu et al. 2021].

    y = W x + scale * B A x        W [out, in] frozen; A [r, in], B [out, r] trained, in fp32

B starts at zero, so a fresh adapter changes nothing. The thin products run in the dtype of the
compute, here and in sampler/decode.py. They are never merged into W during training: in bfloat16
most of a small update would be lost by the rounding. Left out: dropout, DoRA, adapters on
embeddings and head. checkpoint/adapter.py reads and writes the files.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1mini.model.config import LINEAR
from r1mini.model.transformer import Transformer

Plan = Mapping[str, tuple[int, float]]  # name of a linear layer -> (rank, scale)


def linear_names(layers: int) -> list[str]:
    """
    >>> linear_names(1)[2:5]
    ['model.layers.0.self_attn.v_proj', 'model.layers.0.self_attn.o_proj', \
'model.layers.0.mlp.gate_proj']
    """
    parents = ["self_attn"] * 4 + ["mlp"] * 3
    names = [f"{parent}.{target}" for parent, target in zip(parents, LINEAR)]
    return [f"model.layers.{layer}.{name}" for layer in range(layers) for name in names]


class LoRALinear(nn.Linear):
    """A linear layer with its own frozen weight, and an adapter that adds nothing yet."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        options = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, **options))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **options))

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora_A.to(x.dtype), self.scaled_B.to(x.dtype)  # autocast casts all four
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, A), B)

    @property
    def scaled_B(self) -> Tensor:
        return self.scale * self.lora_B

    def update(self) -> Tensor:
        """[out, in], fp32: what the adapter adds to the weight."""
        return self.scaled_B @ self.lora_A


class FP32Embedding(nn.Embedding):
    """Keeps the residual stream in fp32 where the weights are bf16 and autocast computes."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).float()


def attach(model: Transformer, plan: Plan) -> None:
    """Freezes the model and puts an adapter beside each linear layer of the plan."""
    model.requires_grad_(False)
    for name, (rank, scale) in plan.items():
        parent, _, child = name.rpartition(".")
        linear = LoRALinear(model.get_submodule(name), rank, scale)
        setattr(model.get_submodule(parent), child, linear)


def keep_stream_in_fp32(model: Transformer) -> None:
    """Whatever the dtype of the embeddings. Needs autocast."""
    model.model.embed_tokens.__class__ = FP32Embedding


@torch.no_grad()
def init_adapters(model: Transformer, seed: int) -> None:
    """A uniform in ±1/sqrt(in), as PEFT's, and B zero."""
    generator = torch.Generator().manual_seed(seed)
    for linear in adapters(model).values():
        bound = linear.in_features**-0.5
        start = torch.empty(linear.lora_A.shape).uniform_(-bound, bound, generator=generator)
        linear.lora_A.copy_(start)
        linear.lora_B.zero_()


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The linear layers with an adapter, by name; empty for a model without adapters."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoRALinear)}


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, saved and renewed: the adapters, or without adapters all parameters."""
    named = dict(model.named_parameters())
    return {name: x for name, x in named.items() if ".lora_" in name} or named


def frozen_copy(model: Transformer) -> Transformer:
    """A copy that does not learn, as the reference of the KL. It shares the frozen base, and has
    its own copy of the adapters: of a fresh adapter it computes the base."""
    shared = {id(x): x for x in model.parameters() if not x.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


def plan_of(model: nn.Module) -> dict[str, tuple[int, float]]:
    """Rank and scale of each adapter of a model."""
    return {name: (len(x.lora_A), x.scale) for name, x in adapters(model).items()}


def empty_copy(model: Transformer) -> Transformer:
    """A model of the same shape, with the same adapters, on the meta device."""
    with torch.device("meta"):
        empty = type(model)(model.config)
        attach(empty, plan_of(model))
    empty.model.embed_tokens.__class__ = type(model.model.embed_tokens)
    empty.hf_config, empty.adapter_files = model.hf_config, model.adapter_files
    return empty


@torch.no_grad()
def merged(model: Transformer, dtype: torch.dtype = torch.float32) -> Transformer:
    """A plain model with the weights W + scale * B A, added up in fp32 and rounded to `dtype`."""
    updated = adapters(model)
    with torch.device("meta"):
        plain = type(model)(model.config)
    weights = {}
    for name, x in plain.named_parameters():
        module, x = name.removesuffix(".weight"), model.get_parameter(name).detach().float()
        update = updated[module].update() if module in updated else 0.0
        weights[name] = (x + update).to(dtype)
    plain.load_state_dict(weights, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        plain.lm_head.weight = plain.model.embed_tokens.weight
    plain.hf_config, plain.rope_bits = model.hf_config, model.rope_bits
    return plain


@torch.no_grad()
def surviving_share(model: Transformer, dtype: torch.dtype) -> float:
    """The share of the adapters' update that is left when the merged weights are rounded to
    `dtype`: the rounded update's projection on the update, over all layers."""
    inner = total = 0.0
    for linear in adapters(model).values():
        weight, update = linear.weight.float(), linear.update()
        rounded = (weight + update).to(dtype).float() - weight.to(dtype).float()
        inner += float((rounded * update).sum())
        total += float(update.square().sum())
    return inner / total if total else 1.0


@torch.no_grad()
def stack_adapters(
    linears: Sequence[nn.Linear], dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """(A [R, in], B [out, R]) of linear layers with one input and their outputs concatenated: one
    A below the other, and the scaled Bs as blocks of a diagonal. None without adapters."""
    parts = [linear for linear in linears if isinstance(linear, LoRALinear)]
    if not parts:
        return None
    shape = sum(x.out_features for x in linears), sum(len(x.lora_A) for x in parts)
    B = torch.zeros(shape, device=parts[0].weight.device, dtype=dtype)
    row = column = 0
    for linear in linears:
        if isinstance(linear, LoRALinear):
            rank = len(linear.lora_A)
            block = B[row : row + linear.out_features, column : column + rank]
            block.copy_(linear.scaled_B)
            column += rank
        row += linear.out_features
    return torch.cat([linear.lora_A for linear in parts]).to(dtype), B
