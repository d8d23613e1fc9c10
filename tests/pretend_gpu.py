"""A pretended GPU: tensors that say they are on cuda:0 and compute on the CPU, on any build of torch.

    with pretend_gpu() as waits:
        model.to("cuda")  # from here on, as on a GPU

What a GPU refuses is refused: operators on tensors of both devices, except for CPU scalars. `waits`
counts what makes the host wait for the GPU, by the line of the project that does it. Below Python
nothing knows of CUDA, so kernels, streams, memory and torch.compile are not covered; the capture of
a graph is pretended, too (`capture`).
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.autograd import Function
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from r1mini.sampler import cuda_graphs
from r1mini.sampler.cuda_graphs import GraphRunner

CUDA, T = torch.device("cuda", 0), torch.Tensor
MEMORY = 80 * 2**30  # bytes, all of them free
VALUE_ON_HOST = {T.item, T.tolist, T.__bool__, T.__int__, T.__float__, T.__index__}
VALUE_ON_HOST |= {T.equal, torch.equal, T.allclose, torch.allclose, T.__contains__}
SIZE_FROM_VALUES = {T.nonzero, torch.nonzero, T.masked_select, torch.masked_select}
SIZE_FROM_VALUES |= {T.argwhere, torch.argwhere, T.bincount, torch.bincount, T.unique, torch.unique}
SIZE_FROM_VALUES |= {T.unique_consecutive, torch.unique_consecutive}
REPEATS = {T.repeat_interleave, torch.repeat_interleave}
COPIES = {T.to, T.cpu, T.cuda, T.copy_, T.__setitem__, T.__getitem__}
waits = Counter()


class OnGPU(torch.Tensor):
    """`host` has the numbers, and their history for autograd."""

    @staticmethod
    def __new__(cls, host):
        tensor = torch.Tensor._make_subclass(cls, torch.empty(0))
        tensor.host = host
        return tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def on_gpu(x):
    return isinstance(x, OnGPU)


def host(tree):
    return tree_map(lambda x: x.host if on_gpu(x) else x, tree)


def wait(reason):
    """Counts a wait of the innermost line that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    file = "/".join(frame.f_code.co_filename.rsplit("/", 2)[1:])
    waits[f"{file}:{frame.f_lineno} in {frame.f_code.co_name}: {reason}"] += 1


