"""torch.compile: the run that it is without, in one program, under the names that the model has."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import torch._inductor.config
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.saved import all_tensors, resume_is_exact
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.data.loader import Batches
from ckptsurgeon.trainer.data.sound import Clip
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.parallel.ranks import Ranks
from ckptsurgeon.trainer.system import compiling
from ckptsurgeon.trainer.system.compiling import compile_notes, compiled_loss, has_one_shape
from ckptsurgeon.trainer.system.device import explain_compile_errors

from ..helpers.torch_versions import needs_torch_2_7
from . import together, toy
from .waves import LAYER_NORM, SMALL, ctc_model_of, ctc_task_for, model_of, write

pytest.importorskip("transformers")
pytestmark = [needs_torch_2_7, pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")]
Run = Callable[..., Any]
NET = torch.nn.Linear(1, 1)
SHORT = {**SMALL, "conv_dim": [8, 8], "conv_kernel": [10, 64], "conv_stride": [5, 64], "num_feat_extract_layers": 2}
"""Two convolutions instead of seven: tracing takes as much less."""


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and cut as the compiler does, forwards and backwards, but run what comes of it as it is: in seconds."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def loop_of(compile: str, **settings: Any) -> TrainingLoop:
    job = build_job(write(compile=compile, **{"fields": SHORT, **settings}), device="cpu")
    return TrainingLoop(job, job.model()[0])


VARIOUS: dict[str, dict[str, Any]] = {
    "frozen for a while, averaged, accumulated": {
        "freeze": {"wav2vec2.encoder": 2}, "ema": 0.9, "accumulate": 2, "steps": 4,
    },
    "layer norm, blocks computed again": {
        "gradient_checkpointing": True, "steps": 3, "fields": {**SHORT, **LAYER_NORM, "hidden_dropout": 0.1},
    },
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", VARIOUS)
def test_a_compiled_run_is_the_run_without(name: str) -> None:
    loops = [loop_of(how, **VARIOUS[name]) for how in ("on", "off")]
    for loop in loops:
        loop.run()
    ours, wanted = map(all_tensors, loops)
    assert ours.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert loops[0].state.progress.figures == pytest.approx(loops[1].state.progress.figures, rel=1e-4)


@pytest.mark.long
def test_crops_are_one_program_for_all_steps_and_temperatures() -> None:
    loop = loop_of("on", steps=9, pretrain={"crop_s": 0.3, "gumbel": [2.0, 0.5, 0.9]})
    assert has_one_shape(loop.job)
    loop.run(until=2)  # operations are counted in the first step, which is not compiled
    with torch.compiler.set_stance("fail_on_recompile"):
        assert loop.run() == "done"
    loop = loop_of("on", steps=4)
    torch._dynamo.reset()
    loop.run(until=1)
    with pytest.raises(RuntimeError, match="recompile"), torch.compiler.set_stance("fail_on_recompile"):
        loop.run()


@pytest.mark.long
def test_many_runs_of_a_process_are_compiled_each() -> None:
    """Those of --controls: torch compiles a function eight times at most, and runs it as it is from then on."""
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for _ in range(2):
            assert loop_of("on", steps=2).run() == "done"


@pytest.mark.long
def test_it_goes_on_bit_for_bit() -> None:
    check = resume_is_exact(build_job(write(compile="on", fields=SHORT), device="cpu"), step_s=0.0)
    assert (check.status, check.says) == ("PASS", "4 steps = 2 + 2, bit for bit")


@pytest.mark.long
def test_what_is_saved_knows_nothing_of_it(ckpt: Run, cheap: None) -> None:
    done = ckpt("train", write(compile=True, ema=0.9, fields=SHORT), "--device", "cpu", "--json")
    assert done.code == 0, done
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name in ("run/best.safetensors", "run/last/model.safetensors"):
        assert list(cs.open_checkpoint(name)) == sorted(model_of(SHORT).state_dict())


@pytest.mark.long
def test_a_run_may_go_on_without_and_it_is_said(ckpt: Run, cheap: None) -> None:
    toy.write(compile=False)
    assert ckpt("train", "toy.yaml", "--device", "cpu").code == 0
    done = ckpt("train", "--resume", "--set", "compile=auto", "--device", "cpu")
    assert (
        "compile was off, is now auto: the run continues, but its results will not be the same bit for bit"
        in " ".join((done.out + done.err).split())
    )
    lineage = json.loads(Path("run/lineage.json").read_text())
    del lineage["settings"]["compile"]  # of a version that had no such setting
    Path("run/lineage.json").write_text(json.dumps(lineage))
    assert ckpt("train", "--resume", "--device", "cpu").code == 0


def broken(graph: object, examples: object) -> None:
    raise ValueError("no working compiler is found")


@pytest.mark.long
def test_what_cannot_be_compiled_is_said_in_one_line(ckpt: Run, monkeypatch: pytest.MonkeyPatch, cheap: None) -> None:
    monkeypatch.setattr(compiling, "BACKEND", broken)
    done = ckpt("train", write(compile=True, fields=SHORT), "--device", "cpu")
    said = " ".join(done.err.split())
    assert done.code == 2, done
    assert "the task wav2vec2_pretrain cannot be compiled with this model: backend='broken' raised" in said
    assert "--set compile=off to train without compiling" in said
    assert "Traceback" not in done.err
    assert ckpt("train", "pre.yaml", "--set", "compile=off", "--device", "cpu").code == 0


def test_other_errors_are_left_as_they_are() -> None:
    for how in ("on", "off"):
        with pytest.raises(ZeroDivisionError), explain_compile_errors(parse_settings({"compile": how}, "x")):
            raise ZeroDivisionError


@pytest.mark.long
def test_auto_compiles_crops_of_one_length_on_a_gpu() -> None:
    job = build_job(write(pretrain={"crop_s": 0.3}), device="cpu")
    gpu = replace(job, device=torch.device("cuda"))
    assert not job.may_compile
    assert gpu.may_compile
    assert compiled_loss(gpu, NET) is not None
    off = replace(gpu, settings=replace(gpu.settings, compile="off"))
    assert not off.may_compile
    assert compiled_loss(off, NET) is None
    assert compiled_loss(job, NET) is None
    assert not compile_notes(gpu)
    other = replace(build_job(write(pretrain={"crop_s": 9.0}), device="cpu"), device=torch.device("cuda"))
    assert compiled_loss(other, NET) is None
    assert "not compiled: crops last 0.4 to" in compile_notes(other)[0]
    assert compiled_loss(replace(toy.job(), device=torch.device("cuda")), NET) is None


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("seconds", "compiled"), [((0.2, 0.2), True), ((0.2, 0.3), False)])
def test_auto_compiles_the_blocks_of_fine_tuning_on_clips_of_one_length(
    seconds: tuple[float, ...], compiled: bool
) -> None:
    job = build_job(write(), device="cpu")
    assert isinstance(job.train, Batches)
    job.train.split = replace(job.train.split, clips=tuple(Clip("a.wav", "a", "x:1", one) for one in seconds))
    model = ctc_model_of(**{**SHORT, **LAYER_NORM})
    gpu = replace(job, device=torch.device("cuda"), task=ctc_task_for(model))
    assert (compiled_loss(gpu, model) is not None) == compiled
    assert not replace(gpu, device=torch.device("cpu")).may_compile


def test_auto_compiles_nothing_with_a_torch_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(build_job(write(pretrain={"crop_s": 0.3}), device="cpu"), device=torch.device("cuda"))
    monkeypatch.delattr(torch.compiler, "is_exporting")
    assert compiled_loss(job, NET) is None
    (note,) = compile_notes(job)
    assert note == f"not compiled: this needs torch 2.7 or newer, and this is torch {torch.__version__}"


@pytest.mark.parametrize(("written", "read"), [(True, "on"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_on_and_off_are_what_yaml_makes_of_them(written: object, read: str) -> None:
    assert parse_settings({"compile": written}, "x").compile == read


def test_another_word_is_an_error() -> None:
    with pytest.raises(
        cs.ConfigError, match=r"train\.compile is 'sometimes', which is not allowed\. Use one of auto, on, off"
    ):
        parse_settings({"compile": "sometimes"}, "x")


@pytest.mark.long
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_compiler_makes_the_same_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", False)  # as NO_VECTORS
    Path("plain.py").write_text(PLAIN)
    net = {"_target_": "plain.Net"}
    loops = [toy.loop(model=net, task="plain.py:Task", compile=how, steps=4) for how in ("on", "off")]
    for loop in loops:
        loop.run()
    ours, wanted = map(all_tensors, loops)
    for key, value in wanted.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


PLAIN = """
import torch
from ckptsurgeon.trainer.tasks import Loss
from toy_task import Toy

