"""The benchmark of training on a GPU, at toy size on a CPU: that it runs, and measures what it says."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch._dynamo.utils import counters

from ckptsurgeon.trainer.state.checkpointing import CheckpointWriter

pytest.importorskip("transformers")

from tests.bench.train_gpu.__main__ import parsed
from tests.bench.train_gpu.arms import ARMS, RATIOS, arm_of
from tests.bench.train_gpu.batches import batches
from tests.bench.train_gpu.measure import measure
from tests.bench.train_gpu.ours import train_ours
from tests.bench.train_gpu.published import fine_tune, model_of, pretrain
from tests.bench.train_gpu.turns import ArmProcess, in_turns
from tests.bench.train_gpu.window import Window
from tests.bench.train_gpu.work import work_of

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # torch's own, where it compiles
    "ignore::FutureWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:Guards may run slower on Python 3.13.0",
    "ignore:Dynamo detected a call to a .functools.lru_cache",
)


def tiny(**other: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"device": "cpu", "tiny": True, "steps": 2, "backend": "eager", "folder": None, **other}
    )


@cache
def measured(arm: str) -> dict[str, Any]:
    """The result of ``run_once``, kept since several tests use it."""
    return run_once(arm)


def run_once(arm: str) -> dict[str, Any]:
    """What a toy run of an arm gives, and how many graphs it compiled."""
    torch._dynamo.reset()
    counters.clear()
    return {**measure(arm, tiny()), "graphs": counters["stats"]["unique_graphs"]}


@pytest.fixture
def _graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.long
@pytest.mark.usefixtures("_graphs")
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strong loop of pre-training is compiled with bfloat16 only: with TF32 it would be compiled in the same way."""
    if arm == "pretrain strong tf32":
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **options: None)
        found = run_once(arm)  # not kept, as it is not compiled
    else:
        found = measured(arm)
    assert found["arm"] == arm
    assert found["steps"] == 2
    assert found["step_ms"] > 0
    assert found["audio_s_s"] == pytest.approx(found["clips_s"] * 0.5, rel=0.02) or arm.startswith("lengths")
    assert (found["padding"] > 0) == arm.startswith("lengths")
    assert found["tflops_s"] > 0
    assert found["peak_bytes"] > 0
    assert found["utilisation"] is None
    json.dumps(found)


@pytest.mark.long
@pytest.mark.parametrize("work", ["pretrain", "ctc"])
def test_ours_and_the_published_loop_do_the_same_work(work: str) -> None:
    """As many operations for a second of audio; pre-training of ours contrasts masked frames only, theirs all of them."""
    ours, published = (measured(f"{work} {loop} bf16") for loop in ("ours", "published"))
    assert ours["parameters"] == published["parameters"]
    assert ours["flops_per_audio_s"] == pytest.approx(published["flops_per_audio_s"], rel=0.02)


def test_the_model_is_one_that_the_published_script_accepts() -> None:
    config = model_of(work_of("pretrain", tiny=True)).config
    assert config.do_stable_layer_norm
    assert config.feat_extract_norm == "layer"
    assert config.apply_spec_augment
    assert config.mask_feature_prob == 0
    full = work_of("pretrain", tiny=False)
    assert {"feat_extract_norm": "layer", "do_stable_layer_norm": True}.items() <= full.fields.items()
    assert "hidden_size" not in full.fields  # that of transformers' own default, wav2vec2-base


class Watched(Window):
    """A window that notes what lies in the run's folder when the clock starts and when it stops."""

    def _start(self) -> None:
        self.at_start = files()
        super()._start()

    def _stop(self) -> None:
        super()._stop()
        self.at_stop = files()


def files() -> set[str]:
    return {str(path) for path in Path("run").rglob("*")}


