"""Reward functions by the names that a recipe gives them: built-in ones, of a module, of a file."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from baton.errors import BatonError
from baton.training.grpo.builtin_rewards import BUILTIN
from baton.training.grpo.options import RewardOptions
from baton.weights.names import nearest

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Reward:
    """A reward function with its name, and the arguments that it takes. Made by `of`."""

    name: str
    function: Callable[..., Any]
    takes: frozenset[str] | None  # names of arguments; None: all there are but `hides`
    needs: frozenset[str]
    hides: frozenset[str]  # given already: a column of the same name must not come in their way
    by_position: bool  # completions are the first argument, whatever it is called

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> Reward:
        fixed: Mapping[str, Any] = function.keywords if isinstance(function, functools.partial) else {}
        parameters = {key: each for key, each in _parameters(function).items() if key not in fixed}
        named = {key for key, each in parameters.items() if each.kind in _BY_NAME}
        hides = set(fixed)
        by_position = "completions" not in named
        if by_position:
            first = next((key for key, each in parameters.items() if each.kind in _BY_POSITION), None)
            by_position = first is not None and first != "prompts"
            if first is not None and by_position:
                named.discard(first)
                hides.add(first)
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        needs = frozenset(key for key in named if parameters[key].default is inspect.Parameter.empty)
        label = name or getattr(function, "__name__", type(function).__name__)
        return cls(label, function, None if anything else frozenset(named), needs, frozenset(hides), by_position)

    def described(self) -> str:
        """Its name, and a digest of the file that it stands in: the same on nodes that judge alike."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        try:
            text = Path(inspect.getsourcefile(function) or "").read_bytes()
        except (OSError, TypeError):  # compiled, or an object that can be called
            return self.name
        return f"{self.name} {hashlib.sha256(text).hexdigest()[:16]}"

    def __call__(self, samples: Mapping[str, list[Any]]) -> Any:
        """`samples`: prompts, completions and all columns."""
        wanted = (samples.keys() if self.takes is None else self.takes) - self.hides
        given = {key: values for key, values in samples.items() if key in wanted}
        if not self.by_position:
            return self.function(**given)
        given.pop("completions", None)
        return self.function(samples["completions"], **given)

    def check(self, columns: Sequence[str], place: str = "the data") -> None:
        """Whether these columns are enough. Raises BatonError REWARD_COLUMN_MISSING."""
        for name in sorted(self.needs - {"prompts", "completions", *columns}):
            raise BatonError(
                "REWARD_COLUMN_MISSING",
                f"The reward function {self.name} needs a column that {place} does not have.",
                expected=f"a column `{name}`; {nearest(name, columns, whose='those there')}",
                found=f"the columns {', '.join(columns) or '(none)'}",
                action="Name the column in grpo.data.columns, or give the argument a default value.",
            )


def load_reward(options: RewardOptions, recipe_folder: Path) -> Reward:
    """The function that a recipe names, with its arguments.

    Raises BatonError REWARD_NOT_FOUND, REWARD_NOT_CALLABLE, REWARD_ARGUMENT or PYTHON_PACKAGE_MISSING.
    """
    place, colon, attribute = options.function.rpartition(":")
    if not colon:
        if options.function not in BUILTIN:
            expected = f"{nearest(options.function, BUILTIN, whose='the built-in ones')}; or module:function"
            raise _not_found(options, expected, found=options.function)
        return Reward.of(_built_in(options), options.label)
    function: Any = _module(options, place, recipe_folder)
    for step in attribute.split("."):
        if not hasattr(function, step):
            public = [name for name in dir(function) if not name.startswith("_")]
            raise _not_found(options, nearest(step, public, whose=f"the names in {place}"), found=step)
        function = getattr(function, step)
    if not callable(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        what = "a class" if inspect.isclass(function) else "a coroutine" if callable(function) else repr(function)
        raise BatonError(
            "REWARD_NOT_CALLABLE",
            f"{options.function} is no reward function.",
            expected="a plain function f(completions, prompts=..., **columns) -> list of numbers",
            found=what[:120],
            action="Name a function in grpo.rewards.",
        )
    parameters = _parameters(function)
    anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    by_name = [key for key, each in parameters.items() if each.kind in _BY_NAME]
    for name in options.arguments:
        if name not in by_name and not anything:
            raise _argument(options, nearest(name, by_name, whose="its arguments"), found=name)
    return Reward.of(functools.partial(function, **options.arguments), options.label)


def _built_in(options: RewardOptions) -> Callable[..., Any]:
    make = BUILTIN[options.function]
    try:
        return make(**options.arguments)
    except (TypeError, ValueError) as error:
        raise _argument(options, f"{options.function}{inspect.signature(make)}", found=str(error)) from error


def _module(options: RewardOptions, place: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # modules beside the recipe; last, so that they hide nothing
    path = (folder / place).resolve()
    if place.endswith(".py") and not path.is_file():
        raise _not_found(options, expected=f"a Python file {path}", found="no such file")
    try:
        return _run_file(path) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the module does when it is imported
        lines = "".join(traceback.format_exception(error)).rstrip()
        raise _not_found(options, expected=f"that {place} can be imported", found=lines) from error


def _run_file(path: Path) -> ModuleType:
    """The file as a module, run once however many functions are taken from it."""
    name = f"baton_rewards_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # one of C that does not tell
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _not_found(options: RewardOptions, expected: str, found: str) -> BatonError:
    message = f"The reward function {options.function} cannot be found."
    action = "Write a built-in name, `module:function` or `file.py:function` into grpo.rewards."
    return BatonError("REWARD_NOT_FOUND", message, expected, found, action)


def _argument(options: RewardOptions, expected: str, found: str) -> BatonError:
    message = f"The reward function {options.function} does not take these arguments."
    return BatonError("REWARD_ARGUMENT", message, expected, found, "Correct grpo.rewards[...].arguments.")
