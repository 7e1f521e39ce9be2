"""Lines of JSONL files, with the place of each: what is wrong with one can then be found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import BatonError


def read_rows(path: Path, action: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of each line that is not blank; a place is file and line, from 1.

    `action`: what can be done about a file that is not there. Raises BatonError DATA_NOT_FOUND or DATA_NOT_JSON.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BatonError(
            "DATA_NOT_FOUND",
            f"The file of problems {path} cannot be read.",
            expected="a JSONL file",
            found=error.strerror or str(error),
            action=action,
        ) from error
    with file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if line:
                place = f"{path}, line {number}"
                yield place, _row(line, place)


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BatonError(
            "DATA_NOT_JSON",
            f"{place} is not a JSON object.",
            expected='one JSON object a line, such as {"prompt": "1+1=", "answer": "2"}',
            found=f"{error}: {line[:80].decode(errors='replace')}",
            action="Correct this line; a JSON list or a pretty-printed file has to become one object a line.",
        ) from error
