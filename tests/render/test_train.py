"""What a run looks like."""

from __future__ import annotations

import pytest

from ckptsurgeon.cli.sink import print_to
from ckptsurgeon.render.train import dev_line, step_line, trained_view
from ckptsurgeon.trainer.checks import Check
from ckptsurgeon.trainer.result import Arm, Controls, Trained


class Stream:
    """What was written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def shown(view: object) -> str:
    stream = Stream()
    print_to(stream, view)
    return stream.text


ROW = {
    "step": 120, "loss": 1.3123, "grad_norm": 0.9, "lr": {"1": 5.8e-3, "0.1": 5.8e-4}, "clips_s": 2310.4,
    "padding": 0.0151,
}  # fmt: skip


def test_a_step_is_one_line() -> None:
    line = step_line(ROW, 500, 21.4).plain
    assert line == "  step 120/500  loss 1.31  grad 0.9  lr 5.8e-03  2 310 clips/s  padding 1.5%  0:21 left"
    assert (
        "loss is not finite  grad is not finite" in step_line({**ROW, "loss": None, "grad_norm": None}, 500, None).plain
    )


def test_an_evaluation_is_one_line() -> None:
    assert dev_line({"step": 100, "dev": {"loss": 1.05, "cer": 0.5625}}, 500).plain == (
        "  step 100/500  dev  loss 1.05  cer 0.562"
    )


def test_the_table_is_aligned_and_the_verdict_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    checks = (
        Check("loaded tensors equal their source", "PASS", "150 of 150, bit for bit", "before"),
        Check("first loss", "WARN", "10.07 where uniform outputs give 7.64 (+32%)", "before"),
        Check("knowledge moved", "NOT RUN", "why not", "after"),
    )
    arms = tuple(Arm(way, frozen, (0.1, 0.2)) for frozen in (True, False) for way in ("warm", "scratch", "permuted"))
    found = Trained(
        "ru.yaml", "run", None, "ctc", "cpu", 500, 500, "done", checks, "cer", 0.14, 480, elapsed_s=65.2,
        first_loss=7.6, last_loss=0.31, controls=Controls("cer", 2, 100, arms, "KNOWLEDGE", "frozen"),
    )  # fmt: skip
    assert shown(trained_view(found)) == (
        "  before the first step\n"
        "  PASS     loaded tensors equal their source  150 of 150, bit for bit\n"
        "  WARN     first loss                         10.07 where uniform outputs give 7.64 (+32%)\n"
        "  after the last step\n"
        "  NOT RUN  knowledge moved                    why not\n"
        "  cer after 100 steps, 2 seeds\n"
        "            body frozen        all of it trained\n"
        "  warm      0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  scratch   0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  permuted  0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  verdict  KNOWLEDGE\n"
        "  trained run  500/500 steps  1:05  loss 7.6 to 0.31  best cer 0.14 at step 480\n"
    )
    assert "before the first step" not in shown(trained_view(found, checked=["before"]))