def call(func, args, kwargs):
    name, kwargs = getattr(func, "__name__", ""), dict(kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, T)]
    inside, outside = list(filter(on_gpu, tensors)), [x for x in tensors if not on_gpu(x)]
    owner = getattr(func, "__self__", None)  # of a property
    if inside and name == "__get__" and owner in (T.device, T.is_cuda, T.is_cpu):
        return {T.device: CUDA, T.is_cuda: True, T.is_cpu: False}[owner]
    if inside and func in (T.numpy, T.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if func is torch._has_compatible_shallow_copy_type:
        return True  # as with a GPU, where Module.to replaces the data of each parameter
    if inside and outside and owner is T.data and name == "__set__":
        return move(args[0], args[1])
    args, device = without_device(func, args, kwargs)
    pinned = kwargs.pop("pin_memory", False)
    target = bool(inside) if device is None else torch.device(device).type == "cuda"
    if func is T.is_pinned:
        return is_pinned(args[0])
    if func is T.pin_memory:
        func, pinned = T.clone, True
    check_devices(func, name, inside, outside)
    count_waits(func, name, args, kwargs, inside, outside, target)
    with torch._C.DisableTorchFunction():
        if func in (T.to, T.cpu, T.cuda):
            new_device = on_gpu(args[0]) != target
            dtype = kwargs.get("dtype", host(args[0]).dtype)
            result = host(args[0]).to(dtype, copy=new_device or kwargs.get("copy", False))
        elif name == "_scaled_dot_product_efficient_attention":
            result = efficient_attention(*host(args))
        else:
            result = func(*host(args), **host(kwargs))
    same = {id(x.host): x for x in inside} | {id(x): x for x in outside if not target}

    def wrap(x):
        if not isinstance(x, T) or on_gpu(x):
            return x
        return (
            same.get(id(x))
            if id(x) in same and on_gpu(same[id(x)]) == target
            else (OnGPU(x) if target else x)
        )

    result = tree_map(wrap, result)
    if pinned:
        result.is_pinned_memory = True
    return result


def is_pinned(x):
    return getattr(x, "is_pinned_memory", False)


def without_device(func, args, kwargs):
    """(args, the device that a call names): below, everything is on the CPU."""
    device = kwargs.pop("device", None)
    if func is not T.to:
        return args, {T.cpu: "cpu", T.cuda: "cuda"}.get(func, device)
    options = iter(("non_blocking", "copy"))
    for x in args[1:]:
        if isinstance(x, (str, torch.device)):
            device = x
        elif isinstance(x, T):
            device, kwargs["dtype"] = x.device, x.dtype
        elif isinstance(x, torch.dtype):
            kwargs["dtype"] = x
        elif x is not None:
            kwargs[next(options)] = x
    return args[:1], device


def move(parameter, value):
    """Makes a parameter one on the GPU, in place, as torch does."""
    grad = parameter.requires_grad
    parameter.__class__ = OnGPU
    parameter.host = value.host.detach().requires_grad_(grad)
    parameter._is_param = True


def efficient_attention(q, k, v, bias, compute_lse):
    """The operator's demands on a GPU, and its padded result, by the one for CPUs."""
    aligned = 16 // q.element_size()
    assert bias.stride(-1) == 1 and all(x % aligned == 0 for x in bias.stride()[:-1]), bias.stride()
    assert bias.dtype == q.dtype == k.dtype and q.shape[-1] % aligned == 0
    aten = torch.ops.aten
    y, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    padding = -lse.shape[-1] % 32
    return y, torch.nn.functional.pad(lse, (0, padding), value=torch.inf), None, None


def check_devices(func, name, inside, outside):
    if inside and func not in COPIES and any(x.dim() for x in outside):
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu "
            f"({[tuple(x.shape) for x in outside]})"
        )


def is_where(func, args):
    """With one argument: `nonzero`."""
    return func in (T.where, torch.where) and len(args) == 1


def count_waits(func, name, args, kwargs, inside, outside, target):
    non_blocking = kwargs.get("non_blocking", func is T.copy_ and args[2:] == (True,))
    if func in (T.to, T.cpu, T.cuda) and on_gpu(args[0]) != target:
        if not (non_blocking and is_pinned(args[0])):
            wait("copy to the GPU" if target else "copy to the host")
    elif func is T.copy_ and inside and outside:
        if not (non_blocking and is_pinned(outside[0])):
            wait("copy between devices")
    elif inside and (func in REPEATS and not isinstance(args[1], int) or is_where(func, args)):
        wait(name)
    elif func in (torch.tensor, torch.as_tensor) and target and not inside:
        wait("copy to the GPU")
    elif inside and (func in VALUE_ON_HOST or func in SIZE_FROM_VALUES):
        wait(name)
    elif inside and func in (T.__getitem__, T.__setitem__):
        for x in args[1] if isinstance(args[1], tuple) else [args[1]]:
            if isinstance(x, list) or (isinstance(x, T) and not on_gpu(x) and x.dim()):
                wait("index from the host")
            elif on_gpu(x) and x.host.dtype == torch.bool:
                wait("index by a mask")


# -- torch, as it is with a GPU ----------------------------------------------------------------------


def run_backward(*args, **kwargs):
    """Python code in the backward pass meets tensors of the GPU, too."""
    with torch._C._EnableTorchFunction(), Mode():
        return _engine_run_backward(*args, **kwargs)


