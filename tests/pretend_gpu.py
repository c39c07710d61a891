"""A device that computes on the CPU and refuses what a GPU refuses: operations on tensors of two devices.

with pretend_gpu.present():
    model.to("pretend")(x)      # RuntimeError, because x is on the CPU
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from rqlib.core import runtime

NAME = "pretend"
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default, _aten.copy.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
}


class _Backend(_DummyBackendModule):
    """What torch asks a kind of device."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state, device=None) -> None:
        pass


class _Pretend(torch.Tensor):
    """A tensor that says it lies on the device; ``inner`` holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device(NAME, 0), **layout)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self, **_) -> str:
        return f"Pretend({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def tolist(self) -> list:
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: int):
        return self.inner.__reduce_ex__(protocol)  # files hold plain tensors

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Tensors that are made on the device get there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_pretend(kwargs.get("device")) or any(isinstance(leaf, _Pretend) for leaf in tree_leaves((args, kwargs))):
            return _compute(function, args, kwargs)
        return function(*args, **kwargs)


def _is_pretend(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def _compute(function, args: tuple, kwargs: dict):
    """The result of an operation, computed on the CPU; as on a GPU, single numbers may come from there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, _Pretend)]
    others = [tensor for tensor in tensors if not isinstance(tensor, _Pretend) and tensor.dim() > 0]
    if here and others and function not in _COPIES | _INDEXING:
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(f"Expected all tensors to be on the same device: {function} got {shapes} on cpu")
    if here and function in _INDEXING and not isinstance(args[0], _Pretend):
        raise RuntimeError(f"{function}: indices on {NAME}, tensor on cpu")
    device = kwargs.get("device")
    to = _is_pretend(device) or (
        device is None and (isinstance(args[0], _Pretend) if function in _COPIES and args else bool(here))
    )
    plain_args, plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, _Pretend) else leaf, (args, kwargs))
    if device is not None:
        plain["device"] = torch.device("cpu") if _is_pretend(device) else device
    plain.pop("pin_memory", None)
    out = function(*plain_args, **plain)
    out = tree_map(lambda leaf: _Pretend(leaf) if isinstance(leaf, torch.Tensor) and to else leaf, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if to and here else out


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())  # torch takes a name once per process


@contextlib.contextmanager
def present() -> Iterator[None]:
    """Inside the block there is the device ``pretend``, and it is the active one, in float32."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that ``model.double()`` needs no ``tensor.data``
    try:
        with _Dispatch(), runtime.using(NAME, "float32"):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
