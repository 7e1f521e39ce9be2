"""An evaluation that nothing stands against: made before an engine is started or a GPU used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.evaluation.choice import Choice, choose
from baton.evaluation.identity import identity
from baton.evaluation.judging import Judges
from baton.evaluation.model_source import Source, find_source
from baton.evaluation.options import EvalOptions
from baton.evaluation.questions import Question, load_questions, tokens_of
from baton.evaluation.weights import config_of, dtype_of
from baton.output_folder import not_writable
from baton.problems.prompts import load_tokenizer, stop_tokens

#: Tokens of a completion where the options do not say, and the model has room for them.
MAX_TOKENS = 2048


@dataclass(frozen=True)
class Plan:
    """`prompts`: tokens of each question. `max_tokens`: of a completion; `length`: with its prompt, at most.
    `identity`: what an evaluation must have in common with an unfinished one to go on from it."""

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
    identity: dict[str, Any]


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
    ends = {*stop_tokens(source.base or source.folder, tokenizer), *stop_tokens(source.folder, tokenizer)}
    stops = sorted(ends)
    dtype = options.dtype or dtype_of(config)
    whose = identity(options, source, questions, prompts, stops, max_tokens, dtype, choice)
    _writable(Path(options.out))
    for words in (f"the model is {source.chosen}" if source.chosen else "", choice.why):
        if words:
            say(words)
    return Plan(options, source, questions, prompts, tokenizer, stops, max_tokens, length, dtype, choice, whose)


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_writable(out, error) from error


def _room(
    options: EvalOptions, questions: list[Question], prompts: list[list[int]], config: Any, say: Callable[[str], None]
) -> tuple[int, int]:
    """Tokens of a completion, the same for all problems, and of a completion with its prompt."""
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    prompt = len(prompts[longest])
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    wanted = options.max_tokens or 1
    if positions is not None and wanted >= positions:
        raise BatonError(
            "BAD_OPTIONS",
            "--max-tokens: the model has no room for a prompt beside such a completion.",
            expected=f"less than the model's {positions} positions",
            found=str(wanted),
            action="Lower --max-tokens, or use a model with more positions.",
        )
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
