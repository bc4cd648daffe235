"""A model of which each process holds a part is the model that one has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.parallel.ranks import Ranks
from ckptsurgeon.trainer.parallel.sharded_model import ShardedModel

from ..helpers.torch_versions import needs_torch_2_7
from . import toy
from .together import WRITES_AT_ONCE, apart, same_bits, together, train, write

FSDP = ("--strategy", "fsdp")
pytestmark = needs_torch_2_7


def checks_of(run: str) -> dict[str, str]:
    return {check["name"]: check["status"] for check in json.loads(Path(run, "result.json").read_text())["checks"]}


@pytest.mark.long
def test_a_run_in_parts_is_that_of_one_and_goes_on_in_any_number_of_processes() -> None:
    """With an average, frozen layers of which one thaws, clipping and several batches a step."""
    write(accumulate=2, ema=0.9, clip=0.5, freeze={"body.first": 3, "head.bias": None})
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("toy.yaml", "--run", "two", *FSDP)
    assert [one.code for one in ended] == [0, 0], ended
    assert (ended[1].out, ended[1].err) == ("", "")
    assert apart("one", "two") < 1e-5
    assert apart("one", "two", "best.safetensors") < 1e-5
    assert checks_of("two") == {**checks_of("one"), "initialised tensors fit": "NOT RUN"}
    assert checks_of("two")["frozen tensors did not move"] == "PASS"
    assert sorted(os.listdir("two/last/moments")) == [".metadata", "__0_0.distcp", "__1_0.distcp"]

    begun = train("toy.yaml", "--run", "parts", *FSDP, FAULT="1 9 SIGTERM")
    assert [one.code for one in begun] == [143, 0], begun
    assert os.readlink("parts/last") == "steps/5"
    for name, size, how in (("by-one", 1, ()), ("by-two", 2, FSDP), ("whole", 2, ())):
        os.system(f"cp -a parts {name}")
        ended = train("--run", name, "--resume", *how, size=size)
        assert [one.code for one in ended] == [0] * size, ended
        assert apart("one", name) < 1e-5
    assert apart("two", "by-two") == 0
    assert apart("two", "by-two", "best.safetensors") == 0

    begun = train("toy.yaml", "--run", "begun", size=1, FAULT="0 9 SIGTERM")
    assert begun[0].code == 143
    ended = train("--run", "begun", "--resume", *FSDP)
    assert [one.code for one in ended] == [0, 0], ended
    assert apart("one", "begun") < 1e-5


def test_a_torch_that_cannot_shard_on_cpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu.Stream, "record_event")
    with pytest.raises(ConfigError, match=r"fsdp\W* on CPUs needs torch 2\.7 or newer, and this is torch 2"):
        ShardedModel(torch.nn.Linear(8, 8), Ranks(0, 2), torch.device("cpu"))


@pytest.mark.long
def test_what_each_draws_is_gone_on_with_bit_for_bit() -> None:
    write(model={"norm": True, "dropout": 0.3}, ema=0.9)
    assert [one.code for one in train("toy.yaml", "--run", "whole", *FSDP)] == [0, 0]
    assert [one.code for one in train("toy.yaml", "--run", "parts", *FSDP, FAULT="0 3 SIGHUP")] == [129, 0]
    assert [one.code for one in train("--run", "parts", "--resume", *FSDP)] == [0, 0]
    assert same_bits("whole", "parts")
    first, second = (read_moments_of(run) for run in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert len(first) > 6
    assert all(torch.equal(first[name], second[name]) for name in first)


def read_moments_of(run: str) -> dict[str, torch.Tensor]:
    """What was saved beside the weights, as our own reader has it."""
    with cs.open_checkpoint(f"{run}/last/moments") as found:
        return {key: found.tensor(key) for key in found}


@pytest.mark.long
def test_it_starts_from_an_init_and_is_held_against_it(source: Path) -> None:
    toy.write()
    toy.make_init("head", source=str(source))
    assert [one.code for one in train("toy.yaml", "--init", "toy.init.safetensors", "--run", "run", *FSDP)] == [0, 0]
    assert checks_of("run")["loaded tensors equal their source"] == "PASS"
    assert checks_of("run")["ties are still ties"] == "NOT RUN"


WIDE = """
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1024, 1024) for _ in range(24)])
        self.register_buffer("table", __import__("torch").ones(3), persistent=False)
