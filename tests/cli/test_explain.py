"""``--explain``: why a destination tensor is what it is, and what else it could have been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Run = Callable[..., Any]
Golden = Callable[[str, str], None]

SHAPES = {
    "visual.pos_embed": [1, 50, 8],
    "emb.weight": [7, 8],
    "head.weight": [7, 8],
    "norm.weight": [8],
    "enc.layers.0.w": [8, 8],
    "enc.layers.1.w": [8, 8],
    "q.weight": [4, 8],
    "decoder.out.weight": [8, 8],
    "proj.weight": [6, 6],
    "lm.weight": [3, 3],
}
ARGUMENTS = [
    "--source", "a.pth", "--source", "b.pth", "dst.yaml",
    "--map", "layers.{n}=enc.layers.{2n,2n+1}", "--map", "layers=mid",
    "--exclude", "decoder", "--exclude", "head",
    "--on-mismatch", "**.pos_embed=init", "--on-mismatch", "visual=positions-2d", "--on-mismatch", "emb=pad",
    "--reinit", "lm", "--operations", "split.yaml",
]  # fmt: skip


@pytest.fixture(autouse=True)
def model() -> None:
    torch.manual_seed(0)
    torch.save(
        {
            "visual.pos_embed": torch.randn(1, 17, 8),
            "emb.weight": torch.randn(5, 8),
            "head.weight": torch.randn(5, 8),
            "norm.weight": torch.randn(8),
            "layers.0.w": torch.randn(8, 8),
            "layers.norm.w": torch.randn(2),
            "qk.weight": torch.randn(8, 8),
            "decoder.out_proj.weight": torch.randn(8, 8),
            "old.proj.weight": torch.randn(6, 6),
            "lm.weight": torch.randn(3, 3),
        },
        "a.pth",
    )
    torch.save({"layers.0.w": torch.randn(8, 8), "norm.weight": torch.randn(8).half()}, "b.pth")
    rows = [f"    {key}: {{shape: {shape}, init: {{normal: {{std: 0.02}}}}}}" for key, shape in SHAPES.items()]
    tied = "  tied: [[emb.weight, head.weight]]\n"
    Path("dst.yaml").write_text("model:\n  tensors:\n" + "\n".join(rows) + "\n" + tied)
    Path("split.yaml").write_text("- {split: qk.weight, into: [q.weight, k.weight]}\n")


def asked(ckpt: Run, *keys: str) -> Any:
    done = ckpt("transplant", *ARGUMENTS, "--json", *(part for key in keys for part in ("--explain", key)))
    assert done.code == 0, done
    return json.loads(done.out)


@pytest.mark.parametrize("columns", [80, 120])
def test_an_explanation_is_good_to_look_at(
    columns: int, ckpt: Run, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = ckpt("transplant", *ARGUMENTS, "--explain", "**", "-q")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= columns
    golden(f"explain-{columns}.txt", done.out)


def test_the_json_is_as_it_was(ckpt: Run, golden: Golden) -> None:
    found = asked(ckpt, "norm", "visual.pos_embed", "q.weight", "decoder")
    golden("json-explain.json", json.dumps(found, indent=2) + "\n")


def test_nothing_is_written(ckpt: Run) -> None:
    before = sorted(Path().iterdir())
    assert ckpt("transplant", *ARGUMENTS, "--explain", "norm").code == 0
    assert ckpt("transplant", *ARGUMENTS, "--explain", "norm", "-n").code == 0
    assert sorted(Path().iterdir()) == before


def test_tensors_come_in_the_destination_s_order_and_once(ckpt: Run) -> None:
    found = asked(ckpt, "enc.layers.1", "enc", "visual.pos_embed")
    assert [one["key"] for one in found["tensors"]] == ["visual.pos_embed", "enc.layers.0.w", "enc.layers.1.w"]


def test_what_was_passed_over_is_named_with_the_reason(ckpt: Run) -> None:
    norm, layer, lm = asked(ckpt, "norm", "enc.layers.0", "lm")["tensors"]
    assert norm["from"]["source"] == "b.pth"
    assert [(one["source"], one["why"]) for one in norm["alternatives"]["sources"]] == [
        ("a.pth", "a later source has it too")
    ]
    assert [rule["rule"] for rule in layer["alternatives"]["rules"]] == ["--map layers=mid"]
    assert lm["from"] is None
    assert lm["seed"] == 0
    assert [one["why"] for one in lm["alternatives"]["sources"]] == ["--reinit lm"]


def test_a_rule_of_a_map_file_and_of_a_ruleset_is_named_as_such(ckpt: Run) -> None:
    torch.save({"model.net.w": torch.ones(2), "more.w": torch.ones(2)}, "wrapped.pth")
    Path("d.yaml").write_text("model: {tensors: {net.w: {shape: [2], init: zeros}}}")
    Path("names.map").write_text("**.w=old.**.w")
    line = ("transplant", "wrapped.pth", "d.yaml", "--json", "--explain", "net.w", "--map", "model=")
    for more, said in (
        (("--map-file", "names.map"), "names.map, line 1: rule '**.w=old.**.w'"),
        (("--ruleset", "lightning"), "--ruleset lightning: rule 'model='"),
    ):
        (tensor,) = json.loads(ckpt(*line, *more).out)["tensors"]
        assert [one["rule"] for one in tensor["alternatives"]["rules"]] == [said]


def test_policies_that_would_fit_as_well_are_named(ckpt: Run) -> None:
    (table,) = asked(ckpt, "visual.pos_embed")["tensors"]
    assert table["policy"].startswith("positions-2d:prefix=1,from=4x4,to=7x7")
    assert table["alternatives"]["policies"] == ["init", "pad", "overlap", "interpolate"]
    assert table["alternatives"]["rules"] == [{"rule": "--on-mismatch **.pos_embed=init", "why": "a later policy wins"}]


def test_an_initialised_mismatch_says_what_the_source_has() -> None:
    plan = cs.transplant(["a.pth"], "dst.yaml", on_mismatch="init", exclude="head")
    (table,) = cs.explain(plan, "visual.pos_embed").tensors
    assert table.because == "the shapes differ: --on-mismatch init"
    assert table.alternatives is not None
    assert [one.key for one in table.alternatives.sources] == ["visual.pos_embed"]
    assert "positions-2d" in table.alternatives.policies


def test_a_missing_tensor_has_near_ones_of_its_shape_first(ckpt: Run) -> None:
    decoder, proj = asked(ckpt, "decoder", "proj")["tensors"]
    assert [(one["key"], one["why"]) for one in decoder["alternatives"]["near"]] == [
        ("decoder.out_proj.weight", "left out, --exclude decoder")
    ]
    assert [one["key"] for one in proj["alternatives"]["near"]] == ["old.proj.weight"]


def test_a_missing_tensor_without_its_shape_has_the_nearest_names() -> None:
    torch.save({"norm.weight": torch.ones(8), "bacbone.weight": torch.ones(5)}, "c.pth")
    Path("d.yaml").write_text(
        "model: {tensors: {norm.weight: {shape: [8]}, backbone.weight: {shape: [4], init: ones}}}"
    )
    (missing,) = cs.explain(cs.transplant("c.pth", "d.yaml"), "backbone").tensors
    assert missing.alternatives is not None
    assert [one.key for one in missing.alternatives.near] == ["bacbone.weight"]


def test_what_operations_made_and_what_is_tied_is_said(ckpt: Run) -> None:
    emb, head, query = asked(ckpt, "emb", "head", "q")["tensors"]
    assert (query["class"], query["operation"], query["made_of"]) == ("derived", "split qk.weight", ["qk.weight"])
    assert (emb["ties"], head["ties"], head["tied_to"]) == (["head.weight"], ["emb.weight"], "emb.weight")
    assert emb["seed"] == 0
    assert [one["key"] for one in head["alternatives"]["excluded"]] == ["head.weight"]


def test_mapped_rows_are_counted(ckpt: Run) -> None:
    Path("old.txt").write_text("a\nb\nc\nd\ne\n")
    Path("new.txt").write_text("b\na\nx\ny\nc\nd\ne\n")
    done = ckpt(
        "transplant", "a.pth", "dst.yaml", "--on-mismatch", "init", "--vocab", "old.txt:new.txt", "--vocab-keys", "emb",
        "--exclude", "head", "--explain", "emb", "--json",
    )  # fmt: skip
    (emb,) = json.loads(done.out)["tensors"]
    assert emb["vocabulary"] == {
        "source": "old.txt", "destination": "new.txt", "axis": 0, "tokens": 7, "kept": 5, "moved": 5, "composed": 0,
        "new": 2, "new_tokens": "init",
    }  # fmt: skip


def test_a_checkpoint_keeps_its_own_values_and_draws_nothing() -> None:
    torch.save({"norm.weight": torch.ones(8), "x": torch.ones(2)}, "mine.pth")
    (kept,) = cs.explain(cs.transplant("a.pth", "mine.pth"), ["x"]).tensors
    assert (kept.step.kind, kept.source, kept.seed, kept.because) == ("kept", "", None, "no source has it")


def test_a_plan_that_was_read_from_a_file_knows_no_alternatives() -> None:
    plan = cs.transplant("a.pth", "dst.yaml", on_mismatch="init", exclude="head")
    (read,) = cs.explain(cs.Plan.from_json(plan.to_json()), "norm").tensors
    assert (read.source, read.alternatives) == ("a.pth", None)
    assert cs.explain(plan, "norm").tensors[0].alternatives is not None


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("nrom", "matches none of the 10 destination keys. Did you mean norm (1 key)?"),
        ("layers.0.w", "layers.0.w is a key of the source; in the destination it is enc.layers.0.w, enc.layers.1.w"),
        ("old", "old.proj.weight is a key of the source; it would become old.proj.weight, which the destination"),
        ("decoder.out_proj", "decoder.out_proj.weight is a key of the source; the options leave it out"),
        ("weight", "Did you mean **.weight?"),
        ("", "--explain is empty"),
    ],
)
def test_what_is_no_destination_key_is_an_error_that_says_where_it_is(key: str, said: str, ckpt: Run) -> None:
    done = ckpt("transplant", *ARGUMENTS, "--explain", key)
    assert done.code == 2
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize("option", [["-o", "x.pth"], ["--force"], ["--to", "pth"], ["--max-shard-size", "1GB"]])
def test_explaining_writes_nothing_and_takes_no_option_of_writing(option: list[str], ckpt: Run) -> None:
    done = ckpt("transplant", *ARGUMENTS, "--explain", "norm", *option)
    assert done.code == 2
    assert "--explain writes nothing" in done.err


def test_plans_of_other_verbs_are_not_explained() -> None:
    with pytest.raises(cs.ConfigError, match="a plan of filter"):
        cs.explain(cs.filter("a.pth", exclude="head"), "norm")


def test_many_tensors_are_shown_in_part_unless_all_are_asked_for(ckpt: Run) -> None:
    torch.save({f"l.{i}.w": torch.ones(2) for i in range(30)}, "many.pth")
    some = ckpt("transplant", "many.pth", "many.pth", "--explain", "l").out
    every = ckpt("transplant", "many.pth", "many.pth", "--explain", "l", "-v").out
    assert (some.count("copied"), every.count("copied")) == (12, 30)
    assert "and 18 more tensors (-v or --json lists all)" in some
