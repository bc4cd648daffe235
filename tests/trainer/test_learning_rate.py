"""The learning rate: up, then down, and never anywhere else."""

from __future__ import annotations

import pytest

from ckptsurgeon.trainer.config.settings import Settings
from ckptsurgeon.trainer.state.optimizer import lr_factor


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warm_up_is_a_line_that_reaches_the_full_rate(kind: str) -> None:
    settings = Settings(steps=100, warmup=4, schedule=kind)
    assert [lr_factor(settings, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(settings, 4) == 1.0


def test_what_falls_falls_to_the_final_share() -> None:
    for kind in ("cosine", "linear"):
        settings = Settings(steps=10, schedule=kind, final_lr=0.1)
        factors = [lr_factor(settings, step) for step in range(10)]
        assert factors == sorted(factors, reverse=True)
        assert lr_factor(settings, 10) == pytest.approx(0.1)
    assert lr_factor(Settings(steps=10, schedule="linear", final_lr=0.0), 5) == pytest.approx(0.5)
    assert lr_factor(Settings(steps=10, schedule="cosine", final_lr=0.0), 5) == pytest.approx(0.5)


def test_constant_stays() -> None:
    settings = Settings(steps=10, schedule="constant")
    assert {lr_factor(settings, step) for step in range(10)} == {1.0}


def test_what_falls_begins_after_the_warm_up_and_ends_at_the_last_step() -> None:
    """Halfway between, not halfway through the run."""
    for schedule in ("cosine", "linear"):
        settings = Settings(steps=100, warmup=20, schedule=schedule, final_lr=0.0)
        assert lr_factor(settings, 19) == lr_factor(settings, 20) == 1
        assert lr_factor(settings, 60) == pytest.approx(0.5)
        assert lr_factor(settings, 100) == pytest.approx(0)
