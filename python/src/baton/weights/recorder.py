"""Learning what an engine's `load_weights` does, by watching it once.

The engine loads scratch tensors of the trainer's names and shapes while every torch operation is seen. A plain copy
from a view of a scratch tensor into a parameter is a rule that holds for every later sync: source name, offset,
shape and strides, and the address it goes to; so is one that rounds float32 to bfloat16. Constants (padding that is
filled, a table that does not come from the trainer) are rules as well. Whatever else reaches a parameter (arithmetic,
another conversion, a copy of something computed) makes the recording unusable, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from baton.weights.dtypes import ELEMENT_BYTES
from baton.weights.manifest import TensorSpec

aten = torch.ops.aten

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ELEMENT_BYTES}


class Loads(Protocol):
    """The part of an engine's model that is needed here."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any: ...
    def named_parameters(self) -> Iterable[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class Copy:
    """A view of tensor `source` copied to `address`. Offsets and strides in elements, one stride a dimension.

    `rounded`: it is float32 and becomes bfloat16.
    """

    order: int
    source: int
    offset: int
    shape: tuple[int, ...]
    source_strides: tuple[int, ...]
    address: int
    strides: tuple[int, ...]
    rounded: bool = False


@dataclass(frozen=True)
class Fill:
    """A view of a parameter set to a constant: one value, or a tensor of them (in host memory) that does not come from
    the trainer. `target` stays valid while the engine keeps its addresses."""

    order: int
    target: Tensor
    value: float | Tensor

    def apply(self) -> None:
        if isinstance(self.value, Tensor):
            self.target.copy_(self.value)
        else:
            self.target.fill_(self.value)


@dataclass(frozen=True)
class Parameter:
    """Where one of the engine's parameters lies."""

    name: str
    address: int
    bytes: int


@dataclass
class Recording:
    """What `load_weights` did. `obstacle`: why it cannot be repeated as copies; None when it can."""

    tensors: tuple[TensorSpec, ...]
    #: Empty when `load_weights` moves them.
    parameters: list[Parameter] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    #: Views of parameters that are written in a way that cannot be repeated.
    others: list[Tensor] = field(default_factory=list)
    obstacle: str | None = None


def parameters_of(model: Loads) -> list[Parameter]:
    """Addresses of the engine's parameters, each storage range once (tied parameters share theirs)."""
    found: dict[tuple[int, int], Parameter] = {}
    for name, tensor in model.named_parameters():
        # Without this a strided parameter would be taken for fewer bytes than it spans.
        if not tensor.is_contiguous():
            raise ValueError(f"parameter {name} is not contiguous")
        place = (tensor.data_ptr(), tensor.numel() * tensor.element_size())
        found.setdefault(place, Parameter(name, *place))
    return list(found.values())


def record(model: Loads, tensors: Sequence[TensorSpec], device: torch.device) -> Recording:
    """Runs `model.load_weights` over scratch tensors and returns what it did. The parameters must be mapped; what
    they hold afterwards is undefined. At most a few scratch tensors exist at a time."""
    recording = Recording(tuple(tensors), parameters_of(model))
    watch = _Watch(recording, model)
    with torch.no_grad(), watch:
        model.load_weights(_scratch(tensors, device, watch.begin))
    if parameters_of(model) != recording.parameters:
        recording.parameters.clear()  # what was written is no longer where they lie
        recording.obstacle = recording.obstacle or "load_weights moves parameters to other memory"
    return recording


def _scratch(
    tensors: Sequence[TensorSpec], device: torch.device, begin: Callable[[int, Tensor], None]
) -> Iterator[tuple[str, Tensor]]:
    for index, spec in enumerate(tensors):
        tensor = torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=device)
        begin(index, tensor)
        yield spec.name, tensor


@dataclass
class _Origin:
    """What is known of a storage: it is scratch tensor `source`, or was computed from it by `by`."""

    storage: StorageWeakRef
    source: int
    by: str | None


