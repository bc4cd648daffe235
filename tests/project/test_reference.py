"""The pages and pictures that are made from the program are what it makes now, and its JSON is what the schemas say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.merge_explanation import MergeExplanation
from ckptsurgeon.analysis.prove.figures import Distance
from ckptsurgeon.analysis.prove.proof import BlockResult, ChangedTensor, MovedExpert, Proof, ProvedNetwork
from ckptsurgeon.formats.base.header import FilePrint
from ckptsurgeon.planning.plan.compute import Merge
from ckptsurgeon.planning.plan.files import PlanTarget
from ckptsurgeon.planning.plan.plan import CarriedEntries, Plan
from ckptsurgeon.planning.plan.receipt import Failure, Verification
from ckptsurgeon.planning.plan.rows import VocabularyRows
from ckptsurgeon.trainer.run.result import Arm, Controls, Trained
from ckptsurgeon.trainer.run.transcribe import Transcript, Transcripts
from ckptsurgeon.util.note_kind import NoteKind
from ckptsurgeon.util.notes import Note
from fixtures.reference.answers import ANSWERS, PRINTED_BY
from fixtures.reference.answers_page import schemas
from fixtures.reference.everything import PAGES
from fixtures.reference.exits import WHEN
from fixtures.reference.pictures import pictures
from fixtures.reference.schema import faults, fields

from ..api.model_folder.test_model_folders import model as model_folder
from ..helpers.adapters import peft_folder
from ..helpers.hub.server import Hub
from ..helpers.transformers_models import BERT, saved
from ..storage.test_signing import write_key
from ..trainer.conftest import reopen_here

Run = Callable[..., Any]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GOLDEN = Path(__file__).parents[1] / "cli/golden"


# What is made from the program.


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_make_reference_makes(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run make reference"


def test_the_schemas_are_what_make_reference_makes() -> None:
    assert {path.name: path.read_text() for path in (DOCS / "reference/schemas").iterdir()} == schemas()


@pytest.mark.long
def test_the_pictures_are_what_the_commands_print() -> None:
    for name, text in pictures().items():
        assert (DOCS / "images" / name).read_text() == text, f"{name}: run make reference"
        assert set(re.findall(r"https?://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}


def test_nothing_else_lies_among_what_is_made() -> None:
    made = {*PAGES, *(f"images/{name}.svg" for name in ("transplant-light", "transplant-dark"))}
    made |= {"images/view-light.png", "images/view-dark.png"}  # of a browser, which draws no two alike
    there = {f"{folder}/{path.name}" for folder in ("reference", "images") for path in (DOCS / folder).glob("*.*")}
    assert there == made


def test_the_table_of_exit_codes_has_every_error() -> None:
    errors = [getattr(cs, name) for name in cs.__all__ if name.endswith("Error")]
    assert {error.exit_code for error in errors} | {0, 70, 129, 130, 141, 143} == set(WHEN)


# The JSON.


@pytest.fixture
def answers(ckpt: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the verbs print with --json, by kind; what is printed is one object of a kind that has a schema."""
    found: dict[str, list[Any]] = {kind: [] for kind in ANSWERS}
    make_files()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    reopen_here(monkeypatch)
    (tmp_path / "home").mkdir()
    hub.repository("org/net", {"model.safetensors": Path("a.safetensors").read_bytes()})
    for command in commands():
        done = ckpt(*command, "--json")
        text = done.out or done.err.strip().splitlines()[-1]
        data = json.loads(text)
        assert data["kind"].startswith("ckpt."), command
        found[data["kind"].removeprefix("ckpt.")].append(data)
    for data in [*golden(), *rare(found["plan"])]:
        found[data["kind"].removeprefix("ckpt.")].append(data)
    return found


def golden() -> Iterator[dict[str, Any]]:
    """Yield what is kept of other tests, who blank what differs between runs."""
    for path in GOLDEN.glob("json-*.json"):
        data = json.loads(path.read_text())
        yield {**data, "plan_sha256": str(data["plan_sha256"])} if "plan_sha256" in data else data


