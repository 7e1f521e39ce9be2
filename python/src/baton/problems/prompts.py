"""Prompts: texts or chat messages, filled from columns, and the tokens that a model is given for them.

Training and evaluation say the same things about them under other names of options, which the caller gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from baton.errors import BatonError

Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = "str | list[Message]"

# {name}, and {{name}} for itself. Anything else in braces is text: \boxed{}, {"json": 1}.
_PLACEHOLDER = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")


@dataclass(frozen=True)
class OptionNames:
    """What the options are called that an error sends its reader to."""

    prompt: str
    chat: str
    no_chat: str  # how the chat template is turned off
    system: str


def fill(template: str, column: Callable[[str], Any]) -> str:
    """`template` with `column(name)` in place of each {name}; {{name}} stands for {name} itself."""

    def one(match: re.Match[str]) -> str:
        literal, name = match.groups()
        return f"{{{literal}}}" if literal is not None else str(column(name))

    return _PLACEHOLDER.sub(one, template)


def check_template(template: str, option: str) -> None:
    """Raises BatonError BAD_OPTIONS for a template of prompts that would all be the same."""
    if not any(name for _, name in _PLACEHOLDER.findall(template)):
        raise BatonError(
            "BAD_OPTIONS",
            f"{option}: it names no column, so every problem would get the same prompt.",
            expected="at least one column in braces, such as {question}",
            found=repr(template[:120]),
            action=f"Put the column of the problem into {option}; {{{{name}}}} stands for {{name}} itself.",
        )


def checked_prompt(prompt: Any, place: str, names: OptionNames) -> Prompt:
    """`prompt` itself. Raises BatonError DATA_BAD_PROMPT where it is neither a text nor messages, or empty."""
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        messages = cast("list[Any]", prompt)
        if all(_is_message(message) for message in messages):
            return messages
    raise BatonError(
        "DATA_BAD_PROMPT",
        f"The prompt at {place} cannot be used.",
        expected="a text, or a list of messages with texts as `role` and `content`; not empty",
        found=repr(prompt)[:120],
        action=f"Correct this line, or {names.prompt}.",
    )


def with_system(prompt: Prompt, system: str) -> list[Message]:
    """Messages that begin with a system message: their own, if they have one."""
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": system}, *messages]


def prompt_tokens(
    prompt: Prompt, tokenizer: Any, chat: Literal["auto"] | bool, place: str, names: OptionNames
) -> list[int]:
    """What the model is given. `chat` auto: in the chat template, where the tokenizer has one.

    Raises BatonError BAD_OPTIONS, NO_CHAT_TEMPLATE, CHAT_TEMPLATE_FAILED or DATA_BAD_PROMPT.
    """
    template = getattr(tokenizer, "chat_template", None)
    if chat is False and not isinstance(prompt, str):
        raise BatonError(
            "BAD_OPTIONS",
            f"{names.chat}: only a chat template can join the messages at {place}.",
            expected="auto or true",
            found="false",
            action=f"Correct {names.chat}, or give prompts as texts.",
        )
    if not template and (chat is True or not isinstance(prompt, str)):
        raise BatonError(
            "NO_CHAT_TEMPLATE",
            "The model's tokenizer has no chat template.",
            expected=f"a chat template, as {names.chat} is true" if chat is True else "a chat template for messages",
            found=f"none in {getattr(tokenizer, 'name_or_path', 'its folder')}",
            action=f"Use a model made for chat, or texts as prompts, no {names.system}, and {names.no_chat}.",
        )
    if not template or chat is False:
        tokens = list(tokenizer(prompt)["input_ids"])
    else:
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        # The template writes the special tokens; the tokenizer would add a second one at the start.
        text = _templated(messages, tokenizer, place, names)
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise BatonError(
            "DATA_BAD_PROMPT",
            f"The prompt at {place} has no tokens.",
            expected="at least one token",
            found=repr(prompt)[:120],
            action="Correct this line.",
        )
    return tokens


def load_tokenizer(folder: Path) -> Any:
    """Raises BatonError TOKENIZER_NOT_FOUND."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        raise BatonError(
            "TOKENIZER_NOT_FOUND",
            f"The tokenizer of {folder} cannot be loaded.",
            expected="tokenizer.json or another file that transformers' AutoTokenizer reads",
            found=f"{type(error).__name__}: {str(error)[:300]}",
            action="Download the whole model, with its tokenizer.",
        ) from error


def stop_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The tokenizer's end of text, and what the model's generation config has: chat models end a turn with another."""
    from transformers import GenerationConfig

    found: set[int] = set()
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    if (folder / "generation_config.json").is_file():
        ends: Any = GenerationConfig.from_pretrained(str(folder)).eos_token_id
        found.update([ends] if isinstance(ends, int) else [int(end) for end in ends or ()])
    return tuple(sorted(found))


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    parts = cast("dict[str, Any]", message)
    return isinstance(parts.get("role"), str) and isinstance(parts.get("content"), str)


def _templated(messages: list[Message], tokenizer: Any, place: str, names: OptionNames) -> str:
    begun = messages[-1]["role"] == "assistant"  # an answer that the model is to go on with
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except Exception as error:  # templates raise what they like, for roles that they do not know
        raise BatonError(
            "CHAT_TEMPLATE_FAILED",
            f"The model's chat template does not take the messages at {place}.",
            expected="roles and an order of them that the template knows",
            found=f"{type(error).__name__}: {error}; roles {', '.join(message['role'] for message in messages)}",
            action=f"Correct the messages, or leave {names.system} out.",
        ) from error
