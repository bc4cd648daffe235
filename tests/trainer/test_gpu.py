"""Training on a GPU (``make test-gpu``). Of what a CPU can do too, CKPT_TEST_DEVICE=cpu runs the same tests there."""

from __future__ import annotations

import copy
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ckptsurgeon.trainer.checks.saved import all_tensors
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop, gradient_step
from ckptsurgeon.trainer.parallel.ranks import ParallelModel
from ckptsurgeon.trainer.state.optimizer import Optimizer, parameter_rules
from ckptsurgeon.trainer.system.long_convolution import use_matrix_products
from ckptsurgeon.trainer.system.signals import StopSignal

from .waves import LAYER_NORM, MINIATURE, ctc_model_of, ctc_stand_in, ctc_task_for, write

transformers = pytest.importorskip("transformers")
DEVICE = os.environ.get("CKPT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, where it compiles
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # torch hides it itself
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32 matrix multiplication"),
]
cuda_alone = pytest.mark.skipif(DEVICE != "cuda", reason="a CPU has no such thing")
Run = Callable[..., Any]

FIRST, MEAN = 0.03, 0.04
"""How far a run in bf16 may be from one in float32, as a share: the first loss, and the mean of twenty.

On a CPU, three seeds and both norms were within 0.014 and 0.017; single steps within 0.1, since another entry of the
codebook is chosen where two are nearly as likely.
"""


def loop_of(*, folder: str | None = None, observer: Any = None, **settings: Any) -> TrainingLoop:
    config = write(fields=MINIATURE, **{"pretrain": {"crop_s": 0.4}, "compile": "off", "warmup": 2, **settings})
    job = build_job(config, device=DEVICE)
    run = RunFolder(folder) if folder is not None else None
    if run is not None:
        run.create()
    return TrainingLoop(job, job.model()[0], folder=run, observer=observer)


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> float:
    """How far two runs ended from each other, as a share of how far the second came."""
    keys = [key for key, value in other.items() if value.is_floating_point() and key in first]
    apart = sum(float((one[key] - other[key]).detach().float().square().sum()) for key in keys)
    came = sum(float((other[key] - first[key]).detach().float().square().sum()) for key in keys)
    return (apart / came) ** 0.5


def weights(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in loop.model.state_dict().items()}


