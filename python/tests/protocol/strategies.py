"""Generated messages, from the Structs themselves."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from baton.protocol import messages

BORDERS = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**53 - 1]


def _integers(minimum: int, maximum: int) -> st.SearchStrategy[int]:
    borders = [n for n in [*BORDERS, *(-n for n in BORDERS)] if minimum <= n <= maximum]
    return st.sampled_from(borders) | st.integers(minimum, maximum)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field type of the protocol."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, meta = get_args(kind)
        if base is int:
            return _integers(meta.ge, meta.le)
        low = meta.ge if meta.ge is not None else meta.gt
        return st.floats(
            min_value=low,
            max_value=meta.le,
            exclude_min=meta.gt is not None,
            allow_nan=False,
            allow_infinity=False,
        ).map(lambda value: value + 0.0)  # -0.0 becomes 0.0
    if origin is Literal:
        return st.sampled_from(get_args(kind))
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(member) for member in get_args(kind)])
    if origin is list:
        return st.lists(of_type(get_args(kind)[0]), max_size=5)
    if origin is dict:
        return st.dictionaries(st.text(min_size=1, max_size=8), of_type(get_args(kind)[1]), max_size=4)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        type(None): st.none(),
        bool: st.booleans(),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=100),
        float: st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0),
    }
    return simple[kind] if kind in simple else struct(kind)


def struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Values of one Struct."""
    hints = get_type_hints(kind, dict(vars(messages)), include_extras=True)
    return st.builds(kind, **{name: of_type(hints[name]) for name in kind.__struct_fields__})


def members(union: Any) -> list[type[msgspec.Struct]]:
    """The messages of FromClient or FromController."""
    return list(typing.get_args(union))


from_client = st.one_of([struct(kind) for kind in members(messages.FromClient)])
from_controller = st.one_of([struct(kind) for kind in members(messages.FromController)])
