"""Several processes that train one model: together they are one with the batches of all, and none fails alone."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.source import RankBatches, share_batches
from ckptsurgeon.trainer.loop import gradient_step
from ckptsurgeon.trainer.parallel.process_group import read_torchrun_env
from ckptsurgeon.trainer.parallel.ranks import SINGLE_PROCESS, Ranks
from ckptsurgeon.trainer.state.model_tensors import state_tensors

from . import toy
from .sounds import corpus
from .together import apart, environment, same_bits, together, train, write

STEP = """
import json, sys, torch
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.state.model_tensors import state_tensors
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.parallel.process_group import process_group, read_torchrun_env
from ckptsurgeon.trainer.loop import gradient_step
import os
torch.set_num_threads(1)
with process_group(read_torchrun_env(os.environ), torch.device("cpu")) as ranks:
    job = build_job("toy.yaml", device="cpu", ranks=ranks)
    loop = TrainingLoop(job, job.model()[0])
    loop.state.apply_freezing()
    calls = []
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    loop.state.parallel._wrapped.register_comm_hook(None, lambda state, bucket: (calls.append(1), allreduce_hook(None, bucket))[1])
    batch = next(loop.job.train.read(0, 0))
    own = [batch.part(0, 3), batch.part(3, 4)] if ranks.is_main else [batch.part(4, 7), batch.part(7, 8)]
    stepped = gradient_step(loop.state.parallel, loop.job.task, own, loop.state.optimizer, settings=loop.settings)
    torch.save({key: value.detach() for key, value in state_tensors(loop.model).items()}, f"rank{ranks.rank}.pth")
    said = ranks.all_gather(ranks.rank)
    print(json.dumps([float(stepped.loss), float(stepped.grad_norm), stepped.counts.clips, said, ranks.broadcast(ranks.rank), len(calls)]))
"""


def log_of(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_step_of_two_is_that_of_one_with_all_their_clips_and_gradients_are_added_up_once() -> None:
    settings: dict[str, Any] = {"batch_size": 8, "model": {"norm": False, "dropout": 0.0}}
    loop = toy.loop(**settings)
    before = {key: value.detach().clone() for key, value in state_tensors(loop.model).items()}
    stepped = gradient_step(
        loop.state.parallel, loop.job.task, [next(loop.state.stream)], loop.state.optimizer, settings=loop.settings
    )  # fmt: skip
    ended = together(STEP)
    assert [one.code for one in ended] == [0, 0], ended
    for one in ended:
        loss, norm, clips, agreed, told, added = json.loads(one.out.splitlines()[-1])
        assert loss == pytest.approx(float(stepped.loss), rel=1e-5)
        assert norm == pytest.approx(float(stepped.grad_norm), rel=1e-5)
        assert (clips, agreed, told, added) == (8, [0, 1], 0, 1)
    for rank in range(2):
        made = torch.load(f"rank{rank}.pth", weights_only=True)
        for key, value in state_tensors(loop.model).items():
            torch.testing.assert_close(made[key], value.detach(), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(before[key], value) for key, value in state_tensors(loop.model).items())


def test_a_run_of_two_is_that_of_one_and_goes_on_with_one() -> None:
    """Two of 8 clips are one of 16; what two have begun one ends, and what one has begun two."""
    write()
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    first, second = train("toy.yaml", "--run", "two")
    assert (first.code, second.code) == (0, 0), (first, second)
    assert (second.out, second.err) == ("", "")
    assert "trained two  8/8 steps" in first.out
    assert json.loads(Path("two/lineage.json").read_text())["processes"] == 2
    assert apart("one", "two") < 1e-5
    assert apart("one", "two", "best.safetensors") < 1e-5
    for wanted, row in zip(log_of("one"), log_of("two"), strict=True):
        assert {name: row.get(name) for name in ("step", "clips", "padding", "flops", "skipped", "lr")} == {
            name: wanted.get(name) for name in ("step", "clips", "padding", "flops", "skipped", "lr")
        }
        for name in ("loss", "grad_norm"):
            assert row.get(name, 0) == pytest.approx(wanted.get(name, 0), rel=1e-5)

    begun = train("toy.yaml", "--run", "ended-by-one", FAULT="1 5 SIGTERM")
    assert [one.code for one in begun] == [143, 0], begun
    assert "terminated by a signal, after it finished its step and saved" in begun[0].out
    assert os.readlink("ended-by-one/last") == "steps/6"
    shutil.copytree("ended-by-one", "ended-by-two", symlinks=True)
    gone_on = train("--run", "ended-by-one", "--resume", size=1)[0]
    assert gone_on.code == 0, gone_on
    assert "had 2 processes, and now has 1" in gone_on.err
    assert apart("one", "ended-by-one") < 1e-5

    assert [one.code for one in train("--run", "ended-by-two", "--resume")] == [0, 0]
    assert same_bits("two", "ended-by-two")

    assert train("toy.yaml", "--run", "begun-by-one", size=1, FAULT="0 5 SIGINT")[0].code == 130
    assert [one.code for one in train("--run", "begun-by-one", "--resume")] == [0, 0]
    assert apart("one", "begun-by-one") < 1e-5


NOTHING_HOLDS_IT = """
import gc
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
destroy = distributed.destroy_process_group
def destroyed():
    print("held by", sum(issubclass(type(one), DistributedDataParallel) for one in gc.get_objects()))
    destroy()
