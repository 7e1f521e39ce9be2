"""How much is tested: see test/integration/extent.ts, which says the same of the tests in TypeScript."""

from __future__ import annotations

import os

import pytest

#: Every variant of the long tests (`npm test -- --all`), not one of each kind.
ALL = os.environ.get("BATON_ALL_TESTS") == "1"

only_in_all = pytest.mark.skipif(not ALL, reason="a variant of another test: npm test -- --all")
