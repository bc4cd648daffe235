"""What Python prints of a public object fits a screen, and what is worked out of a plan is worked out once."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.merge_explanation import MergeExplanation
from ckptsurgeon.formats._open import read_header
from ckptsurgeon.planning.keys.rules import parse_rule
from ckptsurgeon.planning.plan import step
from ckptsurgeon.planning.plan.rows import Row, VocabularyRows
from ckptsurgeon.planning.recipe import parse_recipe
from ckptsurgeon.planning.search.result import Trial
from ckptsurgeon.planning.search.space import Parameter
from ckptsurgeon.render.plan import plan_lines, plan_view, rows_said
from ckptsurgeon.storage.read.uri import open_source
from ckptsurgeon.trainer.checks.check import PASS, Check
from ckptsurgeon.trainer.run.transcribe import Transcript, Transcripts

MANY = 1000
WIDTH, LINES = 80, 10
"""A terminal, and how many of its lines a repr may take."""


def lines_of(thing: object) -> int:
    return sum(-(-max(len(line), 1) // WIDTH) for line in repr(thing).split("\n"))


def prove_linear(folder: Path) -> object:
    """The proof that a layer computes what it does."""
    layer = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    (folder / "linear.yaml").write_text(json.dumps({"model": layer}))
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    save_file({"input": torch.ones(1, 2)}, folder / "input.safetensors")
    path = folder / "linear.pth"
    return cs.prove(path, path, model=folder / "linear.yaml", inputs=folder / "input.safetensors")


def barrier_of_linear(folder: Path) -> object:
    """The loss barrier between a layer and itself, after ``prove_linear`` has made it."""
    path = folder / "linear.pth"
    return cs.loss_barrier(path, path, model=folder / "linear.yaml", inputs=folder / "input.safetensors")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A public object of each class, of a thousand tensors with long names where it is of tensors."""
    folder = tmp_path_factory.mktemp("things")
    tensors = {f"encoder.layers.{i}.feed_forward.linear_{i % 7}.weight": torch.ones(2, 3) for i in range(MANY)}
    name, other = str(folder / "a.pth"), str(folder / "b.safetensors")
    torch.save({"state_dict": tensors, "epochs": list(range(MANY))}, name)
    save_file({f"module.{key}": value * 2 for key, value in tensors.items()}, other, {"note": "n" * 5000})
    out = str(folder / "out.safetensors")
    plan = cs.transplant(name, other, map=["encoder=module.encoder"], exclude=["encoder.layers.{0..4}"])
    explained = cs.explain(plan, "**")
    rows = VocabularyRows("a", "b", MANY, tuple(range(MANY)))
    receipt = cs.apply(plan, out)
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(MANY)))
    torch.save(model.state_dict(), folder / "model.ckpt")
    pretrainer = cs.Pretrainer(folder, {"model": model})
    return {
        "Checkpoint": cs.open_checkpoint(name),
        "Plan": plan,
        "Step": replace(plan.steps[0], rows=rows, vocabularies=(rows, rows), made_of=tuple(tensors)),
        "Receipt": receipt,
        "Verification": cs.verify(out),
        "Inspection": cs.inspect(name, stats=True),
        "Changes": cs.compare_changes(name, [other, name]),
        "Difference": cs.diff(name, other, values=True),
        "KnownLayouts": cs.layouts(name),
        "Proposal": cs.match(name, other),
        "Proof": prove_linear(folder),
        "LossBarrier": barrier_of_linear(folder),
        "CheckReport": cs.check(name),
        "Fit": cs.fits(name, other),
        "Explained": explained,
        "ExplainedMerge": cs.ExplainedMerge(tuple(MergeExplanation(step, ()) for step in plan.steps)),
        "Explanation": explained.tensors[0],
        "TargetSpec": cs.load_target(other),
        "TensorInfo": cs.inspect(name).tensors["encoder.layers.0.feed_forward.linear_0.weight"],
        "Scan": cs.scan(folder),
        "Finding": cs.scan(folder).found[0],
        "Use": cs.Use("os", "system", cs.Verdict.CODE, calls=("rm -rf /" * MANY,) * 9),
        "Fault": cs.Fault("corrupt", "why " * MANY),
        "Verdict": cs.scan(name).verdict,
        "Patch": cs.make_patch(name, name, folder / "d.ckptpatch"),
        "Page": cs.view(name, output=folder / "page.html"),
        "Fetched": cs.fetch(str(folder)),
        "FetchConfig": cs.FetchConfig(),
        "Pretrainer": pretrainer,
        "Pretrained": pretrainer.load_collected(),
        "Rule": parse_rule(f"{{{','.join(tensors)}}}=w"),
        "Between": cs.Between(0, 1),
        "Slice": cs.Slice(tuple(np.ones((64, 64), "f4") for _ in range(20)), None, 0, 0, np),
        "Trained": cs.Trained(
            "train.yaml", None, None, "ctc", "cpu", MANY, MANY, "done",
            tuple(Check(f"check {i}", PASS, "says " * 9) for i in range(MANY)),
            figures={f"figure {i}": 0.5 for i in range(MANY)}, notes=("note " * MANY,) * 9,
        ),
        "Transcripts": Transcripts(
            "a.pth", "a.yaml", tuple(Transcript(f"{i}.wav", 1.0, "yes " * MANY) for i in range(MANY))
        ),
        "SearchResult": cs.SearchResult(
            "study", "recipe.yaml", "tpe", 0, "wer", False, tuple(Parameter(f"w{i}") for i in range(MANY)),
            tuple(Trial(i, {}, score=0.5) for i in range(MANY)), Trial(1, {}, score=0.25),
        ),
        "Recipe": parse_recipe(cs.open_checkpoint(out).recipe or ""),
        "Header": read_header(open_source(name)),
    }  # fmt: skip


