from __future__ import annotations

import pytest
from standin import Standin, require_build


@pytest.fixture
def standin(tmp_path):
    require_build()
    return Standin(tmp_path)