class _Watch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import torch's whole compiler at the first operation: seconds of every worker's start.
        return False

    def __init__(self, recording: Recording, model: Loads) -> None:
        super().__init__()
        self._recording = recording
        # The storage of a parameter may be larger than the parameter (one block for several of them).
        self._targets = {_key(tensor) for _, tensor in model.named_parameters()}
        self._origins: dict[int, _Origin] = {}
        self._order = 0

    def begin(self, source: int, tensor: Tensor) -> None:
        """Names the storage of `tensor` as that of tensor number `source`; forgets storages that are gone."""
        self._origins = {key: o for key, o in self._origins.items() if not o.storage.expired()}
        self._origins[_key(tensor)] = _Origin(StorageWeakRef(tensor.untyped_storage()), source, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and (origin := self._origin(args[0])) is not None:
            self._object(f"a value of {self._name(origin)} is read")
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor)
        ]
        written += [
            value
            for argument in func._schema.arguments
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and isinstance(value := kwargs.get(argument.name), Tensor)
        ]
        result = func(*args, **kwargs)
        self._order += 1
        for target in written:
            if _key(target) in self._targets:
                self._note_write(func, target, args, kwargs)
            else:
                self._note_derived(func, target, (*args, *kwargs.values()))
        if not written:
            for made in result if isinstance(result, list | tuple) else (result,):
                if isinstance(made, Tensor):
                    self._note_derived(func, made, (*args, *kwargs.values()))
        return result

    def _note_write(self, func: Any, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if target.numel() == 0:
            return
        if func is aten.copy_.default:
            self._note_copy(target, args[1])
        elif func is aten.fill_.Scalar:
            self._recording.fills.append(Fill(self._order, target.detach(), float(args[1])))
        elif func is aten.zero_.default:
            self._recording.fills.append(Fill(self._order, target.detach(), 0.0))
        else:
            source = next((o for a in (*args, *kwargs.values()) if (o := self._origin(a))), None)
            found = f"{func} is applied to a parameter" + (f" with {self._name(source)}" if source else "")
            self._other(target, found)

    def _note_copy(self, target: Tensor, source: Tensor) -> None:
        origin = self._origin(source)
        rounded = (source.dtype, target.dtype) == (torch.float32, torch.bfloat16)
        if _key(source) in self._targets:
            self._other(target, "a parameter is copied from another one")
        elif origin is None:
            self._recording.fills.append(Fill(self._order, target.detach(), source.detach().cpu().clone()))
        elif origin.by is not None:
            self._other(target, f"{self._name(origin)} passes through {origin.by} on its way into a parameter")
        elif source.dtype != target.dtype and not rounded:
            self._other(target, f"{self._name(origin)} is converted from {source.dtype} to {target.dtype}")
        else:
            source = source.expand(target.shape)
            self._recording.copies.append(
                Copy(
                    self._order,
                    origin.source,
                    int(source.storage_offset()),
                    tuple(target.shape),
                    tuple(source.stride()),
                    target.data_ptr(),
                    tuple(target.stride()),
                    rounded,
                )
            )

    def _note_derived(self, func: Any, result: Tensor, args: tuple[Any, ...]) -> None:
        """Remembers that `result` has new memory that was computed from a scratch tensor."""
        if _key(result) in self._origins and not self._origins[_key(result)].storage.expired():
            if func._schema.is_mutable:  # the scratch tensor itself was changed in place
                self._origins[_key(result)].by = str(func)
            return
        flat = (a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,)))
        origin = next((o for a in flat if (o := self._origin(a))), None)
        if origin is not None:
            by = origin.by or str(func)
            self._origins[_key(result)] = _Origin(StorageWeakRef(result.untyped_storage()), origin.source, by)

    def _origin(self, value: Any) -> _Origin | None:
        if not isinstance(value, Tensor):
            return None
        origin = self._origins.get(_key(value))
        return None if origin is None or origin.storage.expired() else origin

    def _name(self, origin: _Origin) -> str:
        return repr(self._recording.tensors[origin.source].name)

    def _other(self, target: Tensor, reason: str) -> None:
        self._recording.others.append(target.detach())
        self._object(reason)

    def _object(self, reason: str) -> None:
        if self._recording.obstacle is None:
            self._recording.obstacle = reason


def _key(tensor: Tensor) -> int:
    """Identity of the memory block behind a tensor, whatever view of it this is."""
    return tensor.untyped_storage()._cdata