distributed.destroy_process_group = destroyed
"""


@pytest.mark.long
def test_nothing_holds_the_group_of_processes_when_it_is_left() -> None:
    """What was destroyed later waited, seldom, for a thread that waited for it: a process that had done all hung."""
    write()
    ended = train("toy.yaml", "--run", "run", BEFORE=NOTHING_HOLDS_IT)
    assert [one.code for one in ended] == [0, 0], ended
    for one in ended:
        assert "held by 0\n" in one.out, one


UNUSED = """
from ckptsurgeon.trainer.parallel.ranks import ParallelModel
finish = ParallelModel.finish_backward
def finished(self):
    data = self._wrapped._get_ddp_logging_data()
    if "unused_parameter_size" in data:  # of the step before
        print("of", data["num_parameter_tensors"], "parameters", data["unused_parameter_size"], "not used")
    finish(self)
ParallelModel.finish_backward = finished
"""


@pytest.mark.long
def test_every_parameter_that_is_summed_is_used_in_a_step() -> None:
    """On a GPU, a backward pass in which one is not waits until it has been told which the other processes used."""
    write()
    ended = train("toy.yaml", "--run", "run", BEFORE=UNUSED)
    assert [one.code for one in ended] == [0, 0], ended
    for one in ended:
        assert set(re.findall("of .* not used", one.out)) == {"of 6 parameters 0 not used"}, one


@pytest.mark.long
def test_what_each_draws_is_gone_on_with_bit_for_bit() -> None:
    """Dropout and a norm: each process has generators of its own."""
    write(model={"norm": True, "dropout": 0.3}, accumulate=2, ema=0.9)
    assert [one.code for one in train("toy.yaml", "--run", "whole")] == [0, 0]
    assert [one.code for one in train("toy.yaml", "--run", "parts", FAULT="0 7 SIGHUP")] == [129, 0]
    assert os.readlink("parts/last") == "steps/4"
    states = torch.load("parts/last/state.pth", weights_only=True)["random"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert [one.code for one in train("--run", "parts", "--resume")] == [0, 0]
    assert same_bits("whole", "parts")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "word", "survivor"),
    [
        pytest.param(
            "1 5 SIGKILL", "rank 1 ended, without giving a reason; step 5 is saved", 0, marks=pytest.mark.long
        ),
        ("1 5 raise", "rank 1 ended with ConfigError: the task faulty.py:Faulty fails in line", 0),
        pytest.param(  # step 2, or 4 if the thread had the time
            "0 5 SIGKILL", "rank 0 ended, without giving a reason; step ", 1, marks=pytest.mark.long
        ),
    ],
)
def test_one_that_ends_is_named_and_the_run_goes_on_from_what_is_saved(fault: str, word: str, survivor: int) -> None:
    write(save_every=2)
    ended = train("toy.yaml", "--run", "run", FAULT=fault)
    assert ended[survivor].code == 1, ended
    assert word in ended[survivor].err.replace("\n      ", " "), ended[survivor].err
    assert fault.endswith("raise") or " is saved, and --resume goes on" in ended[survivor].err.replace("\n      ", " ")
    assert "Traceback" not in ended[survivor].err
    assert [one.code for one in train("--run", "run", "--resume")] == [0, 0]
    write(save_every=4)
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    assert apart("one", "run") < 1e-5


@pytest.mark.long
def test_losses_of_other_parts_are_an_error() -> None:
    """They would be added up one to the other, or wait for each other for ever."""
    write()
    with Path("faulty.py").open("a") as file:
        file.write(PARTED)
    for how in ("OTHER", "NONE"):
        ended = train("toy.yaml", "--run", "run", "--set", "task=faulty.py:Parted", HOW=how)
        assert [one.code for one in ended] == [2, 2], ended
        assert "the losses of the processes have different parts in the same step" in " ".join(ended[0].err.split())


PARTED = """
class Parted(Toy):
    def loss(self, model, batch):
        found = super().loss(model, batch)
        if os.environ["RANK"] == "0" or not torch.is_grad_enabled():
            return found
        return Loss(found.total, found.items, {"other": found.total} if os.environ["HOW"] == "OTHER" else {})