"""

LOADED = """
import os, re, torch
from ckptsurgeon.storage.read import local
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.trainer.state.model_tensors import state_tensors
from ckptsurgeon.trainer.parallel.process_group import process_group, read_torchrun_env
from ckptsurgeon.destinations.torch_module.tensors import own_part
from ckptsurgeon.destinations.torch_module.meta import build_on_meta
from ckptsurgeon.trainer.parallel.sharded_model import ShardedModel

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

with process_group(read_torchrun_env(os.environ), torch.device("cpu")) as ranks:
    job = build_job("wide.yaml", device="cpu", init=read_init("wide.safetensors"), ranks=ranks, strategy=HOW)
    ShardedModel(build_on_meta(lambda: torch.nn.Linear(8, 8)), ranks, torch.device("cpu"))  # which imports much
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    model, plan = job.parallel_model()
    assert torch.equal(model.module.table, torch.ones(3))
    held = sum(own_part(tensor).nbytes for tensor in state_tensors(model.module).values())
    print(peak() - before, held)
"""


@pytest.mark.long
def test_no_process_ever_holds_all_of_an_init() -> None:
    """100 MB: each of two holds a half and, for moments, a layer or two."""
    Path("wide_net.py").write_text(WIDE)
    Path("wide_task.py").write_text(toy.TASK)
    train_section = {"task": "wide_task.py:Toy", "steps": 1}
    Path("wide.yaml").write_text(yaml.safe_dump({"model": {"_target_": "wide_net.Wide"}, "train": train_section}))
    layers = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1024, 1024) for _ in range(24)])})
    save_file(layers.state_dict(), "wide.safetensors")
    whole = sum(value.nbytes for value in load_file("wide.safetensors").values())
    for how, most in (("fsdp", 0.75), ("ddp", 99.0)):
        ended = together(f"HOW = {how!r}\n{LOADED}")
        assert [one.code for one in ended] == [0, 0], ended
        for one in ended:
            took, held = map(int, one.out.split())
            assert took < most * whole, (how, took / whole)
            assert (held == whole // 2) == (how == "fsdp")
            if how == "ddp":
                assert took > 0.9 * whole  # the measure sees what it is to see


@pytest.mark.long
def test_the_run_ends_where_one_is_lost_and_goes_on_from_its_last_checkpoint() -> None:
    write(save_every=3)
    ended = train("toy.yaml", "--run", "run", *FSDP, FAULT="1 5 SIGKILL")
    assert ended[0].code == 1
    assert "rank 1 ended, without giving a reason; step 3 is saved" in " ".join(ended[0].err.split())
    assert [one.code for one in train("--run", "run", "--resume", *FSDP)] == [0, 0]
    assert RunFolder("run").last_step() == 8


@pytest.mark.long
def test_damaged_moments_are_noticed() -> None:
    write(save_every=3)
    assert train("toy.yaml", "--run", "run", *FSDP, FAULT="0 5 SIGTERM")[0].code == 143
    path = Path("run/last/moments/__1_0.distcp")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    first, second = train("--run", "run", "--resume", *FSDP)
    assert first.code == 3
    assert "moments/__1_0.distcp is damaged" in first.err
    assert "Traceback" not in first.err + second.err


@pytest.mark.costly
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strategy", "zero"], "--strategy 'zero' is unknown"),
        (["--strategy", "fsdp", "--controls"], "--controls needs the whole model in one process"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], says: str) -> None:
    write()
    first, second = train("toy.yaml", *arguments)
    assert first.code == 2
    assert says in first.err
    assert "Traceback" not in first.err + second.err


@pytest.mark.long
def test_a_model_that_cannot_be_shared_out_is_an_error() -> None:
    write()
    Path("toy_net.py").write_text(
        toy.NET.replace("        self.leaky", "        self.one = nn.Parameter(torch.ones(()))\n        self.leaky")
    )
    first, second = train("toy.yaml", *FSDP)
    assert first.code == 2, first
    assert "--strategy fsdp cannot shard this model" in first.err
    assert "Traceback" not in first.err + second.err


@pytest.mark.long
def test_one_process_alone_has_the_whole_model() -> None:
    write(steps=2, warmup=0)
    done = train("toy.yaml", "--run", "run", *FSDP, size=1)[0]
    assert done.code == 0
    assert "--strategy fsdp has no effect: there is only one process" in " ".join(done.err.split())


LAYERED = """
import random
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, drop=False):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.head, self.drop = nn.Linear(8, 4), drop

    def forward(self, x, lengths):
        for layer in self.layers:
            if not (self.drop and self.training and random.random() < 0.5):
                x = torch.tanh(layer(x)) + x
        inside = torch.arange(x.shape[1])[None] < lengths[:, None]
        return self.head((x * inside[..., None]).sum(1) / lengths[:, None])
