"""A frozen dataclass from what a recipe says, strictly, and what there is to say about it.

Every field has `metadata={"help": ...}`; its type may carry a range (`Annotated[int, msgspec.Meta(ge=1)]`). Fields may
be such dataclasses themselves, tuples of them, or either or None.
"""

from __future__ import annotations

import math
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from baton.errors import BatonError
from baton.weights.names import nearest

T = TypeVar("T")

WIDTH = 100  # columns of the text for people
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def bad_option(path: str, message: str, expected: str, found: str, action: str = "") -> BatonError:
    """BAD_OPTIONS about the value at `path`, such as `grpo.data.files`."""
    return BatonError("BAD_OPTIONS", f"{path}: {message}", expected, found, action or f"Correct {path} in the recipe.")


def read(kind: type[T], values: Any, root: str) -> T:
    """An instance of the dataclass `kind`. `root` is the key of the recipe that `values` stood under.

    Raises BatonError BAD_OPTIONS: an unknown or missing key, a value of the wrong type or range, a number that is not
    finite.
    """
    _known_keys(kind, values, root)
    try:
        made = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _translated(str(error), kind, values, root) from None
    _finite(made, root)
    return made


def describe(kind: type, root: str) -> str:
    """One paragraph for each key: path, type, default, help."""
    paragraphs: list[str] = []
    for path, hint, field in _leaves(kind, root):
        line = f"{path}: {type_text(hint)}; {_default(field)}"
        paragraphs.append(
            "\n".join(
                [
                    *textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False),
                    *textwrap.wrap(
                        field.metadata["help"],
                        WIDTH,
                        initial_indent="    ",
                        subsequent_indent="    ",
                        break_on_hyphens=False,
                    ),
                ]
            )
        )
    return "\n".join(paragraphs) + "\n"


def _leaves(kind: type, path: str) -> Iterator[tuple[str, Any, Field[Any]]]:
    for field in fields(kind):
        hint = _hints(kind)[field.name]
        here = f"{path}.{field.name}"
        inner, several = _nested(hint)
        yield here, hint, field
        if inner is not None:
            yield from _leaves(inner, f"{here}[i]" if several else here)


def _known_keys(kind: type, values: Any, path: str) -> None:
    """msgspec ignores unknown keys of dataclasses; a misspelt option would silently keep its default."""
    if not isinstance(values, Mapping):
        return  # msgspec says so
    mapping = cast("Mapping[Any, Any]", values)
    names = [field.name for field in fields(kind)]
    for key, value in mapping.items():
        if key not in names:
            raise bad_option(
                f"{path}.{key}",
                "there is no such option.",
                expected=nearest(str(key), names, whose=f"the options of {path}"),
                found=str(key),
                action="Correct or remove it; `baton grpo --options` lists all of them.",
            )
        inner, several = _nested(_hints(kind)[key])
        if inner is None:
            continue
        if not several:
            _known_keys(inner, value, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for index, each in enumerate(cast("list[Any]", value)):
                _known_keys(inner, each, f"{path}.{key}[{index}]")


def _finite(value: Any, path: str) -> None:
    """YAML has .inf and .nan, and ranges with one end only let them pass."""
    if isinstance(value, float) and not math.isfinite(value):
        raise bad_option(path, "this number is not finite.", expected="a finite number", found=str(value))
    if is_dataclass(value):
        for field in fields(value):
            _finite(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple):
        for index, each in enumerate(cast("tuple[Any, ...]", value)):
            _finite(each, f"{path}[{index}]")


def _translated(text: str, kind: type, values: Any, root: str) -> BatonError:
    """msgspec's "Expected `int` >= 1 - at `$.data.limit`" as one of ours."""
    text, _, where = text.partition(" - at `$")
    where = where.rstrip("`")
    found, hint, help_text = values, cast("Any", kind), ""
    for step in _STEP.finditer(where):
        name, index = step.groups()
        inner, _ = _nested(hint)
        if name is not None and inner is not None:
            hint = _hints(inner)[name]
            help_text = _help(inner, name)
        if name is not None or index is not None:
            found = found[name if name is not None else int(index)]
    missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing is not None:
        inner = _nested(hint)[0] or kind
        name = missing[1]
        path = f"{root}{where}.{name}"
        expected = f"{type_text(_hints(inner)[name])}: {_help(inner, name)}"
        return bad_option(path, "this option has no default.", expected, "nothing", f"Write {path} into the recipe.")
    wanted = re.match(r"Expected (.*?)(?:, got .*)?$", text)
    expected = re.sub(r"`(\w+)`", lambda match: _WORDS.get(match[1], match[1]), wanted[1]) if wanted else ""
    if not wanted:
        expected = type_text(hint)
    if help_text:
        expected += f" ({help_text})"
    return bad_option(f"{root}{where}", "this value cannot be used.", expected, repr(found))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _help(kind: type, name: str) -> str:
    return next(field.metadata["help"] for field in fields(kind) if field.name == name)


def _nested(hint: Any) -> tuple[type | None, bool]:
    """The dataclass in a hint, if any, and whether there is a tuple of them."""
    if is_dataclass(hint):
        return cast("type", hint), False
    for part in get_args(hint):
        inner, several = _nested(part)
        if inner is not None:
            return inner, several or get_origin(hint) is tuple
    return None, False


def type_text(hint: Any) -> str:
    """A type as people write it: "whole number >= 1", "grpo | bnpo", "list of text"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        meta = parts[1]
        signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        ranges = [f"{sign} {getattr(meta, end):g}" for end, sign in signs if getattr(meta, end) is not None]
        return " ".join([type_text(parts[0]), " and ".join(ranges)]).rstrip()
    if origin is Literal:
        return " | ".join(str(each) for each in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(each) for each in parts)
    if origin is tuple:
        return f"list of {type_text(parts[0])}" if parts[-1] is ... else f"{len(parts)} times {type_text(parts[0])}"
    if origin is dict or is_dataclass(hint):
        return "mapping"
    known = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null"}
    return known.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return "default empty"
    if field.default is MISSING:
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return f"default {list(cast('tuple[Any, ...]', value))}"
    return f"default {'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
