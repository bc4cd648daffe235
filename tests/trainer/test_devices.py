"""What differs between a CPU and a GPU, as far as a CPU can show it; the rest is in test_gpu.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import FAIL, NOT_RUN
from ckptsurgeon.trainer.checks.saved import SavedWeights, all_tensors, reload_in_new_process
from ckptsurgeon.trainer.config.settings import Data, Settings
from ckptsurgeon.trainer.data.loader import Batches
from ckptsurgeon.trainer.data.sound import Clip
from ckptsurgeon.trainer.evaluation import evaluation_mode, try_longest_batch
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.system.device import device_notes, explain_compile_errors, torch_settings, usual_workers
from ckptsurgeon.trainer.system.random_state import random_state, set_random_state
from ckptsurgeon.trainer.system.recurrent import keep_recurrent_in_float32
from ckptsurgeon.trainer.tasks._ctc_model import CTCOutput, ctc_losses
from ckptsurgeon.trainer.tasks._task import Batch

from ..conftest import pytest_configure
from . import toy
from .sounds import corpus

Run = Callable[..., Any]
CPU = torch.device("cpu")
SPEECH: dict[str, Any] = {
    "model": {"name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0},
    "train": {
        "task": "ctc", "steps": 4, "batch_size": 4, "features": {"size": 10, "stack": 2}, "save_every": 2,
        "evaluate_every": 4, "data": {"train": "train.csv", "tokens": "alphabet.txt"},
    },
}  # fmt: skip


def write(**train: Any) -> str:
    corpus("train.csv", ["a", "b", "ab", "c", "ca", "abc", "b", "bc"])
    Path("alphabet.txt").write_text("a\nb\nc\n")
    Path("x.yaml").write_text(yaml.safe_dump({**SPEECH, "train": {**SPEECH["train"], **train}}))
    return "x.yaml"


def loop_of(**train: Any) -> TrainingLoop:
    job = build_job(write(**train), device=CPU)
    return TrainingLoop(job, job.model()[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_compute_in_float32_where_autocast_does_not(kind: type[nn.RNNBase]) -> None:
    layer = kind(4, 4, batch_first=True)
    state = torch.zeros(1, 2, 4)
    given = (state, state) if kind is nn.LSTM else state
    with torch.autocast("cpu", torch.bfloat16):
        kept, _ = keep_recurrent_in_float32(layer)(torch.randn(2, 3, 4).bfloat16(), given)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 3, 4), torch.tensor([3, 2]), batch_first=True)
    assert kept.dtype == torch.float32
    assert layer(packed)[0].data.dtype == torch.float32


@pytest.mark.costly
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.float32), ("float32", torch.float32)])
def test_the_lstm_of_a_run_is_in_float32(precision: str, dtype: torch.dtype) -> None:
    loop = loop_of(precision=precision)
    seen: list[torch.dtype] = []
    dense: list[torch.dtype] = []
    loop.model.lstm.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))  # type: ignore[union-attr]
    loop.model.layer_1.register_forward_hook(lambda module, inputs, output: dense.append(output.dtype))  # type: ignore[union-attr]
    loop.run(until=1)
    assert set(seen) == {dtype}
    assert set(dense) == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("exact", [True, False])
def test_ctc_of_a_deterministic_run_is_left_to_the_cpu(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []
    plain = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (moved.append(tuple(self.shape)), plain(self))[1])
    frames, sizes = torch.tensor([6, 5]), torch.tensor([2, 1])
    batch = Batch(torch.zeros(2, 6, 1), frames, torch.tensor([[1, 2], [1, 0]]), sizes, 1.0, ("a", "b")).to("cpu")
    scores = torch.randn(2, 6, 3).log_softmax(-1).requires_grad_()
    with torch_settings(Settings(deterministic=exact), CPU):
        losses = ctc_losses(CTCOutput(scores, frames, None), batch, 0)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert len(moved) == (4 if exact else 0)


def test_a_state_of_other_gpus_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run on two visible GPUs saved, where there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_gpu: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_gpu.append)
    state = random_state()
    one = torch.zeros(16, dtype=torch.uint8)
    set_random_state({**state, "cuda": [one, one]})
    set_random_state({**state, "cuda": []})
    assert not set_gpu
    set_random_state({**state, "cuda": [one]})
    assert len(set_gpu) == 1


def test_a_gpu_that_the_saved_run_did_not_have_is_seeded_by_step_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    ended = []
    for until in (1, 2):
        folder = RunFolder(f"run{until}")
        folder.create()
        first = toy.loop()
        first.checkpoints.folder = folder
        first.run(until=until)
        first.save()
        loop = toy.loop()
        loop.state.restore(*folder.load())
        seeded.clear()
        loop.state.seed_generators()
        ended.append(seeded[-1])
        assert torch.equal(torch.get_rng_state(), loop.state._random_states[0]["torch"])  # type: ignore[index]
    assert ended[0] != ended[1]


def test_notes_for_a_device() -> None:
    assert device_notes(Settings(precision="tf32"), CPU) == [
        "train.precision: tf32 has no effect on a CPU, which computes in float32"
    ]
    assert device_notes(Settings(precision="tf32"), torch.device("cuda")) == []
    assert "the GPU waits" in device_notes(Settings(data=Data(workers=0)), torch.device("cuda"))[0]


def test_processes_of_one_machine_share_its_cores_for_their_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda of: set(range(12)))
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpu = torch.device("cuda")
    assert [usual_workers(CPU), usual_workers(gpu)] == [0, 8]  # one process may have all cores, whatever GPUs there are
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert [usual_workers(CPU), usual_workers(gpu)] == [0, 3]


def test_tf32_is_set_for_products_and_convolutions_alike_and_set_back() -> None:
    def found() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = found()
    for precision, wanted in (("float32", False), ("tf32", True), ("bf16", True)):
        with torch_settings(Settings(precision=precision), torch.device("cuda")):
            assert found() == (wanted, wanted)
        assert found() == before
    with torch_settings(Settings(precision="tf32"), CPU):
        assert found() == before  # on a CPU these would round, too


@pytest.mark.parametrize(("clips", "vary"), [((0.5, 0.5, 0.5), False), ((0.5, 0.5, 0.6), True)])
def test_attention_of_cudnn_is_left_out_if_lengths_vary(clips: tuple[float, ...], vary: bool) -> None:
    """It builds a plan for each new shape of a batch."""
    job = loop_of().job
    assert isinstance(job.train, Batches)
    job.train.split = replace(job.train.split, clips=tuple(Clip("a.wav", "a", "x:1", one) for one in clips))
    assert job.lengths_vary == vary
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary):
        assert torch.backends.cuda.cudnn_sdp_enabled() == (before and not vary)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_attention_of_cudnn_is_left_out_of_evaluations() -> None:
    model = nn.Linear(1, 1)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with evaluation_mode(model):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not model.training
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert model.training


@pytest.mark.long
@pytest.mark.parametrize("freeze", [["wav2vec2.feature_extractor"], ["wav2vec2"]])
def test_a_frozen_encoder_of_waves_runs_no_backward(freeze: list[str]) -> None:
    """transformers makes the waves require a gradient in training, so that all convolutions would have a graph."""
    pytest.importorskip("transformers")
    from . import waves

    Path("net.json").write_text(json.dumps({**waves.SMALL, "mask_time_prob": 0.0}))
    Path("tokens.txt").write_text("<blank>\na\nb\n")
    corpus("train.csv", ["a", "b", "ab", "ba"], shortest=0.4)
    model = {"transformers": "net.json", "architecture": "Wav2Vec2ForCTC", "vocab_size": 3}
    counted: list[int] = []
    for frozen in ([], freeze):
        train = {
            "task": "wav2vec2_ctc", "data": {"train": "train.csv", "tokens": "tokens.txt"}, "batch_size": 2, "steps": 2,
            "features": {"kind": "waves"}, "freeze": frozen,
        }  # fmt: skip
        Path("x.yaml").write_text(yaml.safe_dump({"model": model, "train": train}))
        job = build_job("x.yaml", device=CPU)
        loop = TrainingLoop(job, job.model()[0])
        graphs: list[bool] = []
        for module in loop.model.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_hook(with_graph(graphs))
        loop.run(until=1)
        assert graphs
        counted.append(sum(graphs))
    assert counted[0] > 0
    assert counted[1] == (0 if freeze == ["wav2vec2"] else counted[0] - 7 * counted[0] // 8)


def with_graph(graphs: list[bool]) -> Callable[..., None]:
    """A forward hook that records whether the output of a module has a gradient's graph."""

    def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
        graphs.append(output.requires_grad)

    return hook


