"""A device that is not the CPU, without one: tensors that say they are on CUDA, and refuse to meet tensors that are not.

A `There` holds a CPU tensor and computes with it, but its `device` is CUDA's, and every operation on it checks what a GPU
would: that its other tensors are there too (less scalars, copies and indices, which may come from the CPU), and that no
CPU generator draws its numbers. `pretended()` is a context in which `.to("cuda")`, `device="cuda"` and modules' `.to` make
such tensors. Numbers are the CPU's own, so that a run there equals a run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

CUDA = torch.device("cuda", 0)
COPIES = ("aten._to_copy", "aten.copy_", "aten._local_scalar_dense", "aten.set_", "aten.lift_fresh")
INDEXED = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index")
OF_NUMBERS = {torch.Tensor.tolist, torch.Tensor.storage, torch.Tensor.untyped_storage, torch.Tensor.data_ptr}
MOVES = {torch.Tensor.cuda, torch.Tensor.pin_memory, torch.Tensor.cpu, torch.Tensor.to}
WATCHED = {torch.Tensor.data.__set__, torch.Tensor.numpy, torch.Tensor.__array__} | MOVES | OF_NUMBERS


class There(torch.Tensor):
    """A tensor on the pretended device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"There({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, aliases = _name(func), _aliases(func)
        here: list[Any] = []  # tensors of the CPU, and generators
        plain_args = [_plain(x, [] if i == 1 and name in INDEXED else here) for i, x in enumerate(args)]
        plain = {key: _plain(x, here) for key, x in (kwargs or {}).items()}
        if here:
            _refuse(name, here)
        if "device" in plain:
            plain["device"] = None  # which C++ fills in; what Python asks for is in `Pretended`
        result = func(*plain_args, **plain)
        if name == "aten.copy_" and not isinstance(args[0], There):
            return args[0]
        result = _wrapped(result)
        return return_and_correct_aliasing(func, args, kwargs or {}, result) if aliases else result


def _plain(x: Any, here: list[Any]) -> Any:
    """An argument with CPU tensors in place of those that are there; what was on the CPU goes to `here`."""
    if isinstance(x, There):
        return x.held
    if isinstance(x, torch.Tensor | torch.Generator):
        here.append(x)
    return type(x)(_plain(y, here) for y in x) if isinstance(x, list | tuple) else x


def _wrapped(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_wrapped(y) for y in x)
    return There(x) if isinstance(x, torch.Tensor) and not isinstance(x, There) else x


def _refuse(name: str, here: list[Any]) -> None:
    """Raise what a GPU would of tensors and generators of the CPU."""
    if name not in COPIES and any(isinstance(x, torch.Tensor) and x.dim() for x in here):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in here):
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")


def there(x: torch.Tensor) -> torch.Tensor:
    """The tensor on the pretended device, as autograd sees it: gradients flow back to the CPU."""
    return x if isinstance(x, There) else _Over.apply(x)


class _Over(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return There(x.detach().clone())

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope.held if isinstance(slope, There) else slope


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: There) -> torch.Tensor:
        return x.held.detach().clone()

    @staticmethod
    def backward(context: Any, slope: torch.Tensor) -> torch.Tensor:
        return There(slope)


class Pretended(TorchFunctionMode):
    """What Python calls with a CUDA device, made with tensors of `There`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in WATCHED and not (kwargs and kwargs.get("device")):
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.data.__set__ and isinstance(args[0], There):
            return self.replaced(func, *args)
        if func in OF_NUMBERS and isinstance(args[0], There):
            return func(args[0].held.detach(), *args[1:], **kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], There):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is torch.Tensor.cuda:
            return there(args[0])
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.cpu:
            return _Back.apply(args[0]) if isinstance(args[0], There) else args[0]
        if func is torch.Tensor.to:
            return self.moved(func, args, kwargs)
        if _cuda(kwargs.get("device")):
            kwargs["device"] = None
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise RuntimeError(f"{resolve_name(func)}: expected a 'cuda' device type for generator but found 'cpu'")
            return there(func(*args, **kwargs))
        if kwargs.get("device") is not None:
            args, kwargs = tree_map_only(There, lambda x: x.held.detach(), (args, kwargs))
        return func(*args, **kwargs)

    def replaced(self, func: Any, old: There, new: torch.Tensor) -> None:
        """`old.data = new`."""
        if not isinstance(new, There):
            raise RuntimeError("incompatible tensor type: data on cpu for a tensor on cuda:0")
        func(old, new)
        old.held = new.held

    def moved(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """`x.to(...)`: to the device that is named, if one is, and then to the rest."""
        x, *rest = args
        asked = [a for a in rest if _device(a)] + [a.device for a in rest if isinstance(a, torch.Tensor)]
        asked += [kwargs.pop("device")] if kwargs.get("device") is not None else []
        rest = [a.dtype if isinstance(a, torch.Tensor) else a for a in rest if not _device(a)]
        if asked:
            over = _cuda(asked[0])
            if over and not isinstance(x, There):
                x = there(x)
            elif not over and isinstance(x, There):
                x = _Back.apply(x)
        rest = [a for a in rest if isinstance(a, torch.dtype)]
        kwargs = {k: v for k, v in kwargs.items() if k in ("dtype", "memory_format", "copy") and v is not None}
        return func(x, *rest, **kwargs) if rest or kwargs else x


@cache
def _name(operation: Any) -> str:
    return str(operation.overloadpacket)


@cache
def _aliases(operation: Any) -> bool:
    """Whether the operation changes an argument, or gives a view of one."""
    schema = operation._schema
    return any(x.alias_info is not None for x in (*schema.arguments, *schema.returns))


def _device(x: Any) -> bool:
    return isinstance(x, torch.device | str)


def _cuda(x: Any) -> bool:
    return _device(x) and torch.device(x).type == "cuda"


def _unfused(kind: Any, *given: Any, fused: bool | None = None, **more: Any) -> torch.optim.Optimizer:
    return kind(*given, **more)


@contextmanager
def pretended() -> Iterator[None]:
    """Within, CUDA is there; its autocast is the CPU's, and its Adam is not fused, which rounds otherwise."""
    autocast = torch.autocast
    optimizers = {kind.__name__: partial(_unfused, kind) for kind in (torch.optim.Adam, torch.optim.AdamW)}
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            Pretended(),
            mock.patch("torch.autocast", lambda kind, *rest, **more: autocast("cpu", *rest, **more)),
            mock.patch.multiple("torch.optim", **optimizers),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