"""


@pytest.mark.long
def test_the_others_end_where_the_first_cannot_begin() -> None:
    write(task="Missing")
    first, second = train("toy.yaml", "--run", "run")
    assert first.code == 2
    assert "Missing" in first.err
    assert (second.code, second.out, second.err) == (0, "", "")
    assert not Path("run").exists()
    write(metric="unheard")  # which the first one finds out before the first step, when the others are ready
    first, second = train("toy.yaml", "--run", "run")
    assert (first.code, second.code, second.out, second.err) == (2, 1, "", "")
    assert "unheard: the task does not return this metric" in first.err
    write()
    first, second = train("toy.yaml", "--check-only")
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", "")
    assert "first loss" in first.out


@pytest.mark.long
def test_the_first_says_which_of_the_others_cannot_begin() -> None:
    write(task="Unbearable")
    with Path("faulty.py").open("a") as file:
        file.write(UNBEARABLE)
    first, second = train("toy.yaml", "--run", "run")
    assert (first.code, second.code) == (1, 2)
    assert "error: rank 1 ended with ConfigError: rank 1 cannot." in first.err.replace("\n", " ")
    assert "cannot" in second.err
    assert "Traceback" not in first.err + second.err


UNBEARABLE = """
from ckptsurgeon.errors import ConfigError

class Unbearable(Toy):
    def __init__(self, *args):
        if os.environ["RANK"] == "1":
            raise ConfigError("rank 1 cannot.")
        super().__init__(*args)
"""


@pytest.mark.long
def test_other_data_is_an_error_that_is_said_once() -> None:
    Path("here").mkdir()
    Path("there").mkdir()
    for folder, texts in (("here", ["a", "b", "ab", "c"]), ("there", ["a", "b", "ab", "b"])):
        corpus(f"{folder}/train.csv", texts)
        Path(folder, "alphabet.txt").write_text("a\nb\nc\n")
        Path(folder, "x.yaml").write_text(yaml.safe_dump(SPEECH))
    first, second = train("x.yaml", folders={0: "here", 1: "there"})
    assert (first.code, second.code) == (2, 2)
    assert "rank 1 has different data than rank 0 for x.yaml." in first.err
    assert (second.out, second.err) == ("", "")
    assert not Path("here/run").exists()


SPEECH: dict[str, Any] = {
    "model": {
        "name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0,
    },
    "train": {
        "task": "ctc", "steps": 4, "batch_size": 4, "features": {"size": 10, "stack": 2}, "warmup": 1, "save_every": 3,
        "data": {"train": "train.csv", "tokens": "alphabet.txt", "workers": 1, "cache": "cache"}, "clip": 1.0,
    },
}  # fmt: skip


@pytest.mark.long
def test_clips_of_manifests_are_shared_out_and_one_that_has_none_stands_idle() -> None:
    """Five clips in batches of four: the second one is a single clip, of which the other process has no part."""
    corpus("train.csv", ["a", "b", "ab", "c", "ca"])
    Path("alphabet.txt").write_text("a\nb\nc\n")
    Path("x.yaml").write_text(yaml.safe_dump(SPEECH))
    assert train("x.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("x.yaml", "--run", "two")
    assert [one.code for one in ended] == [0, 0], ended
    assert apart("one", "two") < 1e-5
    rows = [(row["clips"], row.get("fresh"), row.get("too_short")) for row in log_of("two")]
    assert rows == [(row["clips"], row.get("fresh"), row.get("too_short")) for row in log_of("one")]
    assert sorted(clips for clips, _, _ in rows) == [1, 1, 4, 4]


@pytest.mark.long
def test_batches_by_seconds_are_the_same_in_two_processes_as_in_one() -> None:
    """Clips of 0.2 to 0.24 s in batches of half a second: two each, but for a lone one, of which one process has none."""
    corpus("train.csv", ["a", "b", "ab", "c", "ca"])
    Path("alphabet.txt").write_text("a\nb\nc\n")
    section = {**SPEECH["train"], "batch_seconds": 0.5}
    Path("x.yaml").write_text(yaml.safe_dump({**SPEECH, "train": section}))
    assert train("x.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("x.yaml", "--run", "two")
    assert [one.code for one in ended] == [0, 0], ended
    assert apart("one", "two") < 1e-5
    clips = [[row["clips"] for row in log_of(run)] for run in ("one", "two")]
    assert clips[0] == clips[1]
    assert sorted(clips[0][:3]) == [1, 2, 2]  # an epoch: every clip once


@pytest.mark.long
def test_an_evaluation_is_shared_and_its_figures_are_those_of_one() -> None:
    corpus("train.csv", ["a", "b", "ab", "c", "ca"])
    corpus("dev.csv", ["b", "a", "c", "ac", "bc", "abc", "cab"])
    Path("alphabet.txt").write_text("a\nb\nc\n")
    data = {**SPEECH["train"]["data"], "dev": "dev.csv"}
    section = {**SPEECH["train"], "data": data, "batch_size": 3, "evaluate_every": 2}
    Path("x.yaml").write_text(yaml.safe_dump({**SPEECH, "train": section}))
    assert train("x.yaml", "--run", "one", size=1)[0].code == 0
    ended = train("x.yaml", "--run", "two", BEFORE=COUNTING)
    assert [one.code for one in ended] == [0, 0], ended
    one, two = ([row["dev"] for row in log_of(run) if "dev" in row] for run in ("one", "two"))
    assert len(one) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    texts = [sorted(Path(run, "dev.hypotheses.jsonl").read_text().splitlines()) for run in ("one", "two")]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 7
    measured = [Path(f"measured-{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert [len(set(clips)) for clips in measured] == [4, 3]  # three batches: the first and the last, and the other


COUNTING = """
import os
from ckptsurgeon.trainer.tasks.ctc import CTC
real = CTC.measure
def measure(self, model, batch):
    if "dev.csv" in batch.names[0]:
        with open(f"measured-{os.environ['RANK']}.txt", "a") as file:
            for name in batch.names:
                print(name, file=file)
    return real(self, model, batch)