class Task(Toy):
    def loss(self, model, batch):
        logits = model(batch.inputs, batch.lengths)
        total = torch.nn.functional.cross_entropy(logits, batch.labels[:, 0], reduction="sum")
        return Loss(total, len(batch.labels), {"ce": total.detach()})

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x, lengths):
        return self.head(x.sum(1) / lengths[:, None])
"""


BLOCKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, x, lengths):
        for layer in self.layers:
            x = layer(x) + x
        inside = torch.arange(x.shape[1])[None] < lengths[:, None]
        return self.head((x * inside[..., None]).sum(1) / lengths[:, None])
"""

COUNTED = """
import torch
from ckptsurgeon.trainer.system import compiling
compiling.BACKEND = "aot_eager"
from ckptsurgeon.trainer import loop
real = loop.TrainingLoop.run
def run(self, **options):
    ended = real(self, **options)
    assert not any(hasattr(vars(one).get("forward"), "_torchdynamo_orig_callable") for one in self.model.modules())
    print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"], flush=True)
    return ended
loop.TrainingLoop.run = run
"""

NO_VECTORS = """
import torch._inductor.config
torch._inductor.config.cpp.vec_isa_ok = False
"""
"""The compiler of a machine without vector instructions: else it begins with a program for each kind, to see if it runs."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "section"),
    [
        pytest.param((), {}, id="ddp"),
        pytest.param(
            ("--strategy", "fsdp"),
            {"gradient_checkpointing": True, "accumulate": 2},
            id="fsdp, checkpointed",
        ),
    ],
)
def test_several_processes_compile_block_by_block(how: tuple[str, ...], section: dict[str, Any]) -> None:
    """The losses are those of a run that is not compiled, and what is saved has the names of the model."""
    configured = together.write(**section)
    Path("blocks_net.py").write_text(BLOCKS)
    document = yaml.safe_load(Path(configured).read_text())
    Path(configured).write_text(yaml.safe_dump({**document, "model": {"_target_": "blocks_net.Net"}}))
    runs = {}
    for compiled in ("on", "off"):
        ended = together.train(configured, "--run", compiled, "--set", f"compile={compiled}", *how, BEFORE=COUNTED)
        assert [one.code for one in ended] == [0, 0], ended
        assert "not compiled" not in ended[0].err + ended[0].out
        graphs = [int(one.out.split("graphs ")[1].split()[0]) for one in ended]
        assert all((found > 0) == (compiled == "on") for found in graphs), graphs
        runs[compiled] = [json.loads(line) for line in Path(compiled, "log.jsonl").read_text().splitlines()]
    losses = {name: [row["loss"] for row in rows if "loss" in row] for name, rows in runs.items()}
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    assert together.apart("on", "off") < 1e-4
    for name in ("best.safetensors", "last/model.safetensors"):
        assert list(cs.open_checkpoint(f"on/{name}")) == list(cs.open_checkpoint(f"off/{name}"))


@pytest.mark.long
def test_a_model_without_blocks_is_not_compiled_by_several_processes() -> None:
    job = build_job(toy.write(), device="cpu")
    job = replace(job, settings=replace(job.settings, compile="on"), ranks=Ranks(0, 2))
    with pytest.raises(cs.ConfigError, match="block by block, but no blocks were found"):
        compiled_loss(job, NET)
    gpu = build_job(write(pretrain={"crop_s": 0.3}), device="cpu")
    gpu = replace(gpu, device=torch.device("cuda"), ranks=Ranks(0, 2))
    assert compiled_loss(gpu, NET) is None


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the input of a block
def test_fine_tuning_of_waves_is_compiled_block_by_block() -> None:
    """Its masks are drawn on the CPU, and are the same."""
    fields = {**SHORT, "conv_kernel": [10, 3], "conv_stride": [5, 2], **LAYER_NORM, "mask_time_length": 2}
    losses = []
    for how in ("off", "on"):
        model: Any = ctc_model_of(**fields).train()
        task = ctc_task_for(model)
        settings = replace(task.settings, compile=how)
        job: Any = SimpleNamespace(task=task, settings=settings, train=None, device=torch.device("cpu"), ranks=Ranks())
        loss = (compiled_loss(job, model) if how == "on" else None) or task.loss
        numpy.random.seed(3)
        found = [loss(model, task.batch(3200, size)).total for size in (3200, 2500, 2900)]
        torch.stack(found).sum().backward()
        losses.append([*(float(one.detach()) for one in found), float(model.lm_head.weight.grad.square().sum())])
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == (how == "on")
        assert not torch._dynamo.utils.counters["graph_break"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.long
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_the_real_compiler_compiles_block_by_block() -> None:
    configured = together.write(steps=4)
    Path("blocks_net.py").write_text(BLOCKS)
    document = yaml.safe_load(Path(configured).read_text())
    Path(configured).write_text(yaml.safe_dump({**document, "model": {"_target_": "blocks_net.Net"}}))
    for compiled in ("on", "off"):
        before = COUNTED.replace("aot_eager", "inductor") + NO_VECTORS
        ended = together.train(configured, "--run", compiled, "--set", f"compile={compiled}", BEFORE=before)
        assert [one.code for one in ended] == [0, 0], ended
    assert together.apart("on", "off") < 1e-4
