"""A second device on a machine that has none: tensors that keep their values and say that they are elsewhere.

What mixes them with those of the CPU fails, as it would on CUDA; a copy alone brings a value back. So a stage that ran there
has moved everything it needs, and its result can be compared with that of the CPU.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")  # autograd takes its gradients on the CPU's thread: no device is asked for
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)  # indices may be on the CPU


class Away(torch.Tensor):
    """A tensor elsewhere; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Away":
        made: Away = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # its stub lacks it
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.held})"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]  # torch asks whether there are values
        return False

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # a checkpoint is read on the CPU

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = Away(self.held.clone())
        copied = torch.nn.Parameter(copied, False) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Accelerator(accelerate.Accelerator):
    @property
    def device(self) -> torch.device:
        return ELSEWHERE


@contextlib.contextmanager
def elsewhere(same: bool = False) -> Iterator[None]:
    """Inside it tensors can be sent `ELSEWHERE`, and trainings are there.

    Args:
        same: a parameter that moves stays the same object, as on CUDA and as an optimizer needs it; one that
            something else refers to, as in a traced network, cannot.
    """
    plain = torch.tensor, accelerate.Accelerator
    torch.tensor, accelerate.Accelerator = _placed(torch.tensor), _Accelerator  # type: ignore[misc]
    torch.__future__.set_swap_module_params_on_conversion(same)
    try:
        with _Mode():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch.tensor, accelerate.Accelerator = plain  # type: ignore[misc]


def _placed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor` makes a tensor without values on this device, and no operator is called."""

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return tensor


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with torch.inference_mode(False), torch.no_grad():
        asked = kwargs.get("device")
        away = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Away)]
        goes = bool(away) if asked is None else torch.device(asked) == ELSEWHERE
        _check_devices(func, args, kwargs, goes)
        if goes and asked is not None:
            kwargs = kwargs | {"device": "cpu"}
        if func is _aten.resize_.default and away:
            return _resized(*args)
        args, kwargs = tree_map(lambda each: each.held if isinstance(each, Away) else each, (args, kwargs))
        found = func(*args, **kwargs)
        same = {id(each.held): each for each in away}  # an operator in place returns its very argument
        return tree_map(
            lambda each: same.get(id(each), Away(each) if goes else each) if isinstance(each, torch.Tensor) else each,
            found,
        )


def _check_devices(func: Any, args: Any, kwargs: dict[str, Any], goes: bool) -> None:
    """A single number may come from the CPU; draws need a generator of their own device."""
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    places = {isinstance(each, Away) for each in given if isinstance(each, Away) or each.dim()}
    indexed = func in _INDEXING and isinstance(args[0], Away)
    if len(places) > 1 and func not in _COPIES and not indexed:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {ELSEWHERE} and cpu")
    generator = kwargs.get("generator")
    if goes and generator is not None:
        raise RuntimeError(f"{func}: expected a generator of device {ELSEWHERE}, but found {generator.device}")


def _resized(tensor: Away, size: Any, **_: Any) -> Away:
    held = tensor.held.resize_(size)
    tensor.data = Away(held)
    tensor.held = held
    return tensor