@pytest.mark.long
def test_there_is_a_thing_of_every_public_class(things: Mapping[str, object]) -> None:
    classes = {name for name in cs.__all__ if isinstance(getattr(cs, name), type)}
    protocols_and_errors = {"Tensors", *(name for name in classes if name.endswith("Error"))}
    assert classes - protocols_and_errors <= things.keys()
    for name in classes & things.keys():
        assert isinstance(things[name], getattr(cs, name)), name


def reached(thing: object, depth: int = 0) -> Iterator[object]:
    """A thing, and what one gets from it by its fields."""
    yield thing
    if depth < 5 and is_dataclass(thing):
        for one in (getattr(thing, field.name) for field in fields(thing)):
            several = [*one.values()] if isinstance(one, Mapping) else one if isinstance(one, (tuple, list)) else [one]
            for each in several[:2]:
                if is_dataclass(each):
                    yield from reached(each, depth + 1)


@pytest.mark.long
def test_what_python_prints_of_a_public_object_fits_ten_lines(things: Mapping[str, object]) -> None:
    long = {(name, type(one).__name__, lines_of(one)) for name, thing in things.items() for one in reached(thing)}
    assert not {row for row in long if row[2] > LINES}


@pytest.mark.long
def test_what_python_prints_says_what_it_is(things: Mapping[str, object]) -> None:
    for name, thing in things.items():
        assert repr(thing).lstrip("<").startswith(name) or "object at" in repr(thing), repr(thing)
    assert repr(things["Plan"]) == "<Plan transplant of a.pth: 995 copied, 5 kept of 1000 tensors>"


def test_what_is_printed_of_a_name_is_on_its_line() -> None:
    torch.save({"w\n\x1b[31m": torch.ones(2)}, "a\nb.pth")
    with cs.open_checkpoint("a\nb.pth") as checkpoint:
        shown = [repr(checkpoint), repr(cs.inspect("a\nb.pth")), repr(cs.filter("a\nb.pth"))]
        shown.append(repr(cs.filter("a\nb.pth").steps[0]))
    assert all(text.isprintable() for text in shown), shown