CTC.measure = measure
"""

NO_CHANCE = """
import torch
torch.nn.functional.gumbel_softmax = lambda logits, tau=1, hard=False: torch.softmax(logits / tau, -1)
"""
"""Codes are chosen by chance, and each process has its own."""


@pytest.mark.long
def test_pre_training_normalises_over_all_of_them() -> None:
    pytest.importorskip("transformers")
    from . import waves

    # Without Adam, which makes whole steps of the rounding in gradients that are 0, such as those of the keys' biases.
    pretrain = {"crop_s": 0.4, "diversity": 0.0}  # of which each batch has its own, as everywhere
    waves.write(clips=6, accumulate=2, steps=3, optimizer="sgd", lr=0.01, pretrain=pretrain)
    assert train("pre.yaml", "--run", "one", size=1, BEFORE=NO_CHANCE)[0].code == 0
    ended = train("pre.yaml", "--run", "two", BEFORE=NO_CHANCE)
    assert [one.code for one in ended] == [0, 0], ended
    assert apart("one", "two") < 1e-5
    for wanted, row in zip(log_of("one"), log_of("two"), strict=True):
        for name in ("contrastive", "accuracy"):
            assert row.get("parts", {}).get(name, 0) == pytest.approx(wanted.get("parts", {}).get(name, 0), rel=1e-5)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0"}, "does not set WORLD_SIZE, LOCAL_RANK, but sets other variables of torchrun."),
        ({"RANK": "0", "WORLD_SIZE": "x", "LOCAL_RANK": "0"}, "sets WORLD_SIZE=x, which is not a whole number."),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "sets RANK=0, which must be below WORLD_SIZE=0."),
    ],
)
def test_half_an_environment_is_an_error(environment: dict[str, str], said: str) -> None:
    with pytest.raises(cs.ConfigError) as error:
        read_torchrun_env(environment)
    assert error.value.message == f"the environment {said}"


def test_an_environment_is_read() -> None:
    assert (read_torchrun_env({}).rank, read_torchrun_env({}).world_size) == (0, 1)
    found = read_torchrun_env(environment(1, 2, 1234))
    assert (found.rank, found.world_size, found.local_rank) == (1, 2, 1)


def test_parts_of_a_batch_are_all_of_it() -> None:
    source = toy.job(batch_size=5).train
    assert share_batches(source, SINGLE_PROCESS) is source
    whole = next(iter(source.read(0, 0)))
    parts = [next(iter(RankBatches(source, Ranks(rank, 3)).read(0, 0))) for rank in range(3)]
    assert sorted(name for part in parts for name in part.names) == sorted(whole.names)
    assert sum(part.seconds for part in parts) == pytest.approx(whole.seconds)
    assert not any(part.idle for part in parts)
    idle = next(iter(RankBatches(source, Ranks(5, 6)).read(0, 0)))
    assert (idle.idle, idle.names, idle.seconds) == (True, whole.names[:1], 0.0)
