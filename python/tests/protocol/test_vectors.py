"""Frames that were written down once, in both languages; BATON_UPDATE_VECTORS=1 writes Python's anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from strategies import members, struct

from baton.protocol import messages
from baton.protocol.frames import decode, encode

FIXTURES = Path(__file__).parents[3] / "test" / "fixtures" / "protocol"
UNIONS = {"client": messages.FromClient, "controller": messages.FromController}


def plain(value: Any) -> Any:
    """JSON of a message as it is on the wire, binary as {"binary": hexadecimal}."""
    if isinstance(value, bytes):
        return {"binary": value.hex()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


def wire(message: Any) -> Any:
    return plain(msgspec.msgpack.decode(encode(message)))


def same(left: Any, right: Any) -> bool:
    """Equal, where 1 and 1.0 are the same number."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right if isinstance(left, bool | str) else left == right


def draw(kind: type[msgspec.Struct]) -> list[Any]:
    """Some messages of one kind, the same ones each time."""
    drawn: list[Any] = []

    @seed(1)
    @settings(max_examples=6, database=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(struct(kind))
    def collect(message: Any) -> None:
        drawn.append(message)

    collect()
    return drawn[-3:]


def update_python() -> None:
    vectors = [
        {"from": sender, "message": wire(message), "payload": encode(message).hex()}
        for sender, union in UNIONS.items()
        for kind in members(union)
        for message in draw(kind)
    ]
    lines = ",\n".join(json.dumps(vector, ensure_ascii=True) for vector in vectors)
    (FIXTURES / "python.json").write_text(f"[\n{lines}\n]\n")


if os.environ.get("BATON_UPDATE_VECTORS") == "1":
    update_python()


@pytest.mark.parametrize("name", ["typescript.json", "python.json"])
def test_vectors_are_decoded_to_what_they_say(name: str) -> None:
    vectors = json.loads((FIXTURES / name).read_text())
    assert len(vectors) > 60
    for vector in vectors:
        message = decode(bytes.fromhex(vector["payload"]), UNIONS[vector["from"]])
        assert same(wire(message), vector["message"]), vector


@pytest.mark.parametrize("sender", ["client", "controller"])
def test_vectors_have_every_message(sender: str) -> None:
    for name in ("typescript.json", "python.json"):
        vectors = json.loads((FIXTURES / name).read_text())
        types = {vector["message"]["type"] for vector in vectors if vector["from"] == sender}
        assert types == {kind.__struct_config__.tag for kind in members(UNIONS[sender])}


def test_vectors_of_python_are_what_it_writes_today() -> None:
    for vector in json.loads((FIXTURES / "python.json").read_text()):
        payload = bytes.fromhex(vector["payload"])
        assert encode(decode(payload, UNIONS[vector["from"]])) == payload