@contextmanager
def no_waits() -> Iterator[None]:
    """In the block, an operation that waits for the GPU is an error."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_is_near_float32() -> None:
    losses: dict[str, list[float]] = {"float32": [], "bf16": []}
    for precision, seen in losses.items():
        loop = loop_of(
            precision=precision, steps=20, evaluate_every=20, clips=32, batch_size=32,
            observer=lambda row, seen=seen: seen.append(row["loss"]) if "loss" in row else None,
        )  # fmt: skip
        loop.run()
        assert {one.dtype for one in loop.model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"][0] == pytest.approx(losses["float32"][0], rel=FIRST)
    assert sum(losses["bf16"]) == pytest.approx(sum(losses["float32"]), rel=MEAN)


def test_compiled_is_near_uncompiled() -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ended = {}
    for how in ("on", "off"):
        loop = loop_of(compile=how, steps=4)
        first = weights(loop)
        with torch._inductor.config.patch(fallback_random=True):  # what is drawn, as torch draws it
            loop.run()
        ended[how] = weights(loop)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert far(ended["on"], ended["off"], first) < 0.01


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_it_goes_on_where_it_was(compiled: str) -> None:
    """Bit for bit on a CPU; on a GPU, which adds in another order each time, nearly."""
    first = weights(loop_of())
    whole = loop_of(compile=compiled, ema=0.9, steps=6)
    whole.run()
    half = loop_of(compile=compiled, ema=0.9, steps=6, folder="run")
    half.run(until=3)
    assert half.folder is not None
    rest = loop_of(compile=compiled, ema=0.9, steps=6)
    rest.state.restore(*half.folder.load())
    rest.run()
    assert rest.state.progress.step == 6
    assert rest.state.stream.position == whole.state.stream.position
    assert far(all_tensors(rest), all_tensors(whole), first) <= (0 if DEVICE == "cpu" else 1e-3)
    assert {one.device.type for one in all_tensors(rest).values() if one.dim()} == {DEVICE}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_passes_its_checks_and_says_what_it_used(precision: str, ckpt: Run) -> None:
    done = ckpt("train", write(fields=MINIATURE, precision=precision), "--device", DEVICE, "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["device"] == DEVICE
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "flops" in row]
    assert len(steps) == 4
    assert all(row["flops"] > 0 and row["peak_bytes"] > 0 and row["audio_s_s"] > 0 for row in steps)
    assert all(0 < row["utilisation"] < 1 for row in steps if "utilisation" in row)


@pytest.mark.parametrize("sizes", [{"batch_size": 4}, {"batch_seconds": 2.0}], ids=["clips", "seconds"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_with_ctc_passes_its_checks(precision: str, sizes: dict[str, Any], ckpt: Run) -> None:
    """Its first step counts operations, and torch's CTC loss takes another way there."""
    fields = {**MINIATURE, **LAYER_NORM, "architectures": ["Wav2Vec2ForCTC"], "vocab_size": 3, "pad_token_id": 0}
    Path("tokens.txt").write_text("<blank>\na\nb\n")
    data = {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"}
    section = {"task": "wav2vec2_ctc", "data": data, "freeze": ["wav2vec2.feature_extractor"], "precision": precision}
    config = write("ctc.yaml", fields=fields, **{**section, "batch_size": 8, **sizes, "steps": 12, "lr": 1e-3})
    config_of = yaml.safe_load(Path(config).read_text())
    del config_of["train"]["pretrain"]
    if "batch_seconds" in sizes:
        del config_of["train"]["batch_size"]
    Path(config).write_text(yaml.safe_dump(config_of))
    done = ckpt("train", config, "--device", DEVICE, "--json")
    found = json.loads(done.out)
    assert found["device"] == DEVICE
    assert not [check for check in found["checks"] if check["status"] == "FAIL"]
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert all(row["flops"] > 0 for row in rows if "loss" in row and "dev" not in row)


@cuda_alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_convolutions_are_those_of_cudnn(dtype: torch.dtype) -> None:
    """In bf16 both are as near to float64 as bf16 lets them be."""
    torch.manual_seed(0)
    layer = nn.Conv1d(96, 96, 128, groups=8, padding=64)
    inputs, ahead = torch.randn(3, 96, 300), torch.randn(3, 96, 301)

    def values(layer: nn.Module, inputs: torch.Tensor, ahead: torch.Tensor) -> list[torch.Tensor]:
        inputs = inputs.clone().requires_grad_()
        layer.zero_grad()
        found = layer(inputs)
        found.backward(ahead)
        return [one.detach().double().cpu() for one in (found, inputs.grad, layer.weight.grad, layer.bias.grad)]  # type: ignore[union-attr]

    exact = values(copy.deepcopy(layer).double(), inputs.double(), ahead.double())
    placed = [one.cuda().to(dtype) for one in (inputs, ahead)]
    theirs = values(copy.deepcopy(layer).cuda().to(dtype), *placed)
    ours = values(use_matrix_products(layer.cuda().to(dtype)), *placed)
    for one, other, right in zip(ours, theirs, exact, strict=True):
        apart = [float((found - right).norm() / right.norm()) for found in (one, other)]
        assert apart[0] < max(2 * apart[1], 1e-6), apart
        assert apart[0] < (1e-4 if dtype == torch.float32 else 1e-2)


@cuda_alone
@pytest.mark.parametrize("compiled", ["off", "auto"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_step_waits(precision: str, compiled: str) -> None:
    loop = loop_of(precision=precision, compile=compiled, ema=0.9, clip=1.0, steps=40, evaluate_every=40, clips=40)
    assert (loop._compiled_loss is not None) == (compiled == "auto")
    loop.run(until=3)  # operations are counted in the first step, the second is compiled
    with no_waits():
        for _ in range(5):
            loop._step(StopSignal())


@cuda_alone
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fine_tuning_with_ctc_waits_only_in_the_loss(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own CTC loss copies lengths to the GPU, and waits; here something else stands in for it."""
    if attention == "eager" and "torch.tensor(0.0" in inspect.getsource(transformers.masking_utils.eager_mask):
        pytest.skip("this transformers copies a number to the GPU for the mask of eager attention, and waits")
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_stand_in)
    masks = {"mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.3, "mask_feature_length": 2}
    model = ctc_model_of(attn_implementation=attention, **LAYER_NORM, **masks).cuda().train()
    task, parallel = ctc_task_for(model), ParallelModel(model)
    settings = parse_settings({"clip": 1.0, "precision": "bf16"}, "x")
    parameters = dict(model.named_parameters())
    optimizer = Optimizer(settings, parameters, parameter_rules(settings, list(parameters)))
    for number in range(4):
        batches = [task.batch(6400, 5000, seed=number).pin_memory()]
        with no_waits() if number else nullcontext():
            gradient_step(parallel, task, batches, optimizer, settings=settings)


@cuda_alone
def test_a_batch_without_memory_names_one_to_try(ckpt: Run) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(64 * 2**20, torch.cuda.memory_reserved()) / total)
    try:
        done = ckpt("train", write(fields=MINIATURE, clips=256, batch_size=256), "--device", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.code == 2, done
    said = " ".join(done.err.split())
    assert "does not have enough memory for train.batch_size 256" in said
    assert "Try --set batch_size=128 --set accumulate=2 or --set gradient_checkpointing=true" in said


def test_the_benchmark_runs() -> None:
    """One of its works, small; ``test_gpu_benchmark.py`` runs every arm on a CPU."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_gpu", "--tiny", "--device", DEVICE]
    command += ["--works", "ctc", "--backend", "eager" if DEVICE == "cpu" else "inductor"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, "--steps", "2", "--rounds", "1"], capture_output=True, text=True, cwd=root, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["arm"] for line in lines if "arm" in line] == [
        f"ctc {loop} bf16" for loop in ("ours", "published", "strong")
    ]
    assert all(line["tflops_s"] > 0 for line in lines if "arm" in line)
    assert sum("ratio" in line for line in lines) == 2
