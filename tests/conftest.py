"""The order of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = [HERE / "test_readme.py", HERE / "train", HERE / "recipes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(long) for long in LONG))
