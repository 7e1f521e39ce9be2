"""An evaluation that nothing stands against: made before an engine is started or a GPU used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.evaluation.choice import Choice, choose
from baton.evaluation.judging import Judges
from baton.evaluation.model_source import Source, find_source
from baton.evaluation.options import EvalOptions
from baton.evaluation.questions import Question, load_questions, tokens_of
from baton.evaluation.weights import config_of, dtype_of
from baton.problems.prompts import load_tokenizer, stop_tokens

#: Tokens of a completion where the options do not say, and the model has room for them.
MAX_TOKENS = 2048


@dataclass(frozen=True)
class Plan:
    """`prompts`: tokens of each question. `max_tokens`: of a completion; `length`: with its prompt, at most."""

    options: EvalOptions
    source: Source
    questions: list[Question]
    prompts: list[list[int]]
    tokenizer: Any
    stop_token_ids: list[int]
    max_tokens: int
    length: int
    dtype: str
    choice: Choice


def make_plan(options: EvalOptions, judges: Judges, say: Callable[[str], None]) -> Plan:
    """Raises BatonError: whatever is wrong with options, model, data, answers, engine or output folder."""
    options.check()
    source = find_source(Path(options.model), None if options.base is None else Path(options.base))
    config = config_of(source)
    questions = load_questions(options)
    tokenizer = load_tokenizer(source.tokenizer)
    prompts = tokens_of(questions, tokenizer, options)
    max_tokens, length = _room(options, questions, prompts, config, say)
    judges.check(questions)
    choice = choose(options, config, len(questions))
    # Beside the weights lies the generation config too, but for an adapter.
    stops = {*stop_tokens(source.base or source.folder, tokenizer), *stop_tokens(source.folder, tokenizer)}
    dtype = options.dtype or dtype_of(config)
    _writable(Path(options.out))
    for words in (f"the model is {source.chosen}" if source.chosen else "", choice.why):
        if words:
            say(words)
    return Plan(options, source, questions, prompts, tokenizer, sorted(stops), max_tokens, length, dtype, choice)


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BatonError(
            "OUTPUT_NOT_WRITABLE",
            f"{out} cannot be written to.",
            expected="a folder to write to",
            found=error.strerror or str(error),
            action="Choose another folder with --out.",
        ) from error


def _room(
    options: EvalOptions, questions: list[Question], prompts: list[list[int]], config: Any, say: Callable[[str], None]
) -> tuple[int, int]:
    """Tokens of a completion, the same for all problems, and of a completion with its prompt."""
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    prompt = len(prompts[longest])
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    wanted = options.max_tokens or 1
    if positions is not None and prompt + wanted > positions:
        raise BatonError(
            "PROMPT_TOO_LONG",
            f"The prompt at {questions[longest].place} leaves no room for an answer.",
            expected=f"at most {positions - wanted} tokens ({positions} positions less {wanted} of the answer)",
            found=f"{prompt} tokens",
            action="Lower --max-tokens, leave such problems out, or use a model with more positions.",
        )
    room = MAX_TOKENS if positions is None else min(MAX_TOKENS, positions - prompt)
    max_tokens = options.max_tokens or room
    if max_tokens < MAX_TOKENS and options.max_tokens is None:
        say(f"answers are cut off after {max_tokens} tokens: the model has {positions} positions")
    return max_tokens, prompt + max_tokens
