"""These tests need a CUDA device; without one they are skipped, and ``pytest -m gpu`` says that none of them ran."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REASON = "no CUDA device was found"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=REASON))


def _nothing_ran(config: pytest.Config) -> bool:
    return config.option.markexpr == "gpu" and not torch.cuda.is_available()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whoever asks for the GPU's tests alone must not take skipped ones for passed ones."""
    if _nothing_ran(session.config):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _nothing_ran(config):
        terminalreporter.write_line(
            f"{REASON}: none of the GPU's tests ran; dlrm-recipes doctor looks for it", red=True
        )
