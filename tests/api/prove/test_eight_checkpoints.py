"""Eight checkpoints, of which five are broken: ``check``, ``fits`` and ``prove`` find these five, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.long

State = dict[str, torch.Tensor]
LAYER = "model.layers.3"
ODD = "encoder.layer.3.intermediate.dense"


class Judged(NamedTuple):
    """What the three verbs say: the checks that fail or warn, whether it fits, the verdict and the first block."""

    found: tuple[str, ...] = ()
    fits: bool | None = True
    verdict: str = "EQUIVALENT"
    drift: str = ""


@pytest.fixture(scope="module")
def models(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Llama with tied tables and grouped heads in shards, a real BERT, and its copy in codes of 8 bits."""
    folder = tmp_path_factory.mktemp("eight")
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 6, "vocab_size": 500}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    network.bfloat16().save_pretrained(folder / "llama", max_shard_size="300KB")
    shutil.copytree(minilm, folder / "bert")
    for path in (folder / "bert").glob("*.safetensors"):
        state = load_file(path)
        state.pop("embeddings.position_ids", None)  # a buffer of older versions
        save_file(state, path, {"format": "pt"})
    cs.apply(cs.convert(str(folder / "bert"), quantize="int8"), str(folder / "coded"))
    yield folder
    shutil.rmtree(folder)


def edited(base: str, change: Callable[[State], object]) -> Callable[[Path, Path], None]:
    """Copy a model, with other values; shards are read as one, and written as they were."""

    def make(models: Path, folder: Path) -> None:
        shutil.copytree(models / base, folder)
        (folder / "ckptsurgeon.json").unlink(missing_ok=True)  # else its checksums find each change
        shards = {path: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        state = {key: value for shard in shards.values() for key, value in shard.items()}
        change(state)
        for path, own in shards.items():
            save_file({key: state[key].contiguous().clone() for key in own if key in state}, path, {"format": "pt"})

    return make


def converted(base: str, **form: Any) -> Callable[[Path, Path], None]:
    def make(models: Path, folder: Path) -> None:
        written = {"max_shard_size": form.pop("max_shard_size")} if "max_shard_size" in form else {}
        cs.apply(cs.convert(str(models / base), **form), str(folder), **written)

    return make


def short(models: Path, folder: Path) -> None:
    shutil.copytree(models / "llama", folder)
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-301])


def exchange(state: State) -> None:
    gate, up = f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"
    state[gate], state[up] = state[up], state[gate]


def interleave(state: State) -> None:
    for name in ("q_proj", "k_proj"):
        key = f"{LAYER}.self_attn.{name}.weight"
        heads = state[key].view(-1, 2, 4, 64)  # 8 rows of a head: two halves
        state[key] = heads.transpose(1, 2).reshape(state[key].shape)


def rescale(state: State) -> None:
    state[f"{ODD}.weight_scale"] *= 100


def lose_a_layer(state: State) -> None:
    for key in [key for key in state if ".layer.5." in key]:
        del state[key]


EIGHT: dict[str, tuple[str, Callable[[Path, Path], None], Judged]] = {
    "cast": ("llama", converted("llama", dtype="float16", max_shard_size="200KB"), Judged()),
    "short shard": ("llama", short, Judged(("file-size",), None, "")),
    "gate and up": ("llama", edited("llama", exchange), Judged((), True, "DIFFERENT", LAYER)),
    "RoPE": ("llama", edited("llama", interleave), Judged((), True, "DIFFERENT", LAYER)),
    "real, cast": ("bert", converted("bert", dtype="bfloat16"), Judged()),
    "quantised": ("bert", edited("coded", lambda _: None), Judged((), False)),  # its scales are no weights of the class
    "one scale": ("bert", edited("coded", rescale), Judged(("value-family",), False, "DIFFERENT", "encoder.layer.3")),
    "a layer lost": ("bert", edited("bert", lose_a_layer), Judged(("class-tensors", "missing-tensors"), False, "")),
}
"""{name: (the model that it should compute the same as, how it is made, what is said of it)}"""
BROKEN = {"short shard", "gate and up", "RoPE", "one scale", "a layer lost"}


def judged(base: Path, folder: Path) -> Judged:
    report = cs.check(str(folder), skip=["model-card"])
    found = tuple(sorted(row.id for row in report.rows if row.found))
    try:
        fits = cs.fits(str(folder), str(base / "config.json")).fits
    except cs.FormatError:
        fits = None
    try:
        proof = cs.prove(str(base), str(folder))
    except cs.CheckpointError:
        return Judged(found, fits, "")
    return Judged(found, fits, proof.verdict, proof.drift.name if proof.drift else "")


@pytest.mark.parametrize("name", EIGHT)
def test_each_is_judged_by_the_verb_that_can_see_it(name: str, models: Path, tmp_path: Path) -> None:
    base, make, said = EIGHT[name]
    make(models, tmp_path / "model")
    found = judged(models / base, tmp_path / "model")
    assert found == said
    assert (found.verdict == "EQUIVALENT") is (name not in BROKEN)
