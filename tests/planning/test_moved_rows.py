"""``--vocab`` moves rows of quantised embeddings as they are stored, if each row has its own codes and scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.quantised import eight_bits, fp8, scales, words

Run = Callable[..., Any]
Parts = dict[str, torch.Tensor]
NAME = "model.embed_tokens"
WIDTH = 64
OLD, NEW = [*"abcdefgh"], [*"cxahb"]
SAME = [*"hgfedcb"]
"""Tokens of OLD alone, in another order."""
COMPRESSED = {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
FOUR_BITS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


def half(g: torch.Generator, *shape: int) -> torch.Tensor:
    return scales(g, *shape, dtype=torch.float16)


ENCODINGS: dict[str, tuple[Callable[[torch.Generator, int], Parts], dict[str, Any]]] = {
    "mlx": (
        lambda g, n: {".weight": words(g, n, WIDTH // 8).view(torch.uint32), ".scales": half(g, n, 1),
                      ".biases": -half(g, n, 1)},
        {"group_size": 64, "bits": 4},
    ),
    "fp8-channel": (
        lambda g, n: {".weight": fp8(g, n, WIDTH), ".weight_scale": scales(g, n, 1)},
        {**COMPRESSED, "format": "float-quantized"},
    ),
    "int8-channel": (
        lambda g, n: {".weight": eight_bits(g, n, WIDTH, dtype=torch.int8), ".weight_scale": scales(g, n, 1)},
        {**COMPRESSED, "format": "int-quantized"},
    ),
    "int4-group": (
        lambda g, n: {".weight_packed": words(g, n, WIDTH // 8), ".weight_scale": half(g, n, 2),
                      ".weight_shape": torch.tensor([n, WIDTH])},
        {**COMPRESSED, "format": "pack-quantized", "config_groups": {"group_0": {"weights": FOUR_BITS}}},
    ),
    "llm-int8": (
        lambda g, n: {".weight": eight_bits(g, n, WIDTH, dtype=torch.int8), ".SCB": scales(g, n),
                      ".weight_format": torch.tensor(0, dtype=torch.uint8)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
    "mxfp4": (
        lambda g, n: {".weight": eight_bits(g, n, WIDTH // 2), ".weight_scale": eight_bits(g, n, 2) // 4 + 90},
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
    ),
}  # fmt: skip
"""Encodings without numbers that all rows share."""
SHARING: dict[str, tuple[Callable[[torch.Generator, int], Parts], dict[str, Any]]] = {
    "fp8-tensor": (
        lambda g, n: {".weight": fp8(g, n, WIDTH), ".weight_scale": scales(g)},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    "nvfp4": (
        lambda g, n: {".weight_packed": eight_bits(g, n, WIDTH // 2), ".weight_scale": fp8(g, n, WIDTH // 16).abs(),
                      ".weight_global_scale": 1 / scales(g, 1)},
        {**COMPRESSED, "format": "nvfp4-pack-quantized"},
    ),
}  # fmt: skip
"""Encodings with one scale for the whole weight."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, tokens in (("old.txt", OLD), ("new.txt", NEW), ("same.txt", SAME)):
        Path(name).write_text("\n".join(tokens) + "\n")


def saved(name: str, rows: int, encoding: str, seed: int) -> Parts:
    """Save a model with a quantised embedding in a folder, and return the parts of the embedding by ending."""
    make, settings = {**ENCODINGS, **SHARING}[encoding]
    parts = {end: one.contiguous() for end, one in make(torch.Generator().manual_seed(seed), rows).items()}
    Path(name).mkdir()
    tensors = {**{f"{NAME}{end}": one for end, one in parts.items()}, "model.norm.weight": torch.ones(WIDTH)}
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "hidden_size": WIDTH, "quantization_config": settings}
    Path(name, "config.json").write_text(json.dumps(config))
    return parts


def made(name: str = "out") -> Parts:
    found = load_file(f"{name}/model.safetensors")
    return {key.removeprefix(NAME): one for key, one in found.items() if key.startswith(NAME)}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def check_rows(found: Parts, old: Parts, tokens: list[str]) -> None:
    """Check that every row of a token that the source has is the row of the source, in all parts."""
    for end, part in found.items():
        if part.shape[:1] == (len(tokens),) and end not in (".weight_shape",):
            for place, token in enumerate(tokens):
                if token in OLD:
                    assert same(part[place].reshape(-1), old[end][OLD.index(token)].reshape(-1)), (end, token)


@pytest.mark.costly
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_of_both_models_are_those_that_are_stored(encoding: str, ckpt: Run) -> None:
    old, new = saved("old", len(OLD), encoding, 1), saved("new", len(NEW), encoding, 2)
    done = ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", "-o", "out")
    assert done.code == 0, done
    assert "are moved as they are stored" in " ".join(done.err.split())
    assert "error" not in done.out
    found = made()
    check_rows(found, old, NEW)
    for end in found:
        assert found[end].shape == new[end].shape
        if found[end].shape[:1] == (len(NEW),):
            assert same(found[end][1].reshape(-1), new[end][1].reshape(-1))
    assert ckpt("verify", "out").code == 0