"""


def layered(**model: object) -> None:
    write()
    Path("layered_net.py").write_text(LAYERED)
    document = yaml.safe_load(Path("toy.yaml").read_text())
    Path("toy.yaml").write_text(yaml.safe_dump({**document, "model": {"_target_": "layered_net.Net", **model}}))


@pytest.mark.long
def test_layers_of_a_list_are_put_together_one_by_one() -> None:
    layered()
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("toy.yaml", "--run", "two", *FSDP, size=3)
    assert [one.code for one in ended] == [0, 0, 0], ended
    assert apart("one", "two") < 1e-5


TYPES = """
from torch import nn
seen = set()
for kind, name in ((nn.Linear, "linear"), (nn.BatchNorm1d, "norm"), (nn.LSTM, "lstm")):
    def forward(self, x, *others, real=kind.forward, name=name):
        weight = next(self.parameters())
        seen.add((name, self.training, str(weight.dtype), str(x.dtype)))
        return real(self, x, *others)
    kind.forward = forward
from ckptsurgeon.trainer import loop
real = loop.TrainingLoop.run
def run(self, **options):
    ended = real(self, **options)
    print("seen", sorted(seen), flush=True)
    print("own", sorted({str(one.dtype) for one in self.model.parameters()}), flush=True)
    print("moments", sorted({str(one.dtype) for state in self.state.optimizer.inner.state.values() for one in state.values() if one.dim()}))
    return ended
loop.TrainingLoop.run = run
"""

MIXED = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "plain":
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        if kind == "lstm":
            self.other = nn.LSTM(8, 8, batch_first=True)
        if kind == "norm":
            self.other = nn.BatchNorm1d(8)

    def forward(self, x):
        if self.kind == "lstm":
            return self.other(x)[0]
        if self.kind == "norm":
            return self.other(x.float().transpose(1, 2)).transpose(1, 2)
        return torch.tanh(self.linear(self.norm(x))) + x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(kind) for kind in ("plain", "lstm", "norm", "plain")])
        self.head = nn.Linear(8, 4)

    def forward(self, x, lengths):
        for layer in self.layers:
            x = layer(x)
        inside = torch.arange(x.shape[1])[None] < lengths[:, None]
        return self.head((x * inside[..., None]).sum(1) / lengths[:, None])
"""


