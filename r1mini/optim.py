"""The optimizers and the learning rate's schedule.

Muon (orthogonalised momentum) steps the matrices of the layers, AdamW the rest, under one learning rate: Muon's update
is scaled to AdamW's usual size (Moonlight §2.2). At the embedded models' size it is clearly the better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from r1mini.distributed import is_sharded, replicated


class Muon(torch.optim.Muon):
    """torch's, also of sharded matrices. Newton-Schulz takes whole ones, and in bfloat16 the order of its sums would show:
    so every rank has the gradients and the momentum whole, and steps its own shard."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = replicated(parameter.grad)
                for name, value in self.state.get(parameter, {}).items():
                    self.state[parameter][name] = replicated(value)
        return super().step(closure)


class Visiting:
    """An optimizer whose moments wait in the CPU's memory [ZeRO-Offload]: those of one parameter at a time come to its
    device, for its step, and go back. The bits are those of all moments on the device, and so is what is saved."""

    def step(self, closure=None):
        groups = self.param_groups
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    waiting = self.state.get(parameter, {})
                    self.state[parameter] = {name: self.come(value, parameter.device) for name, value in waiting.items()}
                    self.param_groups = [{**group, "params": [parameter]}]
                    super().step()
                    visitors = self.state[parameter].items()
                    self.state[parameter] = {name: self.go(value, waiting.get(name)) for name, value in visitors}
        self.param_groups = groups
        for device in {parameter.device for group in groups for parameter in group["params"] if parameter.is_cuda}:
            # Copies from a GPU may still be on their way. Not of all streams: another thread may be recording a graph in one.
            torch.cuda.current_stream(device).synchronize()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict({**saved, "state": {}})  # it would take all of them to the device
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, values in saved["state"].items():
            pinned = parameters[number].is_cuda
            self.state[parameters[number]] = {name: self.go(value, pinned=pinned) for name, value in values.items()}

    def come(self, value: Tensor, device: torch.device) -> Tensor:
        return value.to(device, non_blocking=True) if value.ndim else value  # AdamW's count of steps is always on the CPU

    def go(self, value: Tensor, place: Tensor | None = None, pinned: bool = False) -> Tensor:
        """To where it waited before; pinned memory, from and to which a GPU copies at the full rate of the bus."""
        if not value.ndim:
            return value
        if place is None:
            place = torch.empty_like(value, device="cpu", pin_memory=pinned or value.is_cuda)
        return place.copy_(value, non_blocking=True)


class VisitingAdamW(Visiting, torch.optim.AdamW):
    pass


class VisitingMuon(Visiting, Muon):
    pass


def optimizers(model: nn.Module, kind: str, learning_rate: float, weight_decay: float,
               rest: float = 1.0, state_on: str = "device") -> list[torch.optim.Optimizer]:
    """`kind` is "adamw" or "muon". Norms and biases are never decayed. Under Muon, what is left to AdamW (embeddings,
    head, norms) learns at `rest` times the rate. `state_on`: where the moments are between steps, "device" or "cpu"."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif "embed" in name or "lm_head" in name:
            tables.append(parameter)
        else:
            matrices.append(parameter)
    if kind not in ("adamw", "muon"):
        raise ValueError(f"--optimizer: adamw or muon, not {kind!r}")
    if state_on not in ("device", "cpu"):
        raise ValueError(f"--optimizer-on: device or cpu, not {state_on!r}")
    adamw, muon = (VisitingAdamW, VisitingMuon) if state_on == "cpu" else (torch.optim.AdamW, Muon)
    by_adamw = tables + (matrices if kind == "adamw" else [])
    share = rest if kind == "muon" else 1.0
    groups = [{"params": by_adamw, "weight_decay": weight_decay, "share": share},
              {"params": vectors, "weight_decay": 0.0, "share": share}]
    made: list[torch.optim.Optimizer] = [adamw(groups, lr=learning_rate, betas=(0.9, 0.95))]
    if kind == "muon":
        made.append(muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return made


def learning_rate_at(progress: float, peak: float, warmup: float, final: float) -> float:
    """Linear warm-up over the first `warmup` of the run, then a cosine to `final` times the peak.

    >>> [round(learning_rate_at(p, 1.0, warmup=0.1, final=0.1), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if progress < warmup:
        return peak * progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))
    return peak * (final + (1 - final) * cosine)


def step(made: Iterable[torch.optim.Optimizer], parameters: Iterable[Tensor], learning_rate: float,
         max_grad_norm: float, loss: Tensor | float = 0.0) -> float:
    """One update with clipped gradients; the gradients are cleared. Returns their norm before clipping. Where that norm or the
    loss is not finite, neither a weight nor a moment changes, and what is returned is not finite either."""
    norm = nn.utils.clip_grad_norm_(list(parameters), max_grad_norm)
    norm = float((norm.full_tensor() if is_sharded(norm) else norm) + 0.0 * loss)  # of both, one number from the device
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("share", 1.0)
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


class Skipped:
    """Counts the updates in a row that `step` left out. Each is told; the last of `MOST` ends the run."""

    MOST = 3

    def __init__(self):
        self.row = 0

    def __call__(self, norm: float | None, where: str, rows: Callable[[], Iterable[str]]) -> None:
        """After each update: the norm that `step` returned (None: there was nothing to learn), its place in the run, and what
        tells its rows."""
        if norm is None:
            return
        self.row = 0 if math.isfinite(norm) else self.row + 1
        if self.row:
            named = list(rows())
            told = (f"{where}: the loss or its gradient is not finite, no update ({self.row} in a row); rows: "
                    + ", ".join(named[:4]) + f" and {len(named) - 4} more" * (len(named) > 4))
            print(told, flush=True)
            if self.row == self.MOST:
                raise ValueError(f"{told}. The run ends: lower --learning-rate, or look at these rows; the weights are those "
                                 "of the last good update, and are not saved")
