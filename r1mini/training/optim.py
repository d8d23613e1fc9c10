"""The optimizers and the learning rate's schedule.

Muon (orthogonalised momentum) updates the matrices of the layers, AdamW the rest. They share one
learning rate: Muon's update is scaled to AdamW's usual size (Moonlight §2.2). For models of the
embedded size, Muon is clearly better.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r1mini.infra.distributed import is_sharded, own_shard, replicate
from r1mini.model.lora import own_parameters


class Muon(torch.optim.Muon):
    """torch's Muon with two differences. On a CPU, Newton-Schulz is in fp32: it is more exact, and
    20 times as fast where the CPU has no bfloat16 products. For sharded matrices, every rank
    gathers gradient and momentum, since Newton-Schulz needs whole matrices, and updates its own
    shard."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        gradient, state = replicate(parameter.grad), self.state[parameter]
        momentum = replicate(state.get("momentum_buffer", torch.zeros_like(gradient)))
        momentum.lerp_(gradient, 1 - group["momentum"])
        state["momentum_buffer"] = momentum
        nesterov = gradient.lerp(momentum, group["momentum"])
        dtype = torch.float32 if parameter.device.type == "cpu" else torch.bfloat16
        update = orthogonalize(nesterov, dtype, group["ns_coefficients"], group["ns_steps"])
        # match_rms_adamw: an update of AdamW's usual size [Moonlight §2.2]
        rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(own_shard(update, parameter), alpha=-rate)


def orthogonalize(
    matrix: Tensor, dtype: torch.dtype, coefficients: Sequence[float], steps: int
) -> Tensor:
    """The matrix with singular values near 1 (0.7 to 1.2), by the quintic Newton-Schulz iteration
    of Muon (Jordan et al. 2024), computed in this dtype."""
    a, b, c = coefficients
    x = matrix.to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class CPUOffload:
    """Optimizer state offloaded to CPU, moved to the device one parameter at a time [ZeRO-Offload].
    Results and saved states are bit for bit those of an optimizer without offload."""

    def step(self, closure=None):
        groups = self.param_groups
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.param_groups = [{**group, "params": [parameter]}]
                    self.step_one(parameter)
        self.param_groups = groups
        for device in {p.device for group in groups for p in group["params"] if p.is_cuda}:
            # Copies from a GPU may still be running. Wait only for this stream: another thread may
            # be capturing a graph in its own.
            torch.cuda.current_stream(device).synchronize()

    def step_one(self, parameter: nn.Parameter) -> None:
        on_cpu = self.state.get(parameter, {})
        self.state[parameter] = {
            name: self.to_device(value, parameter.device) for name, value in on_cpu.items()
        }
        super().step()
        self.state[parameter] = {
            name: self.to_cpu(value, on_cpu.get(name))
            for name, value in self.state[parameter].items()
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        # Without the state, which torch would move to the device.
        super().load_state_dict({**saved, "state": {}})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, values in saved["state"].items():
            parameter = parameters[number]
            self.state[parameter] = {
                name: self.to_cpu(value, pinned=parameter.is_cuda) for name, value in values.items()
            }

    def to_device(self, value: Tensor, device: torch.device) -> Tensor:
        return value.to(device, non_blocking=True)

    def to_cpu(self, value: Tensor, out: Tensor | None = None, pinned: bool = False) -> Tensor:
        """Copies into `out`, or into new memory; pinned, so that a GPU copies at full speed."""
        if out is None:
            out = torch.empty_like(value, device="cpu", pin_memory=pinned or value.is_cuda)
        return out.copy_(value, non_blocking=True)


class OffloadedAdamW(CPUOffload, torch.optim.AdamW):
    pass


class OffloadedMuon(CPUOffload, Muon):
    pass


def build_optimizers(
    model: nn.Module,
    kind: str,
    weight_decay: float,
    adamw_scale: float = 1.0,
    state_on: str = "device",
) -> list[torch.optim.Optimizer]:
    """`kind`: "adamw" or "muon". With Muon, AdamW updates embeddings, head, norms and biases, at
    `adamw_scale` times the learning rate. `state_on`: where to keep the state between steps,
    "device" or "cpu". No weight decay for norms and biases. `step` sets the learning rate. With
    LoRA, only the adapters are updated, all of which are matrices."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in own_parameters(model).items():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif "embed" in name or name in ("lm_head.weight", "score.weight"):
            embeddings.append(parameter)
        else:
            matrices.append(parameter)
    offload = state_on == "cpu"
    AdamW = OffloadedAdamW if offload else torch.optim.AdamW
    if kind == "adamw":
        decayed, scale = embeddings + matrices, 1.0
    else:
        decayed, scale = embeddings, adamw_scale
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "share": scale},
        {"params": vectors, "weight_decay": 0.0, "share": scale},
    ]
    fused = all(x.is_cuda for x in embeddings + matrices + vectors)  # one kernel for all of them
    optimizers = [AdamW(groups, betas=(0.9, 0.95), fused=fused or None)]
    if kind == "muon":
        muon = OffloadedMuon if offload else Muon
        optimizers.append(muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def learning_rate_at(fraction: float, peak: float, warmup: float, final: float) -> float:
    """The learning rate when this fraction (0 to 1) of the run is done: linear warm-up over the
    first `warmup` of the run, then a cosine to `final` times the peak.

    >>> fractions = 0.0, 0.05, 0.1, 0.55, 1.0
    >>> [round(learning_rate_at(x, 1.0, warmup=0.1, final=0.1), 3) for x in fractions]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if fraction < warmup:
        return peak * fraction / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / max(1 - warmup, 1e-9)))
    return peak * (final + (1 - final) * cosine)


