"""Systems that parity is tested with: one that is not installed skips its tests and says why."""

from __future__ import annotations

from typing import Any

import peer_openrlhf
import peer_verl
import pytest
from peers import Missing


@pytest.fixture(scope="session")
def verl() -> Any:
    """Its module of algorithms."""
    try:
        return peer_verl.core()
    except Missing as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def openrlhf() -> Any:
    """Its modules of losses and of advantages."""
    try:
        return peer_openrlhf.modules()
    except Missing as e:
        pytest.skip(str(e))
