"""``ckpt view`` without a browser: what is in a page, where it is written, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.page import html
from ckptsurgeon.analysis.page.columns import STATES
from ckptsurgeon.analysis.page.html import PROGRAM, script_text
from ckptsurgeon.cli.verbs.view import page_name
from ckptsurgeon.planning.plan.step import CLASSES
from ckptsurgeon.render.plan import plan_view
from ckptsurgeon.util.text import percent

from ...helpers.hub.server import Hub
from ...helpers.zoo import BY_NAME, LAYERS
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


def test_extremes_are_exact() -> None:
    values = {"count": torch.arange(100_000), "half": torch.tensor([65504.0]).half(), "one": torch.tensor(1_234_567)}
    save_file({**values, "f": torch.tensor([1 / 3, 0.1])}, "e.safetensors")
    page = cs.view("e.safetensors", stats=True)
    assert {key: one for key, one in column(page, "figures", "max").items() if key != "f"} == {
        "count": 99_999, "half": 65_504, "one": 1_234_567,
    }  # fmt: skip
    assert np.float32(column(page, "figures", "max")["f"]) == np.float32(1 / 3)


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
        *(0, 0),  # NaN and infinite
        *(0, 0, 0, 0),  # those of each checkpoint
    ]


def test_headers_alone_say_nothing_of_values() -> None:
    data = data_of(page := cs.view("a.pth", "b.safetensors", values=False))["difference"]
    states = {key: data["states"][state] for key, state in column(page, "difference", "state").items()}
    assert states["encoder.layers.3.attn.weight"] == "same"
    assert states["body.norm.weight"] == "added"
    assert data["values"] is False


@pytest.mark.long
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


def test_the_page_says_of_each_row_which_part_of_it_comes_from_a_source() -> None:
    """Of a vocabulary with a new token, of what is padded and of what is kept not all, as on the terminal."""
    for name, tokens in (("old", "a b c d"), ("new", "a b c d e")):
        Path(f"{name}.txt").write_text(tokens.replace(" ", "\n") + "\n")
    save_file({"e": torch.zeros(4, 3), "p": torch.zeros(2, 2), "same": torch.ones(7)}, "old.safetensors")
    save_file(
        {"e": torch.ones(5, 3), "p": torch.ones(4, 3), "same": torch.ones(7), "z": torch.ones(2)}, "new.safetensors"
    )
    plan = cs.transplant("old.safetensors", "new.safetensors", vocab="old.txt:new.txt", on_mismatch="overlap")
    cs.apply(plan, "out.safetensors")
    page = cs.view("out.safetensors")
    parts = {keys_of(page)[row]: part for row, part in data_of(page)["receipt"]["part"]}
    assert parts == {"e": pytest.approx(4 / 5), "p": pytest.approx(4 / 12), "z": 0}
    text = io.StringIO()
    Console(file=text, width=100).print(plan_view(plan))
    sizes = {step.key: math.prod(step.shape) for step in plan.steps}
    share = sum(size * parts.get(key, 1) for key, size in sizes.items()) / sum(sizes.values())
    assert f" {percent(share)} " in text.getvalue().splitlines()[-1]


def test_a_damaged_recipe_is_a_note_and_the_page_is_there() -> None:
    data = Path(output()).read_bytes()
    Path("damaged.safetensors").write_bytes(data.replace(b"ckpt.recipe", b"ckpt.rexipe"))
    page = cs.view("damaged.safetensors")
    assert data_of(page)["receipt"] is None
    assert "the recipe of the output is damaged" in page.notes[0]


def test_the_page_has_the_notes_of_inspect_on_the_metadata_of_a_gguf_file() -> None:
    save_file({"blk.0.attn_q.weight": torch.zeros(8, 8), "token_embd.weight": torch.zeros(4, 8)}, "x.safetensors")
    metadata = {"general.architecture": "llama", "llama.block_count": "3"}
    cs.apply(cs.convert("x.safetensors", metadata=metadata), "x.gguf")
    notes = [note for note in cs.inspect("x.gguf").notes if "llama.cpp cannot load" in note]
    assert notes
    assert set(notes) <= set(cs.view("x.gguf").notes)
    assert {f"x.gguf: {note}" for note in notes} <= set(cs.view("x.gguf", "x.safetensors").notes)


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
    folder = Path(cs.__file__).parent / "analysis" / "page" / "browser"
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


@pytest.mark.long
def test_thirty_thousand_tensors_are_a_page_of_a_few_megabytes() -> None:
    keys = [f"model.layers.{i}.mlp.experts.{j}.{name}.weight" for i in range(20) for j in range(512) for name in "gud"]
    rows = (
        f'"{key}":{{"dtype":"F32","shape":[8],"data_offsets":[{32 * i},{32 * i + 32}]}}' for i, key in enumerate(keys)
    )
    header = f"{{{','.join(rows)}}}".encode()
    values = torch.randn(len(keys), 8).numpy().tobytes()
    Path("big.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)
    page = cs.view("big.safetensors", stats=True)
    assert page.tensors == len(keys) == 30_720
    assert page.nbytes < 5_000_000
    assert len(column(page, "figures", "histogram")[keys[0]]) == 32


def test_a_page_is_written_once_and_never_over_an_input(ckpt: Run) -> None:
    done = ckpt("view", "a.pth")
    assert (done.code, Path("a.html").exists()) == (0, True)
    assert "wrote a.html" in done.out
    again = ckpt("view", "a.pth")
    assert (again.code, "--force" in again.err) == (5, True)
    assert ckpt("view", "a.pth", "--force").code == 0
    before = Path("a.pth").read_bytes()
    os.link("a.pth", "same.html")
    assert ckpt("view", "a.pth", "-o", "same.html", "--force").code == 5
    assert Path("a.pth").read_bytes() == before
    done = ckpt("view", "a.pth", "-o", "b.safetensors", "--force")
    assert (done.code, "Use a name that ends in .html" in done.err) == (2, True)
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


@pytest.mark.long
def test_an_index_of_a_hundred_thousand_entries_is_refused_in_one_line(ckpt: Run) -> None:
    Path("shards").mkdir()
    rows = ",".join(f'"layers.{i}.weight":"x.safetensors"' for i in range(100_000))
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
    assert (done.code, "has no state dict" in done.err) == (3, True), done


def test_a_run_stands_alone(ckpt: Run) -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text('{"kind": "ckpt.lineage"}')
    done = ckpt("view", "run", "a.pth", "-o", "p.html")
    assert (done.code, "best.safetensors" in done.err) == (2, True)
    assert ckpt("view", "run", "-o", "p.html").code == 0  # nothing is saved yet, and the page says so
    Path("run/result.json").write_text("[1")
    assert ckpt("view", "run", "-o", "p.html", "--force").code == 3


@pytest.mark.parametrize("option", ["--check", "--stats"])
def test_a_run_without_a_model_cannot_be_checked(ckpt: Run, option: str) -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text('{"kind": "ckpt.lineage"}')
    done = ckpt("view", "run", option, "-o", "p.html")
    assert (done.code, f"has saved no model yet, so {option} has no effect" in done.err) == (2, True)
    assert not Path("p.html").exists()


@pytest.mark.long
def test_a_log_that_is_damaged_or_long_still_has_curves() -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text("{}")
    rows = [json.dumps({"step": i, "loss": 1 / i, "grad_norm": None, "lr": {"all": 1e-3}}) for i in range(1, 9001)]
    odd = [
        '{"step": 9001, "loss": NaN, "lr": 5}', "[1]", "null", '{"step": "x", "loss": "<b>"}', '{"dev": 3}',
        '{"step": 1e999, "loss": 1}', f'{{"step": 1{"0" * 400}, "loss": 1}}', "x" * 3_000_000, '{"step": 9002, "loss": 1}',
    ]  # fmt: skip
    Path("run/log.jsonl").write_text("\n".join([*rows, *odd, '{"step": 7, "los']))
    run = data_of(cs.view("run"))["run"]
    assert run["every"] == 8
    assert [row[0] for row in run["steps"]] == [*range(1, 9001, 8), 9001]
    assert run["rates"] == ["all"]
    assert run["steps"][0] == [1, 1.0, None, 0.001]


ODD = (3, "abc", None, [None], {"a": 10**400}, [[1]], {"x": float("nan")}, "<b>", True)


@pytest.mark.parametrize("name", ["result.json", "checks.json", "lineage.json"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_files_of_a_run_of_wrong_types_are_shown_as_far_as_they_go(name: str, odd: Any) -> None:
    fields = (
        "controls",
        "notes",
        "test",
        "metric",
        "best",
        "step",
        "checks",
        "init",
        "seed",
        "processes",
        "elapsed_s",
        "ended",
    )
    arms = {"verdict": odd, "arms": [odd, {"name": odd, "values": odd, "frozen": odd}]}
    Path("run").mkdir()
    Path("run/lineage.json").write_text("{}")
    for content in (
        dict.fromkeys(fields, odd),
        {"controls": arms, "checks": [odd, dict.fromkeys(("name", "status", "says", "when"), odd)]},
    ):
        Path("run", name).write_text(json.dumps(content))
        run = data_of(cs.view("run"))["run"]
        assert all(isinstance(said, str) for check in run["checks"] for said in check.values())
        result = run["result"] or {"controls": None, "test": {}, "notes": []}
        assert all(isinstance(note, str) for note in result["notes"])
        assert all(isinstance(one, (int, float)) for one in result["test"].values())
        for arm in (result["controls"] or {"arms": []})["arms"]:
            assert isinstance(arm["name"], str)
            assert all(isinstance(one, (int, float)) for one in arm["values"])


def heard(*rows: Any) -> None:
    """Write a run whose dev clips were read so."""
    Path("run").mkdir(exist_ok=True)
    Path("run/lineage.json").write_text("{}")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("run/dev.hypotheses.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def clip(errors: Any = 1, sound: Any = "a.wav", **more: Any) -> dict[str, Any]:
    return {"errors": errors, "cer": 0.5, "clip": "x", "reference": "r", "hypothesis": "h", "sound": sound, **more}


def sounds(page: cs.Page) -> list[str]:
    return [one["sound"] for one in data_of(page)["run"]["clips"]["worst"]]


def test_the_worst_clips_of_a_run_are_counted_and_the_first_are_shown() -> None:
    heard(*(clip(errors, reference=f"{errors}") for errors in range(30, -1, -1)))
    found = data_of(cs.view("run"))["run"]["clips"]
    assert (found["clips"], found["wrong"]) == (31, 30)
    assert [one["reference"] for one in found["worst"]] == [str(errors) for errors in range(30, 10, -1)]


def test_sounds_are_linked_from_where_the_page_is() -> None:
    for name in ("data/a b.wav", "run/c.flac", "d#?%.ogg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    rows = [clip(sound=sound) for sound in ("../data/a b.wav", "c.flac", "../d#?%.ogg")]
    heard(*rows, clip(sound="../data/a b.wav", begin_s=1.5, seconds=2.25))
    Path("pages").mkdir()
    here = ["./data/a%20b.wav", "./run/c.flac", "./d%23%3F%25.ogg", "./data/a%20b.wav#t=1.500,3.750"]
    assert sounds(cs.view("run", output="p.html")) == here
    assert sounds(cs.view("run", output="pages/p.html")) == [f"./.{one}" for one in here]
    assert sounds(cs.view("run", output="run/p.html"))[1] == "./c.flac"
    assert sounds(cs.view("run")) == [""] * 4  # nobody knows where it will be


def test_only_sounds_that_are_files_are_linked() -> None:
    Path("secret.txt").write_text("x")
    os.mkfifo("pipe.wav")
    for odd in ("http://127.0.0.1/a.wav", "//host/a.wav", "../secret.txt", "a\0.wav", "../pipe.wav", "..", "", *ODD):
        heard(clip(sound=odd))
        page = cs.view("run", output="p.html", force=True)
        assert sounds(page) == [""], odd
        assert "media-src" not in page.html


def test_a_page_may_load_sounds_only_if_it_has_some() -> None:
    heard(clip(sound="a.wav"))
    assert "media-src" not in cs.view("run", output="p.html").html
    Path("run/a.wav").write_bytes(b"")
    assert "form-action 'none'; media-src 'self'\"" in cs.view("run", output="p.html", force=True).html


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_clips_of_wrong_types_are_shown_as_far_as_they_go(odd: Any) -> None:
    fields = ("errors", "cer", "clip", "reference", "hypothesis", "sound", "begin_s", "seconds")
    heard("{", json.dumps(odd), dict.fromkeys(fields, odd), {**dict.fromkeys(fields, odd), "errors": 3})
    found = data_of(cs.view("run", output="p.html"))["run"]["clips"]
    assert all(
        isinstance(one[name], str) for one in found["worst"] for name in ("clip", "reference", "hypothesis", "sound")
    )
    assert all(
        one[name] is None or isinstance(one[name], (int, float))
        for one in found["worst"]
        for name in ("cer", "seconds")
    )
    assert found["worst"][-1]["errors"] == 3


def test_long_texts_of_clips_are_shortened() -> None:
    heard(clip(reference="r" * 100_000, hypothesis="h" * 100_000))
    assert cs.view("run").nbytes < cs.view("a.pth").nbytes + 10_000


def test_a_page_of_a_run_has_nothing_that_it_does_not_show() -> None:
    """Settings, data paths and digests stay at home: a page is handed on."""
    Path("run").mkdir()
    Path("run/lineage.json").write_text(json.dumps({"data": {"path": "/home/me/secret"}, "settings": {"x": "secret"}}))
    Path("run/result.json").write_text(json.dumps({"config": "/home/me/secret.yaml"}))
    assert "secret" not in cs.view("run").html


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(ckpt: Run) -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text("{}")
    os.mkfifo("run/log.jsonl")
    done = ckpt("view", "run", "-o", "p.html")
    assert (done.code, "not a regular file" in done.err) == (3, True)


def test_a_page_is_never_written_over_a_file_of_its_run() -> None:
    Path("run").mkdir()
    for name in ("lineage.json", "result.json", "checks.json"):
        Path("run", name).write_text("{}")
    Path("run/log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    Path("run/dev.hypotheses.jsonl").write_text("{}\n")
    for name in ("lineage.json", "result.json", "checks.json", "log.jsonl", "dev.hypotheses.jsonl"):
        before = Path("run", name).read_bytes()
        with pytest.raises(cs.OutputError):
            cs.view("run", output=f"run/{name}", force=True)
        assert Path("run", name).read_bytes() == before


def test_no_credential_of_an_address_is_in_a_page(ckpt: Run, hub: Hub) -> None:
    hub.repository("org/net", {"x.safetensors": Path("b.safetensors").read_bytes()})
    address = (
        hub.url.replace("://", "://user:PASSWORD@") + "/org/net/resolve/main/x.safetensors?X-Amz-Signature=SIGNED#PART"
    )
    page = cs.view(address)
    assert not [word for word in ("PASSWORD", "SIGNED", "PART") if word in page.html]
    done = ckpt("view", address)
    assert (done.code, Path("x.html").exists()) == (0, True), done


@pytest.mark.parametrize(("source", "name"), [
    ("./-x.pth", "x.html"), (".hidden", "hidden.html"), ("a b/c?d.pth", "c_d.html"), ("https://u:p@h/a/b.pth?q=1", "b.html"),
    ("hf://org/repo@v1/model.safetensors", "model.html"), ("runs/ru/", "ru.html"), ("...", "page.html"),
])  # fmt: skip
def test_a_page_is_called_as_its_source(source: str, name: str) -> None:
    assert page_name([source]) == name


@pytest.mark.parametrize("values", [
    torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64), torch.tensor([2**60, 2**60 + 256]),
    torch.tensor([0.0, 5e-324, 1e-323], dtype=torch.float64), torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64),
    torch.tensor([True, False]), torch.arange(256, dtype=torch.uint8),
], ids=str)  # fmt: skip
def test_values_of_any_range_have_a_histogram_or_none(values: torch.Tensor) -> None:
    save_file({"w": values}, "w.safetensors")
    heights = column(cs.view("w.safetensors", stats=True), "figures", "histogram")["w"]
    assert len(heights) == (0 if values.dtype == torch.float64 and values.max() > 1e308 else 32)


def test_ties_are_those_of_what_is_shown() -> None:
    tied = torch.ones(4, 2)
    torch.save({"e.w": tied, "h.w": tied, "old.a": tied[:1], "old.b": tied[:1]}, "tied.pth")
    torch.save({"e.w": torch.ones(4, 2), "h.w": torch.zeros(4, 2)}, "apart.pth")
    page = cs.view("tied.pth", "apart.pth")
    ties = {keys_of(page)[row]: keys_of(page)[owner] for row, owner in data_of(page)["tensors"]["ties"]}
    assert ties == {"old.b": "old.a"}
    back = cs.view("apart.pth", "tied.pth")
    ties = {keys_of(back)[row]: keys_of(back)[owner] for row, owner in data_of(back)["tensors"]["ties"]}
    assert ties == {"h.w": "e.w", "old.b": "old.a"}


@pytest.mark.long
def test_what_stands_beside_the_tensors_is_bounded() -> None:
    metadata = {f"k{i}": "v" for i in range(50_000)} | {"k" * 1_000_000: "w" * 1_000_000}
    save_file({"w": torch.ones(1)}, "m.safetensors", metadata=metadata)
    page = cs.view("m.safetensors")
    assert page.nbytes < 500_000
    (source,) = data_of(page)["sources"]
    assert (len(source["metadata"]), source["more"]["metadata"]) == (500, 49_501)


def test_headers_alone_need_two(ckpt: Run) -> None:
    done = ckpt("view", "a.pth", "--no-values")
    assert (done.code, "--no-values" in done.err) == (2, True)


def test_check_is_for_one_checkpoint_with_a_path(ckpt: Run) -> None:
    done = ckpt("view", "a.pth", "a.pth", "--check", "-o", "x.html")
    assert (done.code, "--check is only for one checkpoint" in done.err) == (2, True)
    assert not Path("x.html").exists()
    with pytest.raises(cs.ConfigError, match="only for one checkpoint"):
        cs.view({"a": torch.ones(1)}, check=True)


def test_a_page_has_the_findings_of_check(ckpt: Run) -> None:
    torch.save({"a.weight": torch.tensor([1.0, float("nan")])}, "nan.pth")
    assert ckpt("view", "nan.pth", "--check", "-o", "x.html").code == 0
    page = cs.view("nan.pth", check=True)
    assert Path("x.html").read_text() == page.html
    found = data_of(page)["check"]
    assert found["verdict"] == "FAIL"
    (row,) = [row for row in found["rows"] if row["status"] == "FAIL"]
    assert row["found"][0]["keys"] == ["a.weight"]
    assert data_of(cs.view("nan.pth"))["check"] is None


def test_a_page_says_what_a_model_is(tmp_path: Path) -> None:
    saved = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8}
    Path("m").mkdir()
    Path("m/config.json").write_text(json.dumps(saved))
    save_file({"model.embed_tokens.weight": torch.ones(4, 8)}, "m/model.safetensors")
    (source,) = data_of(cs.view("m"))["sources"]
    assert source["said"] == ["LlamaForCausalLM, 2 layers, 8 wide, float32"]


def test_changes_of_several_models_are_those_of_compare_changes(ckpt: Run) -> None:
    torch.save({"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2)}, "base.pth")
    torch.save({"a": torch.tensor([3.0, 5.0]), "b": torch.ones(2)}, "one.pth")
    torch.save({"a": torch.tensor([3.0, 3.5])}, "two.pth")
    assert ckpt("view", "base.pth", "one.pth", "two.pth", "-q").code == 0
    page = cs.view("base.pth", "one.pth", "two.pth")
    assert Path("base-one-two.html").read_text() == page.html
    found = data_of(page)["changes"]
    assert (found["models"], found["pairs"]) == (["one.pth", "two.pth"], [[0, 1]])
    assert {row[0]: row[1:] for row in found["rows"]} == {
        0: [[0.2, 0.1], [0.5, 0.5], [-1.0], [0.0], [0.5], 0, [0, 0]],
        1: [[0.0, None], [0.0, None], [None], [None], [None], 0, [0, None]],
    }
    assert found["total"][0] == [pytest.approx(1 / 27**0.5, rel=1e-5), 0.1]


def test_a_page_of_several_folders_has_the_notes_of_diff() -> None:
    for name, act in (("base", "gelu"), ("one", "gelu"), ("two", "relu")):
        Path(name).mkdir()
        save_file({"a": torch.ones(2)}, f"{name}/model.safetensors")
        Path(name, "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": act}))
    notes = cs.view("base", "one", "two").notes
    assert any("hidden_act is gelu in base, relu in two" in note for note in notes)


def test_a_page_of_several_models_is_never_written_over_one() -> None:
    for name in ("base", "one", "two.html"):
        torch.save({"a": torch.ones(2)}, name)
    before = Path("two.html").read_bytes()
    with pytest.raises(cs.OutputError):
        cs.view("base", "one", "two.html", output="two.html", force=True)
    assert Path("two.html").read_bytes() == before
    with pytest.raises(cs.ConfigError, match="the second checkpoint is missing"):
        cs.view("base", None, "one")


@pytest.mark.costly
@pytest.mark.parametrize("encoding", ["gptq", "fp8-block"])
def test_changes_of_quantised_weights_are_in_the_row_of_their_codes(encoding: str, tmp_path: Path) -> None:
    coded = str(BY_NAME[encoding].folder(tmp_path / "a"))
    cs.apply(cs.convert(coded, dequantize=True), "plain")
    page = cs.view(coded, "plain", "plain")
    names = {one.name: one.codes for one in cs.inspect(coded).codes.tensors}
    rows = {row[0]: row[1] for row in data_of(page)["changes"]["rows"]}
    places = {key: place for place, key in enumerate(keys_of(page))}
    assert names
    assert all(places[codes] in rows for codes in names.values())


def nibbles(codes: Any) -> Any:
    octets = codes.contiguous().view(torch.uint8).numpy()
    return np.concatenate([octets.reshape(-1) & 15, octets.reshape(-1) >> 4])


OUTERMOST: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "fp8-block": (".weight", lambda codes: codes.float().abs().numpy() == 448),
    "int8": (".weight", lambda codes: np.abs(codes.numpy().astype("i4")) >= 127),
    "bnb-int8": (".weight", lambda codes: np.abs(codes.numpy().astype("i4")) >= 127),
    "int4-packed": (".weight_packed", lambda codes: np.isin(nibbles(codes), (0, 15))),
    "nvfp4-packed": (".weight_packed", lambda codes: np.isin(nibbles(codes), (7, 15))),
    "gptq": (".qweight", lambda codes: np.isin(nibbles(codes), (0, 15))),
    "awq": (".qweight", lambda codes: np.isin(nibbles(codes), (0, 15))),
    "mlx": (".weight", lambda codes: np.isin(nibbles(codes), (0, 15))),
}
RECORDED = Path(__file__).parents[2] / "tensors" / "decoders" / "recorded"


@pytest.mark.costly
@pytest.mark.parametrize("encoding", OUTERMOST)
def test_codes_at_the_ends_of_their_range_are_counted_with_the_statistics(encoding: str, tmp_path: Path) -> None:
    end, at_an_end = OUTERMOST[encoding]
    folder = BY_NAME[encoding].folder(tmp_path / "a")
    page = cs.view(folder, stats=True)
    keys, coded = keys_of(page), data_of(page)["coded"]
    shown = {keys[row]: outermost for row, _, _, outermost in coded["weights"]}
    state = load_file(next(folder.glob("*.safetensors")))
    codes = {key: at_an_end(state[key]) for key in shown}
    assert codes
    assert all(key.endswith(end) for key in codes)
    assert shown == {key: [int(ends.sum()), ends.size] for key, ends in codes.items()}
    assert all(outermost is None for *_, outermost in data_of(cs.view(folder))["coded"]["weights"])


@pytest.mark.parametrize("name", ["nf4", "nf4-nested", "fp4"])
def test_codes_of_the_largest_values_of_a_table_are_counted(name: str) -> None:
    file = RECORDED / f"bitsandbytes-{name}.safetensors"
    (weight,) = data_of(cs.view(file, stats=True))["coded"]["weights"]
    state = load_file(file)
    (table,) = (tensor for key, tensor in state.items() if key.endswith(".weight.quant_map"))
    (codes,) = (tensor for key, tensor in state.items() if key.endswith("up_proj.weight"))
    found = nibbles(codes)
    assert weight[3] == [int(np.isin(found, [int(table.argmin()), int(table.argmax())]).sum()), found.size]


@pytest.mark.parametrize("encoding", ["gptq-3bit", "aqlm"])
def test_codes_of_other_bits_are_not_counted(encoding: str, tmp_path: Path) -> None:
    coded = data_of(cs.view(BY_NAME[encoding].folder(tmp_path / "a"), stats=True))["coded"]
    assert [outermost for *_, outermost in coded["weights"]] == [None] * len(coded["weights"])


def test_every_kind_of_tensor_has_a_colour() -> None:
    text = (Path(html.__file__).parent / "browser" / "colours.js").read_text()
    for name, words in (("CLASS_COLOURS", (*CLASSES, "")), ("STATE_COLOURS", STATES)):
        rows = re.search(rf"const {name} = {{(.*?)}};", text, re.S)
        assert rows
        assert {one[0].strip('"') for one in re.findall(r'("[^"]*"|\w+): ("--[\w-]+")', rows[1])} == set(words)


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    write_empty("h.safetensors", HOSTILE)
    shown = cs.view("h.safetensors")._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count("<") == 2  # the frame's two tags: nothing of the page stands outside the attribute


@pytest.mark.costly
@pytest.mark.parametrize(
    ("names", "encodings"),
    [
        (("gptq", "plain"), ["GPTQ, 4 bits", "float32"]),
        (("plain", "gptq"), ["float32", "GPTQ, 4 bits"]),
        (("fp8-block", "plain"), ["fp8 with block scales", "float32"]),
        (("fp8-block", "int8"), ["fp8 with block scales", "int8 with scales"]),
        (("fp8-block", "fp8-block"), ["fp8 with block scales", "fp8 with block scales"]),
    ],
)
def test_weights_that_codes_stand_for_have_one_row(
    names: tuple[str, str], encodings: list[str], tmp_path: Path
) -> None:
    paths = []
    for seed, name in enumerate(names):
        if name == "plain":
            cs.apply(
                cs.convert(BY_NAME["fp8-block"].folder(tmp_path / "coded", 9), dequantize=True, dtype="float32"), "p"
            )
            paths.append("p")
        else:
            paths.append(str(BY_NAME[name].folder(tmp_path / f"{seed}", seed)))
    page = cs.view(*paths)
    data = data_of(page)["difference"]
    states = {key: data["states"][state] for key, state in column(page, "difference", "state").items()}
    found = cs.diff(*paths, values=True)
    assert {key for key, state in states.items() if state == "decoded"} == {f"{layer}.weight" for layer in LAYERS}
    assert not [key for key in states if key.startswith(LAYERS) and not key.endswith(".weight")]
    assert [[keys_of(page)[row], *rest] for row, *rest in data["encodings"]] == [
        [pair.key, *encodings] for pair in found.decoded
    ]
    measured = {keys_of(page)[row]: rest[3] for row, *rest in data["numbers"]}
    assert all(measured[pair.key] == pytest.approx(pair.numbers.cosine) for pair in found.decoded if pair.numbers)


def test_codes_that_nothing_decodes_have_a_row_that_says_why(tmp_path: Path) -> None:
    coded = str(BY_NAME["aqlm"].folder(tmp_path / "a"))
    cs.apply(cs.convert(BY_NAME["fp8-block"].folder(tmp_path / "b"), dequantize=True, dtype="float32"), "p")
    data = data_of(page := cs.view(coded, "p"))["difference"]
    states = {key: data["states"][state] for key, state in column(page, "difference", "state").items()}
    assert {key for key, state in states.items() if state == "not compared"} == {f"{layer}.weight" for layer in LAYERS}
    assert {keys_of(page)[row] for row, why in data["why"] if "AQLM" in why} == {f"{layer}.weight" for layer in LAYERS}


@pytest.mark.costly
@pytest.mark.parametrize("is_coded", [True, False])
def test_weights_in_codes_of_another_shape_have_one_row(is_coded: bool, tmp_path: Path) -> None:
    first = BY_NAME["gptq"].folder(tmp_path / "a")
    state = load_file(first / "model.safetensors")
    ends = (".qweight", ".qzeros", ".scales")
    halved = {
        key: one[:, : one.shape[1] // 2].contiguous() if key.endswith(ends) else one for key, one in state.items()
    }
    save_file(halved, first / "model.safetensors")
    second = BY_NAME["gptq"].folder(tmp_path / "b")
    if not is_coded:
        cs.apply(cs.convert(second, dequantize=True, dtype="bfloat16"), tmp_path / "c")
        second = tmp_path / "c"
    page = cs.view(str(first), str(second))
    states = {key: STATES[state] for key, state in column(page, "difference", "state").items()}
    assert {key: state for key, state in states.items() if key.startswith(LAYERS)} == {
        f"{layer}.weight": "reshaped" for layer in LAYERS
    }


def test_a_page_of_two_folders_has_the_notes_of_diff(tmp_path: Path) -> None:
    a, b = (str(BY_NAME["fp8-block"].folder(tmp_path / name)) for name in "ab")
    config = json.loads(Path(b, "config.json").read_text())
    Path(b, "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    said = [note for note in cs.diff(a, b).notes if "rope_theta is" in note]
    assert len(said) == 1
    assert said[0] in cs.view(a, b).notes
