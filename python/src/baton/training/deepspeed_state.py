"""Where DeepSpeed 0.19 keeps its training state, for ZeRO stages 0 to 3.

The attributes named here were read from DeepSpeed's source. Whatever else an optimizer object holds is found by
`_rest` and saved, so that a version that keeps more loses nothing; it only copies more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from baton.training.held import held
from baton.training.holdings import Labelled, Role

if TYPE_CHECKING:
    from baton.training.merging import MergedWeights
    from baton.training.peers import PeerPartitions

#: Containers in containers are searched this deep for tensors that no name here covers.
_DEPTH = 4
#: Hold no tensor.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_SEQUENCES = (list, tuple, set, frozenset)


def stage_of(engine: Any) -> int:
    """The ZeRO stage, 0 to 3."""
    return int(engine.zero_optimization_stage())


def innermost_optimizer(engine: Any) -> Any:
    """The torch optimizer that all wrappers end in."""
    optimizer = engine.optimizer
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def masters_of(engine: Any) -> list[torch.Tensor]:
    """The tensors that the innermost optimizer steps on, on this rank."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        found = getattr(optimizer, name, None)
        if found:
            return list(found)
    return [parameter for group in innermost_optimizer(engine).param_groups for parameter in group["params"]]


def masters_are_parameters(engine: Any) -> bool:
    """Whether there is no separate fp32 copy (fp32 training under ZeRO-0 and ZeRO-3)."""
    parameters = {_storage_key(tensor) for tensor in _weights(engine.module)}
    return all(_storage_key(master) in parameters for master in masters_of(engine) if master.numel())