@pytest.mark.long
@pytest.mark.parametrize("code", ["", "cs.inspect; cs.train; cs.apply", "import ckptsurgeon.cli, ckptsurgeon.planning"])
def test_completion_offers_what_is_public_and_nothing_else(code: str) -> None:
    script = f"import ckptsurgeon as cs\n{code}\nprint(*dir(cs)); print(*cs.__all__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    offered, public = (line.split() for line in done.stdout.splitlines())
    assert offered == sorted(offered)
    assert [name for name in offered if not name.startswith("__")] == public
    assert {"__all__", "__doc__", "__version__"} <= set(offered)
    assert all(name.endswith("__") for name in set(offered) - set(public))


@pytest.fixture
def plan() -> cs.Plan:
    torch.save({f"layers.{i}.w": torch.ones(2, 2) for i in range(4)}, "a.pth")
    torch.save({f"layers.{i}.w": torch.ones(2, 2) for i in range(2, 6)}, "b.pth")
    return cs.transplant("a.pth", "b.pth")


def test_a_plan_works_each_class_out_once(plan: cs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(plan, steps=tuple(replace(one) for one in plan.steps))
    worked_out: Counter[str] = Counter()
    kind_of = step._kind_of

    def counted(one: step.Step) -> str:
        worked_out[one.key] += 1
        return kind_of(one)

    monkeypatch.setattr(step, "_kind_of", counted)
    with open("nothing", "w") as file:
        Console(file=file).print(plan_view(plan))
    assert [*plan_lines(plan)]
    assert plan.counts == {"copied": 2, "kept": 2}
    assert plan.to_json()["counts"] == plan.counts
    assert plan.sha256()
    assert plan.summary()
    assert cs.apply(plan, "out.pth").counts == plan.counts
    assert [worked_out[one.key] for one in plan.steps] == [1] * 4


def test_a_plan_counts_its_steps_once(plan: cs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    kind = step.Step.kind.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(step.Step, "kind", property(lambda one: asked.update([one.key]) or kind(one)))
    plan = replace(plan)  # of which nothing was counted yet
    for _ in range(9):
        assert plan.counts == {"copied": 2, "kept": 2}
    assert asked == {one.key: 1 for one in plan.steps}


def test_what_is_kept_of_a_plan_changes_nothing_of_it(plan: cs.Plan) -> None:
    closed = replace(plan, inputs=None)
    fresh = replace(closed, steps=tuple(replace(one) for one in plan.steps))
    plan.counts["copied"] = 99
    assert plan.counts == closed.counts == {"copied": 2, "kept": 2}
    assert fresh == closed
    assert {hash(one) for one in fresh.steps} == {hash(one) for one in closed.steps}
    for other in (pickle.loads(pickle.dumps(closed)), copy.copy(closed), copy.deepcopy(closed)):
        assert other == closed
        assert other.counts == closed.counts
    (first, *_), cast = closed.steps, replace(closed.steps[0], dtype="float16", op="copy", source_dtype="float32")
    assert first.kind == "copied"
    assert replace(cast, source_shape=cast.shape).kind == "cast"
    assert replace(closed, steps=closed.steps[:1]).counts == {"copied": 1}


def test_the_rows_of_a_vocabulary_are_gone_through_once_for_each_figure() -> None:
    class Looked(tuple[Row, ...]):
        times = 0

        def __iter__(self) -> Iterator[Row]:
            Looked.times += 1
            return super().__iter__()

    rows = VocabularyRows("a", "b", 4, Looked((0, 2, None, (1, 3))))
    said = {rows_said(rows) for _ in range(9)}
    assert said == {"2 of 4 tokens kept (1 moved), 1 composed, 1 new"}
    assert Looked.times == 4
    assert replace(rows) == rows
