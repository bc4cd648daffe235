"""The faults that are planted, and which check names each: (function, id of the check, status, words of the finding)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from .models import FIRST, INDEX, SECOND, TOKENS, change, edit_json, header_of, tokenizer, with_header, write

__all__ = ["FAULTS", "Fault"]

UP, DOWN = "model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight"

NORM = "model.layers.3.input_layernorm.weight"


class Fault(NamedTuple):
    plant: Callable[[Path], None]
    id: str
    status: str
    said: str


def cut_short(folder: Path) -> None:
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:-100])


def too_long(folder: Path) -> None:
    path = folder / SECOND
    path.write_bytes(path.read_bytes() + bytes(24))


def missing_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def broken_header(folder: Path) -> None:
    data = bytearray((folder / SECOND).read_bytes())
    data[8:12] = b"!!!!"
    (folder / SECOND).write_bytes(data)


def replaced_by(text: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / SECOND).write_text(text)

    return plant


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 123456\n"


def broken_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {')


def overlap(folder: Path) -> None:
    header, body = header_of(folder / FIRST)
    keys = sorted((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
    header[keys[1]]["data_offsets"] = [one - 16 for one in header[keys[1]]["data_offsets"]]
    with_header(folder / FIRST, header, body)


def hole(folder: Path) -> None:
    header, body = header_of(folder / FIRST)
    for key in header.keys() - {"__metadata__"}:
        header[key]["data_offsets"] = [one + 8 for one in header[key]["data_offsets"]]
    with_header(folder / FIRST, header, bytes(8) + body)


def wrong_span(folder: Path) -> None:
    header, body = header_of(folder / FIRST)
    header["model.layers.0.mlp.up_proj.weight"]["shape"] = [31, 16]
    with_header(folder / FIRST, header, body)


def half_a_row(folder: Path) -> None:
    header, body = header_of(folder / FIRST)
    header["model.layers.0.mlp.up_proj.weight"] |= {"dtype": "F4", "shape": [2048, 1]}
    with_header(folder / FIRST, header, body)


def not_in_a_shard(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({"model.extra.weight": FIRST}))


def not_in_the_index(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))


def twice(folder: Path) -> None:
    state = load_file(folder / SECOND)
    state["model.embed_tokens.weight"] = load_file(folder / FIRST)["model.embed_tokens.weight"]
    save_file(state, folder / SECOND)


def wrong_total(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["metadata"].update(total_size=12345))


def fewer_than_named(folder: Path) -> None:
    """Both shards get names of a set of nine, as if seven were lost together with their entries in the index."""
    names = {name: name.replace("-of-00002", "-of-00009") for name in (FIRST, SECOND)}
    for old, new in names.items():
        (folder / old).rename(folder / new)
    edit_json(
        folder / INDEX,
        lambda index: index.update(weight_map={key: names[name] for key, name in index["weight_map"].items()}),
    )


def left_over(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder / "model-00001-of-00009.safetensors")


def index_left_over(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))


def shards_beside_the_whole(folder: Path) -> None:
    save_file(load_file(folder / FIRST) | load_file(folder / SECOND), folder / "model.safetensors", {"format": "pt"})
    (folder / SECOND).unlink()
    (folder / INDEX).unlink()


def downloaded_again(folder: Path) -> None:
    shutil.copy(folder / SECOND, folder / f"{Path(SECOND).stem} (1).safetensors")


def edited(key: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        change(folder, key, edit)

    return plant


def put(value: float, at: int = 5) -> Callable[[Any], Any]:
    def edit(values: Any) -> Any:
        values.reshape(-1)[at] = value
        return values

    return edit


def flipped_bit(folder: Path) -> None:
    """The highest bit of an exponent, in a model of float32."""
    for name in (FIRST, SECOND):
        state = {key: value.astype(np.float32) for key, value in load_file(folder / name).items()}
        if UP in state:
            state[UP].view(np.uint32).reshape(-1)[5] |= 1 << 30
        save_file(state, folder / name)
    edit_json(folder / INDEX, lambda index: index["metadata"].update(total_size=index["metadata"]["total_size"] * 2))
    edit_json(folder / "config.json", lambda config: config.update(dtype="float32"))


def with_denormals(values: Any) -> Any:
    values.reshape(-1)[: values.size * 6 // 10] = np.float16(3e-6)
    return values


def copied(folder: Path) -> None:
    values = load_file(folder / FIRST)["model.layers.1.mlp.up_proj.weight"]
    change(folder, UP, lambda _: values.copy())


def rows(value: float | None, *numbers: int) -> Callable[[Any], Any]:
    def edit(values: Any) -> Any:
        values[list(numbers)] = values[numbers[0]] if value is None else value * values[list(numbers)]
        return values

    return edit


def tied_but_different(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))


def configured(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(fields))


def more_tokens(folder: Path) -> None:
    write(folder / "tokenizer.json", tokenizer(TOKENS + 4))


def id_beyond(folder: Path) -> None:
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=TOKENS + 7))


def card(text: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / "README.md").write_text(text)

    return plant


def broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')


def missing_layer(folder: Path) -> None:
    for key in [key for key in json.loads((folder / INDEX).read_text())["weight_map"] if ".layers.2." in key]:
        change(folder, key, lambda _: None)


def quantised(edit: Callable[[Any], Any], dtype: type = np.float32) -> Callable[[Path], None]:
    """Make all up projections codes of 8 bits with a scale for each row, and change the scales of one of them."""

    def plant(folder: Path) -> None:
        for layer in range(6):
            key = f"model.layers.{layer}.mlp.up_proj.weight"
            name = json.loads((folder / INDEX).read_text())["weight_map"][key]
            state = load_file(folder / name)
            values = state[key].astype(np.float32)
            scales = np.abs(values).max(axis=1, keepdims=True) / 127
            state[key] = np.round(values / scales).astype(np.int8)
            state[f"{key}_scale"] = edit(scales.astype(dtype)) if layer == 3 else scales.astype(dtype)
            save_file(state, folder / name)
            edit_json(
                folder / INDEX, lambda index, key=key, name=name: index["weight_map"].update({f"{key}_scale": name})
            )
        edit_json(folder / INDEX, lambda index: index["metadata"].pop("total_size"))
        edit_json(folder / "config.json", lambda config: config.update(quantization_config=INT8))

    return plant


def float_codes(edit: Callable[[Any], Any] = lambda one: one, /, **fields: Any) -> Callable[[Path], None]:
    """Make all up projections floats of 8 bits with changed scales, and change config.json by ``fields``."""

    def plant(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        places = json.loads((folder / INDEX).read_text())["weight_map"]
        for layer in range(6):
            key = f"model.layers.{layer}.mlp.up_proj.weight"
            state = load_file(folder / places[key])
            scales = state[key].float().abs().amax(1, keepdim=True) / 448
            state |= {key: (state[key].float() / scales).to(torch.float8_e4m3fn), f"{key}_scale": edit(scales)}
            save_file(state, folder / places[key])
            places[f"{key}_scale"] = places[key]
        write(folder / INDEX, {"weight_map": places})
        edit_json(folder / "config.json", lambda config: config.update(fields))

    return plant


def zero_codes(folder: Path) -> None:
    quantised(lambda scales: scales)(folder)
    name = json.loads((folder / INDEX).read_text())["weight_map"][UP]
    state = load_file(folder / name)
    state[UP] *= 0
    save_file(state, folder / name)


def wrapped(prefix: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        for name in (FIRST, SECOND):
            save_file({prefix + key: value for key, value in load_file(folder / name).items()}, folder / name)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = {prefix + key: name for key, name in index["weight_map"].items()}
        write(folder / INDEX, index)

    return plant


def lost_scale(folder: Path) -> None:
    quantised(lambda scales: scales)(folder)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    state = load_file(folder / places[f"{UP}_scale"])
    del state[f"{UP}_scale"]
    save_file(state, folder / places.pop(f"{UP}_scale"))
    write(folder / INDEX, {"weight_map": places})


INT8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head", r"re:.*self_attn.*", r"re:.*(gate|down)_proj"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}},
}  # fmt: skip
FP8 = json.loads(json.dumps(INT8).replace("int-quantized", "float-quantized").replace('"int"', '"float"'))


def _faults() -> Iterator[Fault]:
    fail, warn = "FAIL", "WARN"
    yield Fault(cut_short, "file-size", fail, "100 bytes short")
    yield Fault(too_long, "file-size", fail, "24 bytes too long")
    yield Fault(missing_shard, "shards", fail, f"{SECOND} is missing")
    yield Fault(broken_header, "shards", fail, "not valid JSON")
    yield Fault(replaced_by(POINTER), "shards", fail, "it is a Git LFS pointer, and git lfs pull fetches the file")
    yield Fault(replaced_by("<!DOCTYPE html><html></html>"), "shards", fail, "it is an HTML page")
    yield Fault(broken_index, "shards", fail, "index.json is not valid JSON")
    yield Fault(overlap, "offsets", fail, "begins 16 bytes before")
    yield Fault(hole, "offsets", fail, "8 bytes before")
    yield Fault(wrong_span, "offsets", fail, "needs 992 bytes, but has")
    yield Fault(half_a_row, "offsets", fail, "has half a byte at the end of a row")
    yield Fault(not_in_a_shard, "index-keys", fail, "in no shard: model.extra.weight")
    yield Fault(not_in_the_index, "index-keys", fail, "in a shard, but not in")
    yield Fault(twice, "index-keys", fail, "in several shards: model.embed_tokens.weight")
    yield Fault(wrong_total, "index-total", warn, "12,345 bytes")
    yield Fault(left_over, "orphaned-shards", warn, "model-00001-of-00009.safetensors")
    yield Fault(
        index_left_over, "orphaned-shards", warn, "another index, and 1 shard of it is missing: pytorch_model-1.bin"
    )
    yield Fault(shards_beside_the_whole, "orphaned-shards", warn, "there is no index, so no program loads it: ")
    yield Fault(downloaded_again, "orphaned-shards", warn, "model-00002-of-00002 (1).safetensors")
    yield Fault(edited(UP, put(np.nan)), "not-finite", fail, f"1 NaN value: {UP}")
    yield Fault(edited(UP, put(-np.inf)), "not-finite", fail, f"1 infinite value: {UP}")
    yield Fault(flipped_bit, "huge-values", fail, UP)
    yield Fault(edited(UP, np.zeros_like), "all-zeros", warn, UP)
    yield Fault(edited(NORM, np.zeros_like), "all-zeros", warn, NORM)
    yield Fault(edited(UP, lambda one: np.full_like(one, 0.5)), "constants", warn, UP)
    yield Fault(edited(UP, with_denormals), "denormals", warn, "60 % of denormal values")
    yield Fault(copied, "duplicates", warn, f"{UP} = model.layers.1.mlp.up_proj.weight")
    yield Fault(edited("model.embed_tokens.weight", rows(0.0, 7, 9, 11)), "untrained-rows", warn, "3 zero")
    yield Fault(edited("model.embed_tokens.weight", rows(None, 7, 9)), "untrained-rows", warn, "2 equal to others")
    yield Fault(
        edited("model.embed_tokens.weight", rows(0.01, 7)),
        "untrained-rows",
        warn,
        "has 1 row that was never trained (1 below",
    )
    yield Fault(edited(DOWN, lambda one: one * np.float16(50)), "value-family", warn, DOWN)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    yield Fault(edited(embedding, lambda one: one * np.float16(0.01)), "weight-size", warn, f"{embedding} has values")
    yield Fault(
        edited(head, lambda one: one * np.float16(100)), "weight-size", warn, "times larger than those of the other"
    )
    yield Fault(configured(rms_norm_eps=1.0), "configuration", warn, "1.0 (rms_norm_eps)")
    yield Fault(edited(DOWN, lambda one: one.astype(np.float32)), "dtype-family", warn, f"{DOWN} is float32")
    yield Fault(tied_but_different, "ties", fail, "their values differ")
    yield Fault(quantised(put(0.0)), "scales", warn, "scales with zeros")
    yield Fault(quantised(lambda one: one * 0), "scales", fail, "scales that are all zero")
    yield Fault(quantised(put(-0.01)), "scales", fail, "negative")
    yield Fault(quantised(put(np.nan)), "scales", fail, "scales with NaN")
    yield Fault(quantised(put(1e12)), "scales", fail, "scales above")
    inverse = float_codes(lambda one: 1 / one, quantization_config=FP8)  # of all layers, so that none stands out
    yield Fault(inverse, "scales", fail, "6 tensors of scales that make weights above 10,000")
    yield Fault(quantised(lambda one: one * np.float32(100)), "value-family", warn, f"{UP}_scale has")
    yield Fault(quantised(lambda one: one / np.float32(100)), "value-family", warn, "the mean scale of 1 tensor")
    yield Fault(zero_codes, "all-zeros", warn, f"1 tensor of codes that are all zero: {UP}")
    yield Fault(lost_scale, "quantisation", fail, "lacks weight_scale")
    yield Fault(float_codes(), "quantisation", fail, "no quantization_config for 6 quantised tensors")
    yield Fault(configured(intermediate_size=40), "configuration", fail, "40 (intermediate_size)")
    yield Fault(configured(num_hidden_layers=8), "missing-tensors", fail, "8 (num_hidden_layers)")
    yield Fault(edited("model.layers.2.self_attn.k_proj.weight", lambda _: None), "missing-tensors", fail, "k_proj")
    yield Fault(wrapped("module."), "missing-tensors", fail, "every key begins with module.: from_pretrained")
    yield Fault(wrapped("_orig_mod."), "missing-tensors", fail, "every key begins with _orig_mod.")
    yield Fault(missing_layer, "layer-sequence", fail, "the first is 2")
    yield Fault(more_tokens, "vocabulary", fail, "52 tokens")
    yield Fault(id_beyond, "token-ids", warn, f"eos_token_id of generation_config.json is {TOKENS + 7}")
    yield Fault(card("# A model\n"), "model-card", warn, "no license")
    yield Fault(card("---\nlicense: [\n---\n"), "model-card", fail, "cannot be read")
    yield Fault(card("---\nlicense: other\n---\n"), "model-card", warn, "no license_name")
    yield Fault(lambda folder: (folder / "README.md").unlink(), "model-card", warn, "no model card")
    yield Fault(broken_configuration, "unreadable-files", fail, "config.json")
    yield Fault(fewer_than_named, "other-notes", warn, "lists 2 shards, but not model-00003-of-00009.safetensors")


FAULTS = tuple(_faults())