@pytest.mark.long
@pytest.mark.parametrize("work", ["pretrain", "lengths"])
def test_no_checkpoint_is_saved_and_no_epoch_ends_while_the_clock_runs(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptsurgeon.trainer.data.source import BatchStream

    window, saved, seen = Watched(CPU, 1, 20), [], []
    for name in ("save", "save_best"):
        real = getattr(CheckpointWriter, name)

        def save(self: Any, *args: Any, name: str = name, real: Any = real) -> Any:
            saved.append((name, window.begun, window.is_running))
            return real(self, *args)

        monkeypatch.setattr(CheckpointWriter, name, save)
    following = BatchStream.__next__

    def followed(self: BatchStream) -> Any:
        found = following(self)
        seen.append(self.position)
        return found

    monkeypatch.setattr(BatchStream, "__next__", followed)
    train_ours(ARMS[f"{work} ours bf16"], work_of(work, tiny=True), window, tiny())
    assert saved == [("save", window.all_steps, False), ("save_best", window.all_steps, False)]
    assert window.at_start == window.at_stop == {"run/log.jsonl", "run/steps"}
    assert {"run/last", "run/best.safetensors"} <= files()
    assert seen == [(0, number) for number in range(1, 23)]
    given = batches(model_of(work_of(work, tiny=True)), work_of(work, tiny=True), window)
    assert len(list(given)) >= window.all_steps


def test_batches_of_the_full_size_outlast_the_run_and_what_workers_read_ahead() -> None:
    for name in ("pretrain", "ctc", "lengths"):
        work = work_of(name, tiny=False)
        mean_s = (work.shortest_s + work.longest_s) / 2
        clips = work.distinct * work.repeats(106)
        assert clips / work.size >= 106
        assert clips * mean_s / (work.batch_s or work.size * mean_s) >= 106 + 4 * work.workers


def test_a_window_has_turns_and_lets_what_was_read_ahead_pass() -> None:
    seen: list[tuple[str, int, int]] = []
    window = Window(
        CPU, warm_up=2, steps=3, settle=2, turns=2, wait=lambda: seen.append(("wait", window.begun, 0)),
        tell=lambda one: seen.append(("tell", one.begun, one.clips)),
    )  # fmt: skip
    running = []
    for _ in range(window.all_steps):
        window.begin()
        running.append(window.is_running)
        window.end(clips=4, audio_s=2.0, places=32_000)
    assert window.all_steps == 13
    assert [number for number, is_running in enumerate(running, 1) if is_running] == [5, 6, 7, 10, 11, 12]
    assert seen == [("wait", 3, 0), ("tell", 8, 12), ("wait", 8, 0), ("tell", 13, 12), ("wait", 13, 0)]


def test_the_window_counts_timed_steps_only() -> None:
    window = Window(CPU, warm_up=2, steps=3)
    for _ in range(window.all_steps):
        window.begin()
        window.end(clips=4, audio_s=2.0, places=32_000)
    assert (window.clips, window.audio_s, window.places) == (12, 6.0, 96_000)
    assert window.seconds > 0
    assert not window.is_running


@pytest.mark.long
def test_the_published_loops_learn() -> None:
    window = Window(CPU, 1, 12)
    work = work_of("pretrain", tiny=True)
    model = model_of(work)
    logged = pretrain(model, batches(model, work, window), window=window, bf16=False)
    assert logged[-1]["loss"] < logged[0]["loss"]
    work, window = work_of("ctc", tiny=True), Window(CPU, 1, 12)
    model = model_of(work)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    assert float(fine_tune(model, batches(model, work, window), window=window, bf16=False)) > 0
    still = {name for name, one in model.named_parameters() if torch.equal(one, before[name])}
    assert {name for name in before if ".feature_extractor." in name} <= still
    assert "lm_head.weight" not in still


@pytest.mark.long
@pytest.mark.usefixtures("_graphs")
def test_the_strong_loop_is_compiled() -> None:
    assert measured("lengths strong bf16")["graphs"] > 0


class Prepared:
    """An arm that is ready at once, or ``after`` so many seconds, and takes 25 seconds for a turn."""

    running: ClassVar[list[str]] = []

    def __init__(self, arm: str, now: list[float], *, after: float = 0.0, fails: str = "") -> None:
        self.arm, self.now, self.after, self.fails = arm, now, after, fails
        self.running.append(arm)

    def is_ready(self, seconds: float) -> bool:
        if self.fails == "at once":
            raise ChildProcessError("exit 1: no such thing")
        self.now[0] += min(seconds, self.after)
        return self.after <= seconds

    def turn(self, seconds: float) -> dict[str, Any]:
        assert self.arm in self.running
        if seconds < 25:
            raise TimeoutError
        if self.fails:
            raise ChildProcessError(self.fails)
        self.now[0] += 25
        return {"arm": self.arm, "audio_s_s": 300.0 if " ours " in self.arm else 200.0, "peak_bytes": 50}

    def close(self) -> None:
        if self.arm in self.running:
            self.running.remove(self.arm)


def told(
    arms: Sequence[str], *, rounds: int = 1, seconds: float = 1e9, together: int = 99, **how: Mapping[str, Any]
) -> list[dict[str, Any]]:  # fmt: skip
    now = [0.0]
    rows = in_turns(
        arms, lambda arm: Prepared(arm, now, **how.get(arm.replace(" ", "_"), {})), rounds=rounds, seconds=seconds,
        together=together, clock=lambda: now[0],
    )  # fmt: skip
    found = list(rows)
    assert Prepared.running == []
    return found


def test_ratios_are_told_as_soon_as_both_arms_have_run() -> None:
    for together in (1, 2, 99):
        rows = told(list(ARMS), together=together)
        assert [next(iter(one.keys() & {"arm", "ratio"})) for one in rows[:5]] == [
            "arm",
            "arm",
            "ratio",
            "arm",
            "ratio",
        ]
        assert rows[2] == {
            "round": 1, "ratio": "pretrain ours bf16 / published bf16", "faster": 1.5, "aim": 1.5, "memory": 1.0
        }  # fmt: skip
        assert len([one for one in rows if "ratio" in one]) == len(RATIOS)
    several = told(list(ARMS), rounds=3)
    assert [one["arm"] for one in several if "arm" in one] == list(ARMS) * 3
    assert [one["ratio"] for one in several[-len(RATIOS) :]] == [ratio.what for ratio in RATIOS]
    assert all(one["median of"] == 3 for one in several[-len(RATIOS) :])


def test_what_no_time_is_left_for_is_named_and_the_rest_kept() -> None:
    arms = list(ARMS)
    rows = told(arms, seconds=80)
    assert [one["arm"] for one in rows if "audio_s_s" in one] == arms[:3]
    assert [one["arm"] for one in rows if "not measured" in one] == arms[3:]
    assert sum("ratio" in one for one in rows) == 2
    rows = told(arms[:3], rounds=2, seconds=110)
    assert [one["round"] for one in rows if "audio_s_s" in one] == [1, 1, 1, 2]
    assert [one["round"] for one in rows if "not measured" in one] == [2, 2]
    assert [one["median of"] for one in rows if "median of" in one] == [1, 1]


def test_arms_that_are_late_or_fail_give_way() -> None:
    arms = list(ARMS)[:4]
    late, failing, later = arms[0], arms[1], arms[2]
    how = {one.replace(" ", "_"): what for one, what in ((late, {"after": 1e6}), (failing, {"fails": "at once"}))}
    rows = told(arms, seconds=1000, **how)
    assert rows[0] == {"arm": late, "not measured": "was not ready in time"}
    assert rows[1] == {"arm": failing, "failed": "exit 1: no such thing"}
    assert [one["arm"] for one in rows if "audio_s_s" in one] == arms[2:]
    rows = told(arms, rounds=2, **{later.replace(" ", "_"): {"fails": "exit 7: it broke"}})
    assert [one for one in rows if "failed" in one] == [{"round": 1, "arm": later, "failed": "exit 7: it broke"}]
    assert [one["arm"] for one in rows if one.get("round") == 2 and "arm" in one] == [arms[0], arms[1], arms[3]]


CHILD = """
import json, os, sys
folder, arm = sys.argv[-3], sys.argv[-1]
print("something else")
if arm == "broken":
    sys.exit("it broke")
for number in range(2):
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit()
    open(os.path.join(folder, "seen"), "w").close()
    print(json.dumps({"arm": arm, "turn": number, "folder": folder}), flush=True)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.long
def test_a_process_waits_for_its_turns() -> None:
    one = ArmProcess([sys.executable, "-c", CHILD], "an arm")
    assert one.is_ready(60)
    found = [one.turn(60), one.turn(60)]
    assert [row["turn"] for row in found] == [0, 1]
    folder = Path(found[0]["folder"])
    assert {path.name for path in folder.iterdir()} == {"errors", "seen"}
    one.close()
    assert not folder.exists()
    broken = ArmProcess([sys.executable, "-c", CHILD], "broken")
    with pytest.raises(ChildProcessError, match="exit 1: it broke"):
        broken.is_ready(60)
    broken.close()
    slow = ArmProcess([sys.executable, "-c", "import time, sys; sys.stdin.readline(); sys.stdin.readline()"], "slow")
    assert not slow.is_ready(0.2)
    with pytest.raises(TimeoutError):
        slow.turn(0.2)
    slow.close()


@pytest.mark.long
def test_a_process_is_ended_while_it_prints() -> None:
    for _ in range(5):  # an exception in the thread that reads would fail the test
        one = ArmProcess([sys.executable, "-uc", "while True: print('still here')"], "an arm")
        assert one._line(60) == "still here"
        one.close()
        assert not one._reader.is_alive()


def test_arms_with_other_settings_are_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(["--also", "ctc ours bf16 compile=on lr=1"]).also == ["ctc ours bf16 compile=on lr=1"]
    assert arm_of("ctc ours bf16 compile=on lr=1").settings == ("compile=on", "lr=1")
    for wrong in ("ctc strong bf16 compile=on", "sing ours bf16", "ctc ours bf16 fast"):
        with pytest.raises(SystemExit):
            parsed(["--also", wrong])
        assert "there is no arm" in capsys.readouterr().err


def test_unknown_works_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(["--works", "pretrain,sing"])
    assert "there is no work sing" in capsys.readouterr().err
    assert parsed([]).works == ["pretrain", "ctc", "lengths"]