def nan_if_not_finite(x: Tensor | float) -> Tensor | float:
    """0 where x is finite, else NaN. Add it to a result to reveal what a branch or clamp hides."""
    return 0.0 * x


def clip_gradient(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clips the gradients. Returns their norm before that, on the device."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if is_sharded(norm) else norm


def update(
    optimizers: Iterable[torch.optim.Optimizer], learning_rate: float, grad_norm: float
) -> None:
    """One update, and no gradients. If the norm is not finite, no weight and no state changes."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("share", 1.0)
        if math.isfinite(grad_norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def step(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Iterable[Tensor],
    learning_rate: float,
    max_grad_norm: float,
    loss: Tensor | float = 0.0,
) -> float:
    """One update with clipped gradients; clears the gradients. Returns their norm before clipping.
    If that norm or the loss is not finite, no weight and no optimizer state changes, and the
    returned norm is not finite."""
    norm = clip_gradient(parameters, max_grad_norm)
    norm = float(norm + nan_if_not_finite(loss))  # one number: the host waits for a GPU once
    update(optimizers, learning_rate, norm)
    return norm


class NonFiniteSteps:
    """Reports each update that `step` skipped, and ends the run after `LIMIT` consecutive ones."""

    LIMIT = 3

    def __init__(self):
        self.in_a_row = 0

    def check(self, norm: float, step_name: str, rows: Iterable[str]) -> None:
        """After each update. `norm`: as returned by `step`. `step_name`: of the run and its step.
        `rows`: names of the update's rows, read only if it was skipped."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        rows = list(rows)
        names = ", ".join(rows[:4])
        if len(rows) > 4:
            names += f" and {len(rows) - 4} more"
        message = (
            f"{step_name}: the loss or its gradient is not finite, no update "
            f"({self.in_a_row} in a row); rows: {names}"
        )
        print(message, flush=True)
        if self.in_a_row == self.LIMIT:
            raise ValueError(
                f"{message}. The run ends: lower --learning-rate, or inspect these rows; the "
                "weights of the last good update are not saved"
            )


@torch.no_grad()
def lerp_(reference: nn.Module, policy: nn.Module, mix: float) -> None:
    """Move the reference towards the policy, all the way with mix 1. They share a frozen base."""
    old, new = own_parameters(reference), own_parameters(policy)
    for name, parameter in old.items():
        parameter.lerp_(new[name], mix)
