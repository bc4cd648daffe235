"""What the tests of the trainer can use."""

from __future__ import annotations

import pytest

from ckptsurgeon.trainer.checks import Check

from .toy import init, source

__all__ = ["cheap", "init", "source"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin what takes longest first: with two processes the other one would wait for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that train again or start a process, and without TensorBoard's import."""
    from ckptsurgeon.trainer import running
    from ckptsurgeon.trainer.log import Log

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("cheap", "NOT RUN", "a test")])
    real = Log.__init__
    monkeypatch.setattr(Log, "__init__", lambda self, folder, step, **options: real(self, folder, step))