@pytest.mark.long
def test_bf16_gathers_layers_in_bfloat16_and_keeps_float32() -> None:
    """Losses are near those of float32; parameters, moments and files are float32."""
    write(accumulate=2, optimizer="sgd")
    Path("layered_net.py").write_text(MIXED)
    document = yaml.safe_load(Path("toy.yaml").read_text())
    Path("toy.yaml").write_text(yaml.safe_dump({**document, "model": {"_target_": "layered_net.Net"}}))
    losses = {}
    for precision in ("bf16", "float32"):
        ended = train("toy.yaml", "--run", precision, "--set", f"precision={precision}", *FSDP, BEFORE=TYPES)
        assert [one.code for one in ended] == [0, 0], ended
        said = dict(line.split(" ", 1) for line in ended[1].out.splitlines())
        assert said["own"] == "['torch.float32']"
        assert set(json.loads(said["moments"].replace("'", '"'))) <= {"torch.float32"}
        seen = {(name, weight) for name, training, weight, _ in eval(said["seen"]) if training}
        blocks = "torch.bfloat16" if precision == "bf16" else "torch.float32"
        assert seen == {
            ("linear", blocks),
            ("linear", "torch.float32"),
            ("lstm", "torch.float32"),
            ("norm", "torch.float32"),
        }
        losses[precision] = [
            json.loads(line).get("loss") for line in Path(precision, "log.jsonl").read_text().splitlines()
        ]
        for name in ("best.safetensors", "last/model.safetensors"):
            assert {one.dtype for key, one in load_file(f"{precision}/{name}").items() if "tracked" not in key} == {
                torch.float32
            }
    pairs = [(one, other) for one, other in zip(losses["bf16"], losses["float32"], strict=True) if one is not None]
    assert len(pairs) == 8
    assert [one for one, _ in pairs] != [other for _, other in pairs]
    for one, other in pairs:
        assert one == pytest.approx(other, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize("seed", ["1", "2", "5"])
def test_processes_that_use_other_layers_are_an_error(seed: str) -> None:
    """Not a mixture of the parts of two layers, and not an abort where one uses more of them."""
    layered(drop=True)
    first, second = train("toy.yaml", "--run", "run", "--seed", seed, *FSDP)
    assert (first.code, second.code) == (2, 2), (first, second)
    assert "the processes use different layers in the same step" in " ".join(first.err.split())
    assert not Path("run/last").exists()


@pytest.mark.long
def test_the_test_split_is_evaluated_with_the_best_weights() -> None:
    write(task="FaultyTest", evaluate_every=2)
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("toy.yaml", "--run", "two", *FSDP)
    assert [one.code for one in ended] == [0, 0], ended
    found, wanted = (json.loads(Path(run, "result.json").read_text()) for run in ("two", "one"))
    assert found["test"] == pytest.approx(wanted["test"], rel=1e-5)
    assert found["test_clips"] == 60


@pytest.mark.long
def test_a_signal_behind_the_last_step_is_heard_by_all() -> None:
    write()
    ended = train("toy.yaml", "--run", "run", *FSDP, FAULT="1 e2 SIGTERM")  # while the last evaluation is made
    assert [one.code for one in ended] == [143, 0], ended
    assert "Traceback" not in ended[0].err + ended[1].err
    assert "ended" not in ended[0].err + ended[1].err
    assert RunFolder("run").last_step() == 8


@pytest.mark.long
@pytest.mark.parametrize("how", [(), FSDP])
def test_a_process_that_ends_while_others_evaluate_is_named_and_the_evaluation_is_made_up_for(
    how: tuple[str, ...],
) -> None:
    write(save_every=2)
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("toy.yaml", "--run", "run", *how, FAULT=f"{1 if how else 0} e1 SIGKILL", BEFORE=WRITES_AT_ONCE)
    survivor = ended[0 if how else 1]
    assert survivor.code == 1, ended
    assert f"rank {1 if how else 0} ended, without giving a reason" in " ".join(survivor.err.split()), survivor.err
    assert "Traceback" not in survivor.err
    assert [one.code for one in train("--run", "run", "--resume", *how)] == [0, 0]
    rows = [[json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] for run in ("one", "run")]
    assert [row["step"] for row in rows[1] if "dev" in row] == [row["step"] for row in rows[0] if "dev" in row]


@pytest.mark.long
def test_moments_that_cannot_be_written_are_an_error() -> None:
    write()
    ended = train("toy.yaml", "--run", "run", *FSDP, BEFORE=NO_ROOM)
    assert ended[0].code == 5, ended
    assert "moments cannot be written" in " ".join(ended[0].err.split())
    assert "Traceback" not in ended[0].err + ended[1].err
    assert not Path("run/last").exists()


NO_ROOM = """
import os, torch
from torch.distributed.checkpoint import filesystem
if os.environ["RANK"] == "1":
    def full(*args, **options):
        raise OSError(28, "No space left on device")
    filesystem.FileSystemWriter.write_data = full
"""


@pytest.mark.long
def test_a_whole_checkpoint_in_the_place_of_one_in_parts_has_no_moments_of_that() -> None:
    write(save_every=4)
    assert [one.code for one in train("toy.yaml", "--run", "run", *FSDP)] == [0, 0]
    os.remove("run/last")
    os.symlink("steps/4", "run/last")  # as if it had been killed before it let that lead to step 8
    assert [one.code for one in train("--run", "run", "--resume")] == [0, 0]
    assert os.readlink("run/last") == "steps/8"
    assert sorted(os.listdir("run/last")) == ["model.safetensors", "state.pth", "sums.json"]


def test_buffers_of_every_type_are_the_first_process_s() -> None:
    ended = together(FOLLOWED)
    assert [one.code for one in ended] == [0, 0], ended
    assert ended[0].out == ended[1].out == "[[1, 1], [True, True], [-0.0, -0.0], 7]\n"


FOLLOWED = """
import os, torch
from ckptsurgeon.trainer.parallel.process_group import process_group, read_torchrun_env
with process_group(read_torchrun_env(os.environ), torch.device("cpu")) as ranks:
    first = ranks.is_main
    tensors = [torch.full((2,), 1 if first else 5, dtype=torch.int16), torch.full((2,), first),
               torch.full((2,), -0.0 if first else 3.0), torch.tensor(7 if first else 8)]
    ranks.broadcast_tensors(tensors)
    print([one.tolist() for one in tensors])
"""