class HostContext:
    """The context of an autograd function. Its tensors are saved as the host's, and come back as
    the GPU's."""

    def __init__(self, ctx):
        object.__setattr__(self, "ctx", ctx)

    def __getattr__(self, name):
        value = getattr(self.ctx, name)
        return tree_map(OnGPU, value) if name == "saved_tensors" else value

    def __setattr__(self, name, value):
        setattr(self.ctx, name, value)

    def save_for_backward(self, *tensors):
        self.ctx.save_for_backward(*host(tensors))


def to_gpu(tree):
    return tree_map(lambda x: OnGPU(x) if isinstance(x, T) and not on_gpu(x) else x, tree)


def apply_on_gpu(cls, *args):
    """`cls.apply`, with forward and backward pass on the GPU's tensors."""

    class Wrapped(Function):
        @staticmethod
        def forward(ctx, *args):
            with torch._C._EnableTorchFunction(), Mode():
                return host(cls.forward(HostContext(ctx), *to_gpu(args)))

        @staticmethod
        def backward(ctx, *grads):
            return host(cls.backward(HostContext(ctx), *to_gpu(grads)))

    with torch._C.DisableTorchFunction():
        return to_gpu(Wrapped.apply(*host(args)))


def group_by_dtype(tensor_lists, with_indices=False):
    """For torch's optimizers: all tensors are on one device. Below Python it would be the CPU."""
    groups = {}
    for index, first in enumerate(tensor_lists[0]):
        lists, indices = groups.setdefault((CUDA, first.dtype), ([[] for _ in tensor_lists], []))
        indices.append(index)
        for chosen, tensors in zip(lists, tensor_lists):
            chosen += tensors[index : index + 1]  # a list may be empty
    return groups


def cpu_for_cuda(function):
    return lambda device, *args, **kwargs: function("cpu", *args, **kwargs)


class Stream:
    def synchronize(self):
        wait("synchronize")

    def wait_stream(self, other):
        pass


def pretended_capture(runner, step):
    """Like a graph: computes nothing until it is replayed, and overwrites its results."""
    outputs = tuple(torch.empty(0, device="cuda") for _ in range(2))

    def replay():
        for x, new in zip(outputs, step()):
            x.host = new.host

    return replay, outputs


@contextmanager
def pretend_gpu(capture=pretended_capture):
    waits.clear()
    plain = Function.apply.__func__

    def apply(cls, *args):
        gpu = any(map(on_gpu, tree_leaves(args)))
        gpu = gpu and cls.setup_context is Function.setup_context  # torch 2.11's checkpointing
        return apply_on_gpu(cls, *args) if gpu else plain(cls, *args)

    gpu = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
        "max_memory_reserved": lambda device=None: 0,
        "current_stream": lambda device=None: Stream(),
        "Stream": lambda device=None: Stream(),
        "stream": lambda stream: nullcontext(),
        "set_device": lambda device: None,
        "set_stream": lambda stream: None,
        "synchronize": lambda device=None: wait("synchronize"),
        "graph_pool_handle": lambda: None,
    }
    autocast = {
        name: cpu_for_cuda(getattr(torch, name))
        for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype")
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(cuda_graphs, "refused", set()))
        stack.enter_context(patch.multiple(torch.cuda, **gpu))
        stack.enter_context(patch.multiple(torch, **autocast))
        for module in (torch.nn.utils.clip_grad, sys.modules["torch.optim.optimizer"]):
            name = "_group_tensors_by_device_and_dtype"
            stack.enter_context(patch.object(module, name, group_by_dtype))
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", run_backward))
        stack.enter_context(patch.object(Function, "apply", classmethod(apply)))
        stack.enter_context(patch.object(GraphRunner, "capture", capture))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):  # asks CUDA itself
                check = patch.object(torch.optim.Optimizer, name, lambda self: None)
                stack.enter_context(check)
        stack.enter_context(Mode())
        yield waits