def state_bytes(engine: Any) -> int:
    """Parameters, masters and moments of this rank in bytes, by the formula of its ZeRO stage.

    The weights in full, or a partition of them in stage 3; for what is trained, a master of 4 bytes an element (none
    where the weights are masters themselves) and the optimizer's moments, partitioned from stage 1 on.
    """
    stage, ranks = stage_of(engine), int(engine.dp_world_size)
    parameters = list(engine.module.parameters())

    def elements(parameter: Any) -> int:
        whole = int(getattr(parameter, "ds_numel", parameter.numel()))
        return -(-whole // ranks) if stage == 3 else whole

    weights = sum(elements(parameter) * parameter.element_size() for parameter in parameters)
    trained = sum(elements(parameter) for parameter in parameters if parameter.requires_grad)
    if stage in (1, 2):
        trained = -(-trained // ranks)
    masters = masters_of(engine)
    master_bytes = 0 if not masters or masters_are_parameters(engine) else masters[0].element_size()
    return weights + trained * (master_bytes + _moment_bytes_per_element(engine))


def _moment_bytes_per_element(engine: Any) -> int:
    state = innermost_optimizer(engine).state
    for master in masters_of(engine):
        moments = [value for value in state.get(master, {}).values() if isinstance(value, torch.Tensor)]
        if moments and master.numel() > 1:
            return sum(moment.element_size() for moment in moments if moment.numel() == master.numel())
    # Before the first step there are none, and they need room all the same: the optimizers with betas (Adam and its
    # kin) make two as large as the master.
    group = innermost_optimizer(engine).param_groups[0]
    return 2 * masters_of(engine)[0].element_size() if "betas" in group else 0


def gradients_live(engine: Any) -> bool:
    """Whether there are gradients that a later step will use: true between backward and the step at a boundary."""
    optimizer = engine.optimizer
    flags = getattr(optimizer, "fp32_groups_has_gradients", None)
    if flags is not None:
        return any(any(group) for group in flags)
    averaged = getattr(optimizer, "averaged_gradients", None) or {}
    accumulated = getattr(optimizer, "all_grad_tensors", None) or {}
    if any(group is not None for group in (*averaged.values(), *accumulated.values())):
        return True
    if hasattr(optimizer, "grad_partitions_flat_buffer"):  # ZeRO-3 counts the micro-steps that it has summed up
        return optimizer.micro_step_id != 0 or getattr(optimizer, "_epilogue_ran_this_backward", False)
    return any(parameter.grad is not None for parameter in engine.module.parameters())


def let_go_of_gathered(engine: Any) -> None:
    """ZeRO-3: frees full copies of parameters that were gathered for a forward or backward pass. Not collective."""
    offload = parameter_offload(engine)
    if offload is not None:
        offload.empty_partition_cache()


def gather_persistent_again(engine: Any) -> None:
    """ZeRO-3: what its own step does at the end; small parameters stay gathered between steps. Collective."""
    persistent = getattr(parameter_offload(engine), "persistent_parameters", None)
    if persistent:
        persistent[0].all_gather(persistent)


def parameter_offload(engine: Any) -> Any:
    """The part of ZeRO-3 that gathers and frees parameters; None in other stages."""
    optimizer: Any = getattr(engine, "optimizer", None)
    if hasattr(optimizer, "parameter_offload"):
        return optimizer.parameter_offload
    return optimizer if hasattr(optimizer, "persistent_parameters") else None


def module_of(user: Any) -> Any:
    """The module of an engine, or the module itself."""
    return user.module if hasattr(user, "zero_optimization_stage") else user


def training_tensors(
    engine: Any,
    frozen: Iterable[Any] = (),
    merged: MergedWeights | None = None,
    peers: PeerPartitions | None = None,
) -> Iterator[Labelled]:
    """Every tensor of engine, optimizer and `frozen` (modules or engines that are not trained), what is `merged` for
    the engine in place of weights with adapters, and what is gathered for it from `peers`.
    """
    live = gradients_live(engine)
    stand_ins = set[int]() if merged is None else merged.bases
    parameters = list(engine.module.named_parameters())
    yield from _module_tensors(engine.module, parameters, "", live, trained=True, unread=stand_ins)
    for index, buffer in enumerate([] if merged is None else merged.buffers):
        yield Labelled(f"merged[{index}]", Role.MERGED, buffer)
    for index, buffer in enumerate([] if peers is None else peers.buffers):
        yield Labelled(f"peers[{index}]", Role.MERGED, buffer)
    yield from _optimizer_tensors(engine, live)
    for position, other in enumerate(frozen):
        module = module_of(other)
        named = module.named_parameters()
        yield from _module_tensors(module, named, f"frozen[{position}].", live, trained=False, unread=set())
    # DeepSpeed lists the parameters over and over again.
    yield from _rest(engine, frozenset(id(parameter) for _, parameter in parameters))


def _module_tensors(
    module: Any, parameters: Iterable[tuple[str, Any]], prefix: str, live: bool, *, trained: bool, unread: set[int]
) -> Iterator[Labelled]:
    """`parameters`: the module's, by name. `unread`: storages of weights that no engine looks at."""
    for name, parameter in parameters:
        role = Role.REFERENCE if not trained else Role.PARAMETER if parameter.requires_grad else Role.FROZEN
        partition = getattr(parameter, "ds_tensor", None)
        for_engine = trained and _storage_key(held(parameter)) not in unread
        if partition is not None:
            yield Labelled(prefix + name, role, partition, for_engine=for_engine)
            yield Labelled(f"{prefix}{name} (gathered)", Role.BUFFER, parameter.data)
            secondary = getattr(parameter, "ds_secondary_tensor", None)
            if secondary is not None:
                yield Labelled(f"{prefix}{name} (secondary partition)", Role.BUFFER, secondary)
        else:
            yield Labelled(prefix + name, role, parameter.data, for_engine=for_engine)
        for attribute in ("grad", "grad_accum"):
            gradient = getattr(parameter, attribute, None)
            if gradient is not None:
                yield Labelled(f"{prefix}{name}.{attribute}", Role.GRADIENT, gradient, live=live)
    for name, buffer in module.named_buffers():
        yield Labelled(prefix + name, Role.BUFFER, buffer)


def _weights(module: Any) -> Iterator[torch.Tensor]:
    for parameter in module.parameters():
        yield held(parameter)


#: Attributes of DeepSpeed's optimizer wrappers that hold tensors, in any nesting of containers.
_ATTRIBUTES: dict[Role, tuple[str, ...]] = {
    Role.PARAMETER: ("bit16_groups_flat", "bf16_groups_flat", "fp16_groups_flat", "lp_param_buffer"),
    Role.GRADIENT: (
        "averaged_gradients",
        "all_grad_tensors",
        "grad_partitions_flat_buffer",
        "fp32_groups_gradients_flat",
        "offload_gradient_dict",
    ),
}


def _optimizer_tensors(engine: Any, live: bool) -> Iterator[Labelled]:
    optimizer = engine.optimizer
    for role, attributes in _ATTRIBUTES.items():
        for attribute in attributes:
            for name, tensor in _tensors(getattr(optimizer, attribute, None), attribute):
                yield Labelled(name, role, tensor, live=live)
    for index, master in enumerate(masters_of(engine)):
        yield Labelled(f"master[{index}]", Role.MASTER, master)
        if master.grad is not None:
            yield Labelled(f"master[{index}].grad", Role.GRADIENT, master.grad, live=live)
    for name, tensor in _tensors(getattr(optimizer, "ipg_buckets", None), "ipg_buckets"):
        # A bucket also lists the parameters whose gradients it carries.
        if not isinstance(tensor, torch.nn.Parameter):
            yield Labelled(name, Role.COMMUNICATION, tensor)
    for index, (_, state) in enumerate(innermost_optimizer(engine).state.items()):
        for name, tensor in _tensors(state, f"state[{index}]"):
            yield Labelled(name, Role.MOMENT, tensor)


def _rest(engine: Any, known: frozenset[int]) -> Iterator[Labelled]:
    """Tensors in attributes of the optimizer wrappers, but for those of these ids; what was found keeps its role."""
    optimizer = engine.optimizer
    while optimizer is not None:
        for attribute, value in vars(optimizer).items():
            for name, tensor in _tensors(value, f"{type(optimizer).__name__}.{attribute}", known):
                yield Labelled(name, Role.OTHER, tensor)
        if isinstance(optimizer, torch.optim.Optimizer):
            return
        optimizer = getattr(optimizer, "optimizer", None)


def _tensors(value: Any, name: str, known: frozenset[int] = frozenset()) -> list[tuple[str, torch.Tensor]]:
    """The tensors in a value and in the containers that it is made of, each with where it was found.

    `known`: ids of tensors that are left out.
    """
    found: list[tuple[str, torch.Tensor]] = []
    _search(value, name, known, _DEPTH, found)
    return found


def _search(value: Any, name: str, known: frozenset[int], depth: int, found: list[tuple[str, torch.Tensor]]) -> None:
    # Before each pause this goes over thousands of tensors and many more numbers: a list is filled, and what has
    # nothing to add costs neither a call nor a name.
    if isinstance(value, torch.Tensor):
        found.append((name, value))
        return
    if depth == 0:
        return
    children: Iterable[tuple[Any, Any]]
    place: Callable[[Any], str]
    if isinstance(value, dict):
        ends = [next(iter(value.values()), None), next(reversed(value.values()), None)]
        if all(isinstance(end, (int, float, str)) for end in ends):
            return  # one of the many tables of flags and offsets, with an entry for each parameter and rank
        children, place = value.items(), _place_of_key
    elif isinstance(value, _SEQUENCES):
        children, place = enumerate(value), "[{}]".format
    else:
        children, place = ((field, getattr(value, field)) for field in _fields_of(type(value))), ".{}".format
    for key, inner in children:
        if type(inner) not in _PLAIN and id(inner) not in known:
            _search(inner, name + place(key), known, depth - 1, found)
    if isinstance(value, _SEQUENCES) and type(value) is not list:
        flat = getattr(value, "flat_partition", None)  # a list subclass that keeps the buffer of its views
        if flat is not None:
            found.append((f"{name}.flat_partition", flat))


def _place_of_key(key: Any) -> str:
    return f"[{key!r}]" if isinstance(key, (str, int)) else ""


@cache
def _fields_of(kind: type) -> tuple[str, ...]:
    """Of a dataclass; nothing of other classes."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
