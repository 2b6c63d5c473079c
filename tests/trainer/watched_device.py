"""A device that computes on the CPU and writes down whenever the host would have to wait for it, were it a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class _FarTensor(torch.Tensor):
    """Says that it is on `DEVICE`; its numbers are in `near`, on the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> _FarTensor:
        far: _FarTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        far.near = near
        return far

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the mode")


class WatchedDevice(TorchDispatchMode):
    """Makes `DEVICE` usable within its context.

    The host waits where a number comes back to it, where the shape of a result depends on numbers, and where a
    copy is made that is not said to be `non_blocking`.

    Attributes:
        waits: names of the operators that it waited in, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        kwargs = dict(kwargs or {})
        given = tree_flatten((args, kwargs))[0]
        of_far = any(isinstance(each, _FarTensor) for each in given)
        device = kwargs.get("device")
        is_far = of_far if device is None else torch.device(device) == DEVICE
        if _waits(func, args, kwargs, given, of_far):
            self.waits.append(str(func))
        near_args, near_kwargs = tree_map_only(_FarTensor, lambda far: far.near, (args, kwargs))
        if device is not None:
            near_kwargs["device"] = torch.device("cpu")
        result = func(*near_args, **near_kwargs)
        if not is_far:
            return result
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, _FarTensor, result))


def _waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Any], of_far: bool) -> bool:
    near = [each for each in given if isinstance(each, Tensor) and not isinstance(each, _FarTensor)]
    if any(each.device == DEVICE for each in near):
        raise AssertionError(f"{func}: a tensor was made on the device out of numbers of the host")
    if func is torch.ops.aten._to_copy.default:
        device = torch.device(kwargs.get("device") or args[0].device)
        crosses = device != args[0].device
        return crosses and (of_far or not kwargs.get("non_blocking"))
    if func is torch.ops.aten.copy_.default:
        is_upload = bool(near) and near[0] is args[1]
        is_asynchronous = (len(args) > 2 and args[2]) or kwargs.get("non_blocking")
        return of_far and bool(near) and not (is_upload and is_asynchronous)
    if not of_far:
        return False
    if func in _INDEXING:
        # Indices of the host are copied, and masks are counted.
        return any(not isinstance(each, _FarTensor) or each.dtype == torch.bool for each in args[1] if each is not None)
    if any(each.dim() > 0 for each in near):
        raise AssertionError(f"{func}: operands on the device and on the host")
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