def rare(plans: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what takes a GPU, minutes or a recipe of mergekit to be printed, from the results that would be."""
    yield Transcripts("run/best.safetensors", "run/config.yaml", (Transcript("a.wav", 1.5, "a"),)).to_json()
    rows = VocabularyRows("a.txt", "b.txt", 2, (0, None, None), "others", lent=((1, 0),), padded=1, unlisted=1)
    merge = Merge("regmean", {"weight": (0.5, 0.5)}, device="cuda", statistics="gram")
    plan = Plan.from_json(next(one for one in plans if one["verb"] == "transplant"))
    yield replace(plan, vocabularies=(rows,), steps=(replace(plan.steps[0], merge=merge),)).to_json()
    yield cs.ExplainedMerge((MergeExplanation(replace(plan.steps[0], merge=merge), ()),)).to_json()
    far = PlanTarget("transformers", "config.json", "https://…/config.json", (FilePrint("", 1, "", None, "etag"),))
    yield replace(plan, rows=replace(rows, new="init"), target=replace(far, notes=("a",), refused="b")).to_json()
    yield replace(plan, sources=(replace(plan.sources[0], path="", memory=True), *plan.sources[1:])).to_json()
    yield replace(plan, notes=("a", Note(NoteKind.LAYER_GAP, "b"))).to_json()
    groups = ({"params": (0, 1), "param_names": ("w", "b")},)
    yield replace(plan, carried=CarriedEntries("optimizer", (), groups)).to_json()
    failed, gone = (Failure("w", "a bit differs"),), {"v": "its source was not found"}
    yield Verification("out.safetensors", 1, 0, 0, failed, gone, near=1, products=2).to_json()
    controls = Controls("cer", 1, 2, (Arm("warm", True, (0.5,)),), "KNOWLEDGE", "frozen", ("scratch",))
    yield Trained("x.yaml", "run", None, "ctc", "cpu", 2, 2, "done", (), test={"cer": 0.5}, controls=controls).to_json()
    block = BlockResult("layers.0", 0, Distance(0.5, 0.9, 1.0, same=False), 0.1)
    experts = ChangedTensor("experts.w", "layers.0", 0.5, experts=(MovedExpert(0, 1), MovedExpert(1)))
    network = ProvedNetwork("moe", "MixtralForCausalLM", 4, ("float32",))
    yield Proof(network, network, "tokens", (block,), replace(block, name=""), changed=(experts,)).to_json()


def make_files() -> None:
    state = {f"layers.{i}.{name}": torch.full((2, 3), float(i)) for i in range(2) for name in ("q", "k")}
    state |= {"norm": torch.ones(4), "odd": torch.tensor([1.0, float("nan")])}
    save_file(state, "a.safetensors", metadata={"who": "me"})
    save_file(
        {**state, "norm": torch.ones(4).half(), "layers.0.q": torch.ones(3, 2), "new": torch.ones(1)}, "b.safetensors"
    )
    save_file({**state, "norm": torch.full((4,), 1.001)}, "c.safetensors")
    for name in ("old", "new"):
        save_file({"w": torch.randn(64, 64)}, f"{name}.safetensors")
    for name, value in (("still", 0.0), ("up", 0.1), ("down", -0.1)):
        save_file({"layers.0.weight": torch.full((8, 8), 1 + value)}, f"{name}.safetensors")
    torch.save({"model": state, "model_ema": state, "epoch": 3, "who": torch.nn.Identity()}, "a.pth")
    tied = torch.ones(4, 2)
    torch.save({"embed": tied, "out": tied}, "tied.pth")
    torch.save({"out": torch.ones(4, 2)}, "out.pth")
    torch.save({"out": torch.zeros(4, 2, dtype=torch.uint8).view(torch.bits8)}, "bits.pth")
    torch.save({"embed": torch.ones(4, 2), "out": torch.ones(4, 2)}, "both.pth")
    torch.save({"x": torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=False)}, "sparse.pth")
    torch.save({"x": torch.sparse_coo_tensor([[0]], [2.0], (3,), check_invariants=False)}, "sparse2.pth")
    torch.save({"x.qweight": torch.ones(1, 8, dtype=torch.int32), "x.scales": torch.ones(1, 8)}, "gptq.pth")
    torch.save({"x.qweight": torch.ones(1, 8, dtype=torch.int32), "x.scales": torch.zeros(1, 8)}, "gptq2.pth")
    torch.save({"x.qweight": torch.zeros(1, 8, dtype=torch.int64), "x.scales": torch.zeros(1, 8)}, "gptq3.pth")
    torch.save({"x.qweight": torch.zeros(1, 8, dtype=torch.int32), "x.scales": torch.ones(1, 8)}, "gptq4.pth")
    for name, value in (("fp8", 1.0), ("fp8b", 2.0)):
        codes = torch.full((2, 2), value).to(torch.float8_e4m3fn)
        torch.save({"x.weight": codes, "x.weight_scale": torch.ones(1)}, f"{name}.pth")
    Path("broken.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    Path("cut.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'tr")
    torch.save({"qkv": torch.ones(6, 2)}, "qkv.pth")
    torch.save({one: torch.ones(2, 2) for one in "qkv"}, "three.pth")
    fused = torch.arange(12.0).view(6, 2)
    torch.save({"a.qkv_proj.weight": fused, "b.query_key_value.weight": fused + 12}, "fused.pth")
    torch.save(
        {
            f"{at}.{one}_proj.weight": fused[i : i + 2] + more
            for at, more in (("a", 0), ("b", 12))
            for one, i in zip("qkv", (0, 2, 4), strict=True)
        },
        "apart.pth",
    )
    Path("split.yaml").write_text("- split: qkv\n  into: [q, k, v]\n")
    torch.save({"head": torch.ones(3, 2)}, "abc.pth")
    two = {f"{name}.{part}": torch.ones(4) for name in ("left", "right") for part in ("weight", "bias")}
    torch.save(two, "left.pth")
    torch.save({key.replace("left", "x").replace("right", "y"): value for key, value in two.items()}, "x.pth")
    torch.save({f"net.{key}": value for key, value in two.items()}, "net.pth")
    torch.save({"head": torch.ones(4, 2), "more": torch.ones(1)}, "more.pth")
    Path("dst.yaml").write_text("model: {tensors: {head: {shape: [4, 2], init: zeros}}}\n")
    Path("abc.txt").write_text("a\nb\nc\n")
    Path("abcd.txt").write_text("b\nc\na\nd\n")
    patterns = {"rank_pattern": {"q": 2}, "alpha_pattern": {"q": 2}, "target_modules": ["q"]}
    model_folder("words", rows=4, tokens=["a", "b", "c"])
    peft_folder("lora2", {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)})
    peft_folder("lora", {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": torch.ones(4, 1)}, **patterns)
    save_file({"up.weight": torch.eye(4)}, "tuned.safetensors")
    save_file({"up.weight": torch.zeros(4, 4)}, "plain.safetensors")
    saved("bert", BERT, "BertForMaskedLM")
    Path("bert/tokenizer_config.json").write_text("{}")
    Path("tokens.txt").write_text("\n".join(map(str, range(BERT["vocab_size"]))) + "\n")
    shutil.copytree("bert", "bert2")
    other = load_file("bert/model.safetensors")
    save_file({key: 2 * value if "query" in key else value for key, value in other.items()}, "bert2/model.safetensors")
    Path("my_task.py").write_text(
        re.findall(r'```python title="my_task.py"\n(.*?)```', (DOCS / "train.md").read_text(), re.S)[0]
    )
    weights = "[{search: [0, 1]}, {choice: [1, 2]}]"
    Path("marked.yaml").write_text(
        f"verb: merge\nmodels: [a.safetensors, c.safetensors]\nmethod: linear\nweights: {weights}\n"
    )
    train = {"task": "my_task.py:Doubling", "steps": 4, "evaluate_every": 4, "batch_size": 8}
    model = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 4}
    Path("train.yaml").write_text(json.dumps({"model": model, "train": train}))


def commands() -> Iterator[list[str]]:
    yield ["--version"]
    yield ["--show-completion", "bash"]
    yield ["--install-completion", "bash"]
    yield ["inspect", "a.safetensors", "--stats"]
    yield ["inspect", "a.pth"]
    yield ["inspect", "tied.pth"]
    yield ["inspect", "sparse.pth"]
    yield ["inspect", "gptq.pth"]
    yield ["inspect", "gptq.pth", "--stats"]
    yield ["inspect", "fp8.pth", "--stats"]
    yield ["diff", "fp8.pth", "fp8b.pth", "--values"]
    yield ["inspect", "lora"]
    yield ["inspect", "words"]
    yield ["inspect", "nowhere.pth"]
    yield ["diff", "a.safetensors", "b.safetensors", "--values"]
    yield ["diff", "a.safetensors", "c.safetensors", "--values", "--atol", "0.1"]
    yield ["diff", "a.safetensors", "b.safetensors", "c.safetensors"]
    yield ["diff", "sparse.pth", "a.safetensors", "sparse2.pth"]
    yield ["diff", "sparse.pth", "sparse2.pth", "--values"]
    yield ["diff", "gptq.pth", "gptq2.pth", "--values"]
    yield ["diff", "gptq.pth", "gptq3.pth", "--values"]
    yield ["diff", "gptq.pth", "gptq4.pth", "--values"]
    yield ["fits", "a.safetensors", "b.safetensors"]
    yield ["fits", "b.safetensors", "a.safetensors"]
    yield ["fits", "net.pth", "left.pth"]
    yield ["fits", "bert", "bert"]
    yield ["fits", "bits.pth", "out.pth"]
    yield ["match", "a.safetensors", "b.safetensors"]
    yield ["match", "left.pth", "x.pth"]
    yield ["match", "fused.pth", "apart.pth"]
    yield ["match", "fused.pth", "apart.pth", "--values"]
    yield ["layouts", str(ROOT / "fixtures/golden/layouts/whisper/openai.safetensors")]
    yield ["layouts", "a.safetensors"]
    yield ["prove", "bert", "bert2"]
    yield ["prove", "bert", "bert2", "--barrier", "--points", "3"]
    yield ["convert", "bert", "-o", "bert3/", "--prove"]
    yield ["transplant", "more.pth", "more.pth", "--exclude", "head", "-n", "--explain", "head"]
    yield ["merge", "c.safetensors", "a.safetensors", "-m", "ties", "--base", "a.safetensors", "--explain", "norm"]
    yield ["transplant", "both.pth", "tied.pth", "-n"]
    yield ["transplant", "out.pth", "tied.pth", "-o", "made.safetensors"]
    yield ["transplant", "hf://org/net/model.safetensors", "a.safetensors", "-n"]
    yield ["convert", "a.pth", "-o", "a2.pth", "--keep-extras"]
    yield ["convert", "a.pth", "--keep-extras", "-n"]
    yield ["convert", "tuned.safetensors", "--quantize", "fp8-channel", "-o", "codes/"]
    yield ["verify", "made.safetensors"]
    yield ["verify", "a.safetensors"]
    write_key("signer", Ed25519PrivateKey.generate())
    yield ["convert", "a.pth", "-o", "signed/", "--key", "signer.pem"]
    Path("signed/more.py").write_text("")
    yield ["verify", "signed", "--key", "signer.pub"]
    yield ["view", "a.pth", "-o", "a.html"]
    opposed = ["up.safetensors", "down.safetensors", "-m", "ties", "--base", "still.safetensors"]
    yield ["merge", *opposed, "--page", "before.html"]
    yield ["check", "a.safetensors", "words", "a.safetensor"]
    yield ["scan", "a.pth"]
    yield ["scan", "broken.pkl"]
    yield ["scan", "cut.pkl"]
    yield ["init", "a.safetensors"]
    yield ["init", "a.safetensors", "-o", "a.yaml"]
    yield ["transplant", "qkv.pth", "three.pth", "--operations", "split.yaml", "-n"]
    yield ["transplant", "a.pth", "three.pth", "-n"]
    yield ["transplant", "both.pth", "out.pth", "-n"]
    yield ["transplant", "abc.pth", "dst.yaml", "--vocab", "abc.txt:abcd.txt", "-n"]
    yield ["transplant", "abc.pth", "dst.yaml", "--vocab", "abc.txt:abcd.txt", "-n", "--explain", "head"]
    yield ["transplant", "bert", "bert/config.json", "-n"]
    yield ["transplant", "bert", "bert/config.json", "--vocab", "tokens.txt:tokens.txt", "-n"]
    yield ["lora", "extract", "tuned.safetensors", "plain.safetensors", "--rank", "1", "-n"]
    yield ["lora", "resize", "lora2", "--rank", "1", "-n"]
    yield ["average", "fp8.pth", "fp8b.pth", "-n"]
    yield ["average", "a.safetensors", "c.safetensors", "--window", "2", "-o", "means/"]
    yield [
        "search",
        "marked.yaml",
        "--evaluate",
        "echo 1 {model}",
        "--maximize",
        "--sampler",
        "random",
        "--trials",
        "1",
        "-o",
        "found.pth",
    ]
    yield ["train", "train.yaml", "--device", "cpu"]
    yield ["demo-data", "speech", "--n", "1"]
    yield ["fetch", "a.safetensors"]
    yield ["fetch", "hf://org/net/model.safetensors"]
    yield ["patch", "make", "a.safetensors", "c.safetensors", "-o", "c.ckptpatch"]
    yield [
        "patch",
        "make",
        "old.safetensors",
        "new.safetensors",
        "-o",
        "low.ckptpatch",
        "--low-rank",
        "w",
        "--rank",
        "2",
    ]
    yield ["verify", "c.safetensors", "--patch", "c.ckptpatch"]
    yield ["merge", "--list"]
    yield ["merge", "a.safetensors", "a.safetensors"]


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_schemas_say_who_prints_them(kind: str) -> None:
    assert PRINTED_BY.keys() == ANSWERS.keys()
    printed = "".join(path.read_text() for path in (ROOT / "ckptsurgeon").rglob("*.py"))
    assert f'"ckpt.{kind}"' in printed


@pytest.mark.long
def test_every_field_that_is_printed_is_in_the_schema_and_none_else(answers: dict[str, list[Any]]) -> None:
    unseen = {}
    for kind, found in answers.items():
        seen: set[str] = set()
        for data in found:
            wrong = list(faults(ANSWERS[kind], data, seen=seen))
            assert not wrong, (kind, wrong)
        unseen[kind] = {path for path, *_ in fields(ANSWERS[kind])} - seen
    assert not {kind: paths for kind, paths in unseen.items() if paths}
