"""The torch device of a run, and the precision of its compute."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from r1mini.infra import distributed


def pick_device(
    name: str, threads: int, deterministic: bool = False, tf32: bool = False
) -> torch.device:
    """The device of `--device auto|cpu|cuda[:n]`; sets the number of CPU threads (0: torch's
    choice).

    deterministic  on CUDA, use deterministic kernels; torch warns where there are none. This
                   setting is never reset.
    tf32           on CUDA, multiply fp32 matrices in TF32
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError(f"--device {name}: must be auto, cpu or cuda[:n]")
    ranks = distributed.world_size()
    if ranks > 1 and name != "cpu":
        if name != "cuda":
            raise ValueError(
                f"--device {name}: each of the {ranks} ranks needs its own device; use auto, cuda "
                "or cpu"
            )
        name = f"cuda:{os.environ.get('LOCAL_RANK', distributed.rank())}"
    if name != "cpu" and int(name[5:] or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    if name != "cpu" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Less memory is lost to fragments. The second name is the older one. Read when CUDA starts.
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if ":" in name:
        torch.cuda.set_device(name)  # also for NCCL, CUDA graphs, and tensors on plain "cuda"
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if tf32 and name != "cpu" else "highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors of one dtype, moved to the device. On CUDA this is one copy, from pinned memory,
    and the host does not wait for it."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([x.flatten() for x in tensors])
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors)]


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """A context for a model's compute on `device`: autocast to bfloat16, or in the weights' own
    precision."""
    if bf16 and device.type == "cpu":
        warn_of_slow_bf16()
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@cache  # once in a process
def warn_of_slow_bf16() -> None:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        print(
            "--bf16: this CPU has no bfloat16 products: several times slower than fp32",
            file=sys.stderr,
        )
