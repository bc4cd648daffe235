"""What a run looks like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptsurgeon.cli.printing import print_to
from ckptsurgeon.render.train import checks_view, dev_line, step_line, trained_view
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.run.result import Arm, Controls, Trained


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


def lines(view: object, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    return shown(view).splitlines()


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (120, "  step 120/5000  loss 1.31  grad 0.9  lr 5.8e-03  2 310 clips/s  padding 1.5 %  0:21 left"),
        (80, "  step 120/5000  loss 1.31  grad 0.9  lr 5.8e-03  2 310 clips/s  0:21 left"),
        (70, "  step 120/5000  loss 1.31  grad 0.9  2 310 clips/s  0:21 left"),
        (60, "  step 120/5000  loss 1.31  grad 0.9  0:21 left"),
    ],
)
def test_a_step_is_one_line_and_keeps_the_time_left(width: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(step_line(ROW, 5000, 21.4), width, monkeypatch) == [line.replace("step 120", "step  120")]
    nan = step_line({**ROW, "loss": None, "grad_norm": None}, 500, None)
    assert "loss is not finite  grad is not finite" in lines(nan, 120, monkeypatch)[0]


def test_an_evaluation_hangs_below_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"step": 20, "dev": {"loss": 1.05, "cer": 0.5625, "wer": 1.0, "too_short": 0.0, "accuracy": 0.0004}}
    assert lines(dev_line(row, 500), 120, monkeypatch) == [
        "  step  20/500  dev  loss 1.050  cer 0.562  wer 1  too_short 0  accuracy 0.0004"
    ]
    assert lines(dev_line(row, 500), 60, monkeypatch) == [
        "  step  20/500  dev  loss 1.050  cer 0.562  wer 1",
        "                     too_short 0  accuracy 0.0004",
    ]


def test_an_evaluation_that_lowered_the_learning_rate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"step": 20, "dev": {"cer": 1.0}, "anneal_scale": 0.25}
    assert lines(dev_line(row, 500), 120, monkeypatch) == ["  step  20/500  dev  cer 1  lr from now on x 0.25"]


def test_what_came_of_a_run_wraps_between_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Trained(
        "x.yaml", "run", None, "ctc", "cpu", 500, 500, "done", (), "cer", 0.14, 480, elapsed_s=65.2, first_loss=7.6,
        last_loss=0.31, test={"loss": 0.5, "cer": 0.1234, "wer": 0.25, "too_short": 0.0}, test_clips=1,
    )  # fmt: skip
    assert lines(trained_view(found), 60, monkeypatch) == [
        "  trained run  500/500 steps  1:05  loss 7.6 to 0.31",
        "          best cer 0.14 at step 480",
        "  test    1 clip  loss 0.500  cer 0.123  wer 0.250",
        "          too_short 0",
    ]


def test_the_table_is_aligned_and_the_verdict_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    checks = (
        Check("loaded tensors equal their source", "PASS", "150 of 150, bit for bit", "before"),
        Check("first loss", "WARN", "10.07, 32 % more than the 7.64 of uniform outputs", "before"),
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
        "  WARN     first loss                         10.07, 32 % more than the 7.64 of uniform outputs\n"
        "  after the last step\n"
        "  not run: knowledge moved\n"
        "  cer after 100 steps, 2 seeds\n"
        "            body frozen        all parts trained\n"
        "  warm      0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  scratch   0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  permuted  0.15 (0.1 to 0.2)  0.15 (0.1 to 0.2)\n"
        "  verdict  KNOWLEDGE  from the dev results after the last step, body frozen\n"
        "  trained run  500/500 steps  1:05  loss 7.6 to 0.31  best cer 0.14 at step 480\n"
    )
    assert "before the first step" not in shown(trained_view(found, checked=["before"]))
    assert "  NOT RUN  knowledge moved                    why not\n" in shown(trained_view(found, every=True))
    flat = replace(found, controls=replace(found.controls, plateau=("scratch", "permuted")))
    assert "\n           scratch and permuted have learned nothing yet\n" in shown(trained_view(flat))


def test_a_narrow_table_has_what_a_check_says_below_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (
        Check("first loss", "PASS", "5.15, 1 % less than the 5.20 of uniform outputs", "before"),
        Check("independent of batch and padding", "WARN", "two", "before"),
        Check("ties are still ties", "NOT RUN", "why", "before"),
    )
    assert lines(checks_view(checks), 60, monkeypatch) == [
        "  before the first step",
        "  PASS     first loss",
        "             5.15, 1 % less than the 5.20 of uniform outputs",
        "  WARN     independent of batch and padding",
        "             two",
        "  not run: ties are still ties",
    ]


def test_a_run_with_a_failed_check_does_not_end_like_a_good_one() -> None:
    checks = (Check("first loss", "FAIL", "nan", "before"), Check("dead units", "PASS", "0", "before"))
    found = Trained("x.yaml", "run", None, "ctc", "cpu", 5, 5, "done", checks)
    assert shown(trained_view(found)).endswith("  FAIL    1 check failed: first loss\n")
