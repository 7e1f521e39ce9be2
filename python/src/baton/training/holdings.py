"""What training state there is: every tensor of engine and optimizer, by storage, with the role that it plays.

What a pause does with memory is decided by this identity, never by size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Role(Enum):
    """What a tensor is to the training. When several tensors share a storage, the first of these counts."""

    #: Weights that the engine needs (and that an optimizer changes).
    PARAMETER = "parameter"
    #: Weights that nobody changes: LoRA's base.
    FROZEN = "frozen"
    #: Weights of a model that is only read: a reference model.
    REFERENCE = "reference"
    #: Weights made anew for each handoff: with the adapters merged in, or gathered from other nodes.
    MERGED = "merged"
    #: Module buffers, and whatever else engine and optimizer keep between steps.
    BUFFER = "buffer"
    #: fp32 copies of the parameters that the optimizer steps on.
    MASTER = "master"
    #: The optimizer's own state, such as Adam's averages.
    MOMENT = "moment"
    #: Gradients, and the buffers that they are accumulated in.
    GRADIENT = "gradient"
    #: Buckets for collectives: their content is worth nothing between two steps.
    COMMUNICATION = "communication"
    #: Kept by an optimizer wrapper under a name that Baton does not know: saved, to be safe.
    OTHER = "other"

    #: By identity, as they compare: enum's own is slow, and thousands of tensors are looked at before each pause.
    __hash__ = object.__hash__


_ORDER = {role: position for position, role in enumerate(Role)}


class Labelled(NamedTuple):
    """One tensor of the training state."""

    name: str
    role: Role
    tensor: torch.Tensor
    #: Gradients only: a later step will use this content. If not, zeros are as good, and expected by DeepSpeed.
    live: bool = True
    #: The engine's weights come from it, so it stays until they have been taken over.
    for_engine: bool = True


@dataclass
class Holding:
    """One storage of the training state. `address` and `bytes` are those of the whole storage."""

    storage: torch.UntypedStorage
    role: Role
    live: bool
    for_engine: bool
    names: list[str] = field(default_factory=list)

    @property
    def key(self) -> int:
        return self.storage._cdata

    @property
    def address(self) -> int:
        return self.storage.data_ptr()

    @property
    def bytes(self) -> int:
        return self.storage.nbytes()

    @property
    def range(self) -> tuple[int, int]:
        return self.address, self.bytes


class Holdings:
    """The training state by storage, in the order in which it was found."""

    def __init__(self, tensors: Iterable[Labelled]) -> None:
        self._by_key: dict[int, Holding] = {}
        for label in tensors:
            self._add(label)

    def _add(self, label: Labelled) -> None:
        if label.tensor.is_meta:
            return
        storage = label.tensor.untyped_storage()
        if storage.nbytes() == 0:
            return
        holding = self._by_key.get(storage._cdata)
        if holding is None:
            holding = Holding(storage, label.role, label.live, label.for_engine)
            self._by_key[storage._cdata] = holding
        elif _ORDER[label.role] < _ORDER[holding.role]:
            holding.role, holding.live, holding.for_engine = label.role, label.live, label.for_engine
        elif label.role is holding.role:
            holding.live = holding.live or label.live
            holding.for_engine = holding.for_engine or label.for_engine
        holding.names.append(label.name)

    def __iter__(self) -> Iterator[Holding]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: int) -> bool:
        return key in self._by_key

    def of(self, *roles: Role) -> list[Holding]:
        return [holding for holding in self if holding.role in roles]

    def bytes_of(self, *roles: Role) -> int:
        return sum(holding.bytes for holding in self.of(*roles))