@pytest.mark.costly
@pytest.mark.parametrize("encoding", [*ENCODINGS, *SHARING])
def test_fewer_tokens_in_another_order_move_all_rows(encoding: str, ckpt: Run) -> None:
    old = saved("old", len(OLD), encoding, 1)
    saved("new", len(SAME), encoding, 2)
    assert ckpt("transplant", "old", "new", "--vocab", "old.txt:same.txt", "-o", "out").code == 0
    found = made()
    check_rows(found, old, SAME)
    for end in found:
        if found[end].numel() == 1:
            assert same(found[end].reshape(-1), old[end].reshape(-1))
    assert ckpt("verify", "out").code == 0


@pytest.mark.costly
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_means_are_encoded_beside_the_rows_that_are_stored(encoding: str, ckpt: Run) -> None:
    old = saved("old", len(OLD), encoding, 1)
    saved("new", len(NEW), encoding, 2)
    done = ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", "--new-tokens", "mean", "-o", "out")
    assert done.code == 0, done
    assert "4 rows are copied with scales as they are stored, and 1 new row is computed" in " ".join(done.err.split())
    check_rows(made(), old, NEW)
    assert ckpt("verify", "out").code == 0
    for name in ("old", "out"):
        assert ckpt("convert", name, "--dequantize", "--dtype", "float32", "-o", f"{name}.safetensors").code == 0
    key = f"{NAME}.weight"
    mean, row = load_file("old.safetensors")[key].mean(0), load_file("out.safetensors")[key][1]
    assert (row - mean).norm() < 0.35 * mean.norm()


def test_zeros_are_rows_of_zeros(ckpt: Run) -> None:
    old = saved("old", len(OLD), "mlx", 1)
    saved("new", len(NEW), "mlx", 2)
    assert ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", "--new-tokens", "zero", "-o", "out").code == 0
    check_rows(made(), old, NEW)
    assert ckpt("convert", "out", "--dequantize", "--dtype", "float32", "-o", "out.safetensors").code == 0
    assert not load_file("out.safetensors")[f"{NAME}.weight"][1].any()


@pytest.mark.costly
@pytest.mark.parametrize("encoding", SHARING)
def test_new_rows_beside_a_scale_of_the_whole_weight_are_encoded_as_before(encoding: str, ckpt: Run) -> None:
    saved("old", len(OLD), encoding, 1)
    saved("new", len(NEW), encoding, 2)
    done = ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", "--new-tokens", "mean", "-o", "out")
    assert done.code == 0, done
    assert "decoded, computed and encoded again" in " ".join(done.err.split())
    assert ckpt("verify", "out").code == 0


@pytest.mark.long
def test_a_flipped_row_is_found(ckpt: Run) -> None:
    saved("old", len(OLD), "mlx", 1)
    saved("new", len(NEW), "mlx", 2)
    for more in ((), ("--new-tokens", "mean")):
        assert ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", *more, "-o", "out", "--force").code == 0
        path = Path("out/model.safetensors")
        tensors = load_file(path)
        tensors[f"{NAME}.scales"][2] *= 2
        save_file(tensors, path, {"format": "pt"})
        assert ckpt("verify", "out").code == 1


def test_other_encodings_in_the_destination_are_encoded(ckpt: Run) -> None:
    saved("old", len(OLD), "int8-channel", 1)
    saved("new", len(NEW), "mlx", 2)
    done = ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", "--new-tokens", "mean", "-o", "out")
    assert done.code == 0, done
    assert "encoded again" in " ".join(done.err.split())


@pytest.mark.long
def test_a_recipe_and_a_plan_carry_the_rows(ckpt: Run) -> None:
    old = saved("old", len(OLD), "mlx", 1)
    saved("new", len(NEW), "mlx", 2)
    for at, more in enumerate(((), ("--new-tokens", "mean"))):
        done = ckpt("transplant", "old", "new", "--vocab", "old.txt:new.txt", *more, "-n", "--json")
        Path("plan.json").write_text(done.out)
        assert ckpt("apply", "plan.json", "-o", f"out{at}").code == 0
        check_rows(made(f"out{at}"), old, NEW)
        assert cs.verify(f"out{at}").ok


@pytest.mark.parametrize(("new", "said"), [("init", "are moved as they are stored"), ("mean", "1 new row is computed")])
def test_rows_of_gguf_are_moved(new: str, said: str) -> None:
    for name, rows in (("a", len(OLD)), ("b", len(NEW))):
        embedding = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))
        save_file({"token_embd.weight": embedding, "output_norm.weight": torch.ones(WIDTH)}, f"{name}.safetensors")
        cs.apply(cs.convert(f"{name}.safetensors", gguf_type="q8_0"), f"{name}.gguf")
    plan = cs.transplant("a.gguf", "b.gguf", vocab="old.txt:new.txt", new_tokens=new, vocab_keys=["token_embd.weight"])
    assert any(said in note for note in plan.notes)
    cs.apply(plan, "out.gguf")
    assert cs.verify("out.gguf").ok
    tables = {}
    for name in ("a", "b", "out"):
        with cs.open_checkpoint(f"{name}.gguf") as opened:
            tables[name] = opened.tensor("token_embd.weight")
    for place, token in enumerate(NEW):
        if token in OLD:
            assert torch.equal(tables["out"][place], tables["a"][OLD.index(token)])
    assert torch.equal(tables["out"][1], tables["b"][1]) is (new == "init")
