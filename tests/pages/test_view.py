"""``ckpt view`` without a browser: what is in a page, where it is written, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.pages.html import PROGRAM, script_text

from .made import HOSTILE, changed, data_of, keys_of, network, output, write_empty

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.save(network(), "a.pth")
    save_file(changed(network()), "b.safetensors")


def column(page: cs.Page, *names: str) -> dict[str, Any]:
    """A column of a page by key."""
    found = data_of(page)
    for name in names:
        found = found[name]
    return dict(zip(keys_of(page), found, strict=True))


def test_a_page_has_every_tensor_in_natural_order() -> None:
    page = cs.view("a.pth")
    assert sorted(keys_of(page)) == sorted(network())
    assert keys_of(page).index("encoder.layers.2.attn.bias") < keys_of(page).index("encoder.layers.10.attn.bias")
    tensors = data_of(page)["tensors"]
    kinds = {key: tensors["kinds"][kind] for key, kind in column(page, "tensors", "kind").items()}
    for key, info in cs.open_checkpoint("a.pth").items():
        assert kinds[key] == [info.dtype, list(info.shape), info.nbytes, info.parameters, info.opaque]
    tied = {keys_of(page)[row]: keys_of(page)[owner] for row, owner in tensors["ties"]}
    assert tied == {"decoder.out.weight": "embed.weight"}


def test_figures_and_histograms_are_those_of_the_values() -> None:
    values = torch.cat([torch.randn(5000), torch.tensor([float("nan"), float("inf"), 0.0])])
    many = torch.arange(600_000, dtype=torch.float32).reshape(2, -1)  # of several blocks
    save_file({"w": values, "constant": torch.ones(9), "many": many, "none": torch.zeros(0)}, "f.safetensors")
    page = cs.view("f.safetensors", stats=True)
    finite = values[values.isfinite()].double().numpy()
    figures = {
        name: column(page, "figures", name)["w"] for name in ("mean", "std", "min", "max", "zeros", "nan", "inf")
    }
    exact = {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
    assert figures == {
        **{name: pytest.approx(one, rel=1e-5) for name, one in exact.items()},
        "zeros": 1,
        "nan": 1,
        "inf": 1,
    }
    heights = column(page, "figures", "histogram")
    counts = np.histogram(finite, 32)[0]
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert [letters.index(one) for one in heights["w"]] == [int(np.ceil(one * 61 / counts.max())) for one in counts]
    assert heights["many"] == "z" * 32
    assert heights["constant"] == heights["none"] == ""


def test_what_differs_is_what_diff_says() -> None:
    found = cs.diff("a.pth", "b.safetensors", values=True, renames=True)
    data = data_of(page := cs.view("a.pth", "b.safetensors"))["difference"]
    states = {key: data["states"][state] for key, state in column(page, "difference", "state").items()}
    expected = dict.fromkeys(found.same, "same")
    expected |= {pair.key: "changed" for pair in found.changed} | {pair.key: "reshaped" for pair in found.reshaped}
    expected |= {pair.key: "retyped" for pair in found.retyped} | dict.fromkeys(found.added, "added")
    expected |= dict.fromkeys(found.removed, "removed") | dict.fromkeys(found.renamed.values(), "renamed")
    assert states == expected
    assert set(expected.values()) == {"same", "changed", "reshaped", "retyped", "added", "removed", "renamed"}
    assert [[keys_of(page)[row], was] for row, was in data["was"]] == [[new, old] for old, new in found.renamed.items()]
    pair = found.changed[0]
    assert pair.numbers is not None
    row = next(one for one in data["numbers"] if keys_of(page)[one[0]] == pair.key)
    assert row[1:] == [
        pair.numbers.differing,
        *(pytest.approx(x, rel=1e-5) for x in (pair.numbers.max_abs, pair.numbers.relative, pair.numbers.cosine)),
        0,
        0,
    ]


def test_headers_alone_say_nothing_of_values() -> None:
    data = data_of(page := cs.view("a.pth", "b.safetensors", values=False))["difference"]
    states = {key: data["states"][state] for key, state in column(page, "difference", "state").items()}
    assert states["encoder.layers.3.attn.weight"] == "same"
    assert states["body.norm.weight"] == "added"
    assert data["values"] is False


def test_an_output_of_ours_shows_what_became_of_each_tensor() -> None:
    page = cs.view(output())
    receipt = data_of(page)["receipt"]
    said = {name: column(page, "receipt", name) for name in ("class", "rule", "reason", "from")}
    classes = {key: receipt["classes"][number] for key, number in said["class"].items()}
    plan = cs.transplant(
        "source.pth", "dst.yaml", map=["encoder.layers.10.attn=body.norm"], on_mismatch={"encoder": "pad"},
        reinit=["encoder.layers.0"],
    )  # fmt: skip
    for step in plan.steps:
        assert classes[step.key] == step.kind
        assert receipt["rules"][said["rule"][step.key]] == step.rule
        assert receipt["reasons"][said["reason"][step.key]] == step.reason
        assert said["from"][step.key] == (-1 if step.source is None else step.source)
    assert {keys_of(page)[row]: key for row, key in receipt["key"]} == {
        "body.norm.weight": "encoder.layers.10.attn.weight"
    }
    assert receipt["unexpected"] == [list(pair) for pair in plan.unexpected]


def test_a_damaged_recipe_is_a_note_and_the_page_is_there() -> None:
    data = Path(output()).read_bytes()
    Path("damaged.safetensors").write_bytes(data.replace(b"ckpt.recipe", b"ckpt.rexipe"))
    page = cs.view("damaged.safetensors")
    assert data_of(page)["receipt"] is None
    assert "its recipe is damaged" in page.notes[0]


def test_names_cannot_end_the_element_that_holds_them() -> None:
    write_empty("h.safetensors", HOSTILE)
    page = cs.view("h.safetensors", stats=True)
    assert sorted(keys_of(page)) == sorted(HOSTILE)
    assert re.findall(r"<(/?script[^>]*)>", page.html) == [
        'script type="application/json" id="data"',
        "/script",
        "script",
        "/script",
    ]
    assert page.html.count("<!--") == 0
    assert page.html.isascii() or "\u202e" not in page.html


def test_no_two_files_of_the_program_define_the_same_name() -> None:
    defined = Counter(
        name
        for file in PROGRAM
        for name in re.findall(
            r"^(?:const|let|var|class|(?:async )?function\*?) +([\w$]+)", script_text([file]), re.MULTILINE
        )
    )
    assert len(defined) > 100
    assert {name for name, number in defined.items() if number > 1} == set()


def test_every_file_of_the_program_is_in_the_page() -> None:
    folder = Path(cs.__file__).parent / "pages" / "browser"
    assert sorted(PROGRAM) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.js"))


def test_the_policy_of_a_page_lets_nothing_run_but_its_own_program() -> None:
    page = cs.view("a.pth").html
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    for tag, directive in (("<script>", "script-src"), ("<style>", "style-src")):
        body = page[page.index(tag) + len(tag) :].partition(f"</{tag[1:-1]}>")[0]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_same_input_gives_the_same_page() -> None:
    assert cs.view("a.pth", stats=True).html == cs.view("a.pth", stats=True).html


def test_ninety_two_thousand_tensors_are_a_page_of_a_few_megabytes() -> None:
    keys = [f"model.layers.{i}.mlp.experts.{j}.{name}.weight" for i in range(60) for j in range(512) for name in "gud"]
    write_empty("big.safetensors", keys)
    page = cs.view("big.safetensors", stats=True)
    assert page.tensors == len(keys) == 92_160
    assert page.nbytes < 15_000_000


def test_a_page_is_written_once_and_never_over_an_input(ckpt: Run) -> None:
    done = ckpt("view", "a.pth")
    assert (done.code, Path("a.html").exists()) == (0, True)
    assert "wrote a.html" in done.out
    again = ckpt("view", "a.pth")
    assert (again.code, "--force" in again.err) == (5, True)
    assert ckpt("view", "a.pth", "--force").code == 0
    before = Path("a.pth").read_bytes()
    assert ckpt("view", "a.pth", "-o", "a.pth", "--force").code == 5
    assert Path("a.pth").read_bytes() == before
    assert ckpt("view", "a.pth", "b.safetensors").code == 0
    assert Path("a-b.html").exists()


def test_json_says_what_was_written(ckpt: Run) -> None:
    done = json.loads(ckpt("view", "a.pth", "-o", "p.html", "--json").out)
    assert done == {
        "kind": "ckpt.view", "version": 1, "output": "p.html", "tensors": len(network()),
        "nbytes": Path("p.html").stat().st_size, "notes": done["notes"],
    }  # fmt: skip


def test_what_cannot_be_read_leaves_no_page(ckpt: Run) -> None:
    Path("broken.pth").write_bytes(b"PK\x03\x04 nothing")
    Path("text.txt").write_text("words")
    for name in ("broken.pth", "text.txt", "gone.pth"):
        done = ckpt("view", name, "-o", "p.html")
        assert done.code == 3, done
        assert done.err.count("\n") <= 3
        assert not Path("p.html").exists()
    assert ckpt("view", "a.pth", "broken.pth").code == 3
    assert ckpt("view", "a.pth", "-o", "no/such/folder.html").code == 5
    assert ckpt("view", "a.pth", "-o", "").code == 2


def test_an_index_of_a_million_entries_is_refused_in_one_line(ckpt: Run) -> None:
    Path("shards").mkdir()
    rows = ",".join(f'"layers.{i}.weight":"x.safetensors"' for i in range(1_000_000))
    Path("shards/model.safetensors.index.json").write_text(f'{{"weight_map":{{{rows}}}}}')
    save_file({"w": torch.ones(1)}, "shards/x.safetensors")
    done = ckpt("view", "shards", "-o", "p.html")
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert not Path("p.html").exists()


def test_a_checkpoint_of_no_tensors_is_said_to_be_one(ckpt: Run) -> None:
    header = b'{"__metadata__":{"format":"pt"}} '
    header += b" " * (-len(header) % 8)
    Path("none.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    done = ckpt("view", "none.safetensors")
    assert (done.code, "holds no state dict" in done.err) == (3, True), done


def test_a_run_stands_alone(ckpt: Run) -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text('{"kind": "ckpt.lineage"}')
    done = ckpt("view", "run", "a.pth", "-o", "p.html")
    assert (done.code, "best.safetensors" in done.err) == (2, True)
    assert ckpt("view", "run", "-o", "p.html").code == 0  # nothing is saved yet, and the page says so
    Path("run/result.json").write_text("[1")
    assert ckpt("view", "run", "-o", "p.html", "--force").code == 3


def test_a_log_that_is_damaged_or_long_still_has_curves() -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text("{}")
    rows = [json.dumps({"step": i, "loss": 1 / i, "grad_norm": None, "lr": {"all": 1e-3}}) for i in range(1, 9001)]
    odd = [
        '{"step": 9001, "loss": NaN, "lr": 5}',
        "[1]",
        "null",
        '{"step": "x", "loss": "<b>"}',
        '{"dev": 3}',
        '{"step": 1e999, "loss": 1}',
    ]
    Path("run/log.jsonl").write_text("\n".join([*rows, *odd, '{"step": 7, "los']))
    Path("run/checks.json").write_text(
        '{"checks": [5, {"name": "x", "status": "PASS", "says": "ok", "when": "before"}]}'
    )
    run = data_of(cs.view("run"))["run"]
    assert run["every"] == 5
    assert len(run["steps"]) <= 2000
    assert run["steps"][0] == [1, 1.0, None, 0.001] or run["rates"] == []
    assert run["checks"] == [{"name": "x", "status": "PASS", "says": "ok", "when": "before"}]


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    write_empty("h.safetensors", HOSTILE)
    shown = cs.view("h.safetensors")._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count("<") == 2  # the frame's two tags: nothing of the page stands outside the attribute