@pytest.mark.usefixtures("new_process")
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("KeyError: 'x'", FAIL),
        ("torch.OutOfMemoryError: CUDA out of memory.", NOT_RUN),
        ("torch.AcceleratorError: CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`.", NOT_RUN),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", NOT_RUN),
    ],
)
def test_a_gpu_without_room_for_the_reopened_model_is_not_a_failure(
    said: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 1, "", f"Traceback\n{said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    (check,) = reload_in_new_process(toy.job(), [SavedWeights("saved", "x", 1.0)], sets=())
    assert check.status == status, check


@pytest.mark.usefixtures("new_process")
def test_the_gpu_is_emptied_before_another_process_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    done = subprocess.CompletedProcess([], 1, "", "KeyError")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: (calls.append("started"), done)[1])
    for device in ("cpu", "cuda"):
        list(reload_in_new_process(replace(toy.job(), device=torch.device(device)), [], sets=()))
    assert calls == ["started", "emptied", "started"]


@pytest.mark.parametrize(
    ("marks", "hidden"),
    [("", True), ("not gpu", True), ("not long", True), ("gpu", False), ("gpu and not long", False)],
)
def test_tests_see_a_gpu_only_if_they_are_asked_for(marks: str, hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config: Any = SimpleNamespace(
        getoption=lambda name, default: marks, pluginmanager=SimpleNamespace(get_plugins=list)
    )
    pytest_configure(config)
    assert (os.environ.get("CUDA_VISIBLE_DEVICES") == "") == hidden


def test_a_compiler_s_warnings_are_not_the_user_s() -> None:
    with explain_compile_errors(Settings()):
        for said in (
            "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.",
            "Dynamo detected a call to a `functools.lru_cache`-wrapped function.",
            "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed.",
        ):
            warnings.warn(said, UserWarning, stacklevel=1)  # which is an error in these tests


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_the_longest_batch_is_tried_before_the_first_step(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that only the longest clips make does not fit: nothing is trained, and nothing is saved."""
    from ckptsurgeon.trainer.tasks.ctc import CTC

    loss = CTC.loss
    write(batch_size=1)
    longest = build_job("x.yaml", device=CPU).train.longest()  # type: ignore[attr-defined]
    places = longest.inputs.shape[1]

    def fits(self: Any, model: nn.Module, batch: Batch) -> Any:
        return full() if batch.inputs.shape[1] == places and model.training else loss(self, model, batch)

    monkeypatch.setattr(CTC, "loss", fits)
    done = ckpt("train", "x.yaml", "--device", "cpu")
    assert done.code == 2, done
    assert "does not have enough memory for train.batch_size 1." in done.err
    assert not Path("run/last").exists()
    assert '"loss"' not in Path("run/log.jsonl").read_text()


@pytest.mark.long
def test_trying_the_longest_batch_changes_nothing() -> None:
    toy_like = {"dropout": 0.3}
    ended = []
    for tries in (0, 3):
        loop = loop_of()
        loop.model.dropout.p = toy_like["dropout"]  # type: ignore[union-attr]
        loop.state.seed_generators()
        loop.state.apply_freezing()
        for _ in range(tries):
            try_longest_batch(loop.state)
        loop.run()
        ended.append(all_tensors(loop))
    assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[0])


@pytest.mark.long
def test_a_gpu_that_runs_out_later_leaves_the_last_step_and_says_how_to_go_on(
    ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptsurgeon.trainer.tasks.ctc import CTC

    assert ckpt("train", write(steps=6), "--run", "whole", "--device", "cpu").code == 0
    loss, calls = CTC.loss, []

    def fits(self: Any, model: nn.Module, batch: Batch) -> Any:
        calls.append(model.training)
        return full() if sum(calls) == 5 else loss(self, model, batch)  # the try-out, three steps, and this one

    with monkeypatch.context() as patched:
        patched.setattr(CTC, "loss", fits)
        done = ckpt("train", "x.yaml", "--device", "cpu")
    assert done.code == 2, done
    said = " ".join(done.err.split())
    assert "does not have enough memory for train.batch_size 4. Step 3 was saved." in said
    assert "Continue from that step with --resume --set gradient_checkpointing=true." in said
    assert RunFolder("run").last_step() == 3
    assert ckpt("train", "--resume", "--set", "gradient_checkpointing=true", "--device", "cpu").code == 0
    losses = [[json.loads(line)["loss"] for line in Path(run, "log.jsonl").read_text().splitlines() if '"loss"' in line]
              for run in ("run", "whole")]  # fmt: skip
    assert losses[0] == losses[1]


@pytest.mark.costly
@pytest.mark.parametrize("tried", [True, False], ids=["tried", "sharded, or of a source of one's own"])
def test_what_has_no_deterministic_backward_pass_is_an_error_before_the_first_step(
    tried: bool, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptsurgeon.trainer.tasks.ctc import CTC

    loss = CTC.loss

    def without(self: Any, model: nn.Module, batch: Batch) -> Any:
        if model.training:
            raise RuntimeError("ctc_loss_backward_gpu does not have a deterministic implementation, but you set it.")
        return loss(self, model, batch)

    monkeypatch.setattr(CTC, "loss", without)
    if not tried:
        monkeypatch.setattr("ckptsurgeon.trainer.loop.try_longest_batch", lambda state: None)
    done = ckpt("train", write(deterministic=True), "--device", "cpu")
    assert done.code == 2, done
    assert "ctc_loss_backward_gpu does not have a deterministic implementation" in " ".join(done.err.split())
    assert "--set deterministic=false" in done.err


def test_a_gpu_that_is_out_of_memory_advises_what_may_be_changed() -> None:
    from ckptsurgeon.trainer.system.device import out_of_memory_error

    assert isinstance(out_of_memory_error(Settings()), cs.ConfigError)
    assert out_of_memory_error(Settings(batch_seconds=100.0)).hint == (
        "Try --set batch_seconds=50 --set accumulate=2 or --set gradient_checkpointing=true."
    )
    saved = out_of_memory_error(Settings(gradient_checkpointing=True), 7)
    assert (saved.message.endswith("Step 7 was saved."), saved.hint) == (
        True, "Start another run, with smaller batches.",
    )  # fmt: skip


@pytest.mark.long
def test_a_run_by_seconds_goes_on_where_it_was_and_says_what_its_batches_are(ckpt: Run) -> None:
    """Epochs have other numbers of batches, which the position in an epoch must follow."""
    corpus("train.csv", ["a", "b", "ab", "c", "ca", "abc", "b", "bc", "a", "cab"] * 3)
    Path("alphabet.txt").write_text("a\nb\nc\n")
    train = {**SPEECH["train"], "batch_seconds": 1.5, "steps": 40, "save_every": 7, "keep": 9}
    Path("x.yaml").write_text(yaml.safe_dump({**SPEECH, "train": train}))
    assert ckpt("train", "x.yaml", "--run", "whole", "--device", "cpu").code == 0
    shutil.copytree("whole", "part", symlinks=True)
    for name in os.listdir("part/steps"):
        if int(name) > 14:
            shutil.rmtree(f"part/steps/{name}")
    Path("part/last").unlink()
    Path("part/last").symlink_to("steps/14")
    assert ckpt("train", "x.yaml", "--run", "part", "--resume", "--device", "cpu").code == 0
    rows = [
        [(row["step"], row["loss"], row["clips"]) for row in map(json.loads, Path(run, "log.jsonl").read_text().splitlines()) if "loss" in row]
        for run in ("whole", "part")
    ]  # fmt: skip
    assert rows[0] == rows[1]
    assert len({clips for _, _, clips in rows[0]}) > 1
