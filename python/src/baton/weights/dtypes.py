"""The types that weights may have, by their names on the wire (as in torch, without the prefix). No torch is needed."""

from __future__ import annotations

#: Bytes of one element.
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
