"""Bytes of a file that repeat earlier bytes, as if a chunk of a download was written twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.measuring import repeats

from ...helpers.coded_matrices import SETTINGS, awq, gptq, llm_int8, mlx, nf4
from ...helpers.coded_models import coded_tensors, write_model

Tensors = dict[str, torch.Tensor]
SAID = "was a part of a download written twice?"
CHUNK = 1 << 18
FINE = 64
"""A step that compares words of small rows, too, so that small tensors can show false alarms."""


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 32).to(dtype)


def warnings(path: Path | str) -> list[str]:
    report = cs.check(path, skip=["class-tensors", "model-card"])
    return [one.what for one in report.row("duplicates").found if SAID in one.what]


def with_chunk_twice(path: Path, content: bytes, at: int, size: int = CHUNK) -> Path:
    path.write_bytes(content[:at] + content[at - size : at] + content[at + size :])
    return path


@pytest.fixture(params=[repeats.STEP, FINE], ids=["usual", "fine"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(repeats, "STEP", request.param)
    return request.param


def layers() -> Tensors:
    return {
        f"layers.{layer}.{role}": drawn(*shape, seed=10 * layer + number)
        for layer in range(4)
        for number, (role, shape) in enumerate(
            {"up.weight": (768, 192), "up.bias": (768,), "q.weight": (192, 192)}.items()
        )
    }


def test_a_chunk_that_was_written_twice_is_reported(tmp_path: Path, step: int) -> None:
    content = save(layers())
    path, begin = tmp_path / "x.safetensors", len(content) // CHUNK // 2 * CHUNK
    row = cs.check(with_chunk_twice(path, content, begin)).row("duplicates")
    (found,) = row.found
    assert (row.status.value, found.file) == ("WARN", "x.safetensors")
    assert found.keys == ("layers.1.up.weight", "layers.2.q.weight")
    assert found.what.endswith(
        f"and begin or end in the middle of a row ({SAID}): layers.1.up.weight, layers.2.q.weight"
    )
    assert found.figures["distance"] == CHUNK
    assert 0 <= begin - int(found.figures["begin"]) < 3  # a byte before the chunk may be equal by chance
    assert 0 <= int(found.figures["bytes"]) - CHUNK < 6
    path.write_bytes(content)
    assert cs.check(path).row("duplicates").found == ()


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64], ids=str)
def test_within_a_tensor_of_any_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    content = save({"a.weight": drawn(3000, 700, dtype=dtype), "b.weight": drawn(500, 700, seed=1, dtype=dtype)})
    assert len(warnings(with_chunk_twice(tmp_path / "x.safetensors", content, 3 * CHUNK))) == 1


@pytest.mark.long
def test_experts_and_kernels_in_one_tensor(tmp_path: Path) -> None:
    for shape in ((4, 512, 700), (700, 512, 3, 3)):
        content = save({"experts.weight": drawn(*shape)})
        assert len(warnings(with_chunk_twice(tmp_path / "x.safetensors", content, 6 * CHUNK + 4096))) == 1


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["gptq", "mlx", "llm_int8"])
def test_codes(name: str, tmp_path: Path) -> None:
    encode = {"gptq": gptq, "mlx": mlx, "llm_int8": llm_int8}[name]
    folder = write_model(tmp_path / "m", coded_tensors(encode, layers=24), SETTINGS.get(name))
    assert warnings(folder) == []
    content = (file := folder / "model.safetensors").read_bytes()
    with_chunk_twice(file, content, len(content) // 2 // 8192 * 8192 + 40, 1 << 16)
    assert len(warnings(folder)) == 1


def test_gguf(tmp_path: Path) -> None:
    save_file({"a.weight": drawn(2048, 704), "b.weight": drawn(704, 2048, seed=1)}, tmp_path / "x.safetensors")
    cs.apply(cs.convert(tmp_path / "x.safetensors", gguf_type="q8_0", layout="keep"), tmp_path / "x.gguf")
    assert warnings(tmp_path / "x.gguf") == []
    content = (tmp_path / "x.gguf").read_bytes()
    assert len(warnings(with_chunk_twice(tmp_path / "y.gguf", content, 3 * CHUNK))) == 1


def test_records_of_torch(tmp_path: Path) -> None:
    torch.save(layers() | {"again": layers()["layers.2.up.weight"].clone()}, tmp_path / "x.pth")
    assert warnings(tmp_path / "x.pth") == []
    content = (tmp_path / "x.pth").read_bytes()
    at = content.index(layers()["layers.1.up.weight"].numpy().tobytes()[:64]) + 300_100
    assert len(warnings(with_chunk_twice(tmp_path / "y.pth", content, at, 1 << 17))) == 1


WIDE = drawn(600, 5000)
TABLE = drawn(4000, 512)
HEALTHY: dict[str, Callable[[], Tensors]] = {
    "tied tensors": lambda: {"embed": TABLE, "norm": torch.ones(512), "head": TABLE.clone()},
    "a repeated layer": lambda: {f"{n}.{k}": v for n in range(2) for k, v in {"b": torch.ones(99), "w": WIDE}.items()},
    "a layer before other constants": lambda: {
        "0.w": WIDE, "1.b": torch.zeros(3000), "2.w": WIDE.clone(), "3.b": torch.zeros(9000),
    },
    "copied rows": lambda: {"w": torch.cat([TABLE, TABLE[1234:3000]]), "b": drawn(333)},
    "rows that are drawn": lambda: {"w": torch.cat([WIDE, WIDE[torch.randint(600, (300,))]])},
    "equal new rows": lambda: {"embed": torch.cat([TABLE, TABLE.mean(0).expand(300, 512)])},
    "one new row": lambda: {"embed": torch.cat([WIDE, WIDE[:1]])},
    "copied columns": lambda: {"w": torch.cat([WIDE, WIDE], 1), "v": torch.cat([TABLE, TABLE[:, :300]], 1)},
    "rows and columns": lambda: {"w": torch.cat([torch.cat([WIDE, WIDE], 1)] * 2)},
    "rows and some columns": lambda: {"w": torch.cat([(x := torch.cat([WIDE, WIDE[:, :3000]], 1)), x[:200]])},
    "each row twice, each column twice": lambda: {"w": torch.cat([WIDE, WIDE], 1).repeat_interleave(2, 0)},
    "each column twice": lambda: {"w": WIDE.repeat_interleave(2, 1)},
    "two equal experts": lambda: {"experts": drawn(1, 700, 300).expand(2, 700, 300)},
    "eight equal experts": lambda: {"experts": drawn(1, 700, 300).expand(8, 700, 300)},
    "wider experts": lambda: {"experts": torch.cat([(x := drawn(4, 700, 300)), x[:, :500]], 1)},
    "channels": lambda: {"conv": torch.cat([(x := drawn(256, 128, 3, 3)), x[:100]])},
    "inputs of channels": lambda: {"conv": torch.cat([(x := drawn(128, 256, 3, 3)), x[:, 50:200]], 1)},
    "a fused copy": lambda: {"q": TABLE[:999], "k": TABLE[999:2000], "qkv": TABLE},
    "fused columns": lambda: {"q": WIDE[:, :1111], "k": WIDE[:, 1111:], "qkv": WIDE},
    "longer vectors": lambda: {"b": torch.cat([(x := drawn(50_000)), x[:30_000]])},
    "positions": lambda: {"pos": torch.outer(torch.arange(4096.0), 1e4 ** -torch.linspace(0, 1, 256)).sin()},
    "waves": lambda: {"dft": torch.outer(torch.arange(513.0), torch.arange(1024.0) * torch.pi / 512).cos()},
    "distances": lambda: {"alibi": (torch.arange(1500)[None] - torch.arange(1500)[:, None]).abs().float()},
    "relative biases": lambda: {"bias": drawn(3000)[torch.arange(1500)[None] - torch.arange(1500)[:, None] + 1500]},
    "indices": lambda: {"index": torch.arange(1500)[None] - torch.arange(1500)[:, None], "ids": torch.arange(9999)[None]},
    "masks": lambda: {"mask": torch.ones(1, 1, 1500, 1500, dtype=torch.bool).tril(), "m": torch.ones(999, 999).tril()},
    "buffers of layers": lambda: {f"{n}.index": torch.arange(30_000).reshape(300, 100) // 7 for n in range(2)},
    "identity": lambda: {"w": torch.eye(1500)},
    "zeros": lambda: {"w": torch.zeros(1500, 1500), "v": torch.nn.functional.pad(TABLE, (100, 100, 50, 50))},
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_equal_on_purpose_is_not_reported(name: str, step: int, tmp_path: Path) -> None:
    dtype = (torch.float32, torch.bfloat16)[([*HEALTHY].index(name) + (step == FINE)) % 2]  # one of both for each step
    state = {key: one.to(dtype) if one.is_floating_point() else one for key, one in HEALTHY[name]().items()}
    save_file({key: one.contiguous().clone() for key, one in state.items()}, tmp_path / "x.safetensors")
    assert warnings(tmp_path / "x.safetensors") == []


def llama(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    state = {"model.embed_tokens.weight": drawn(500, 128), "lm_head.weight": drawn(500, 128, seed=1)}
    state["model.norm.weight"] = 1 + drawn(128)
    roles = {
        "self_attn.q_proj": (128, 128), "self_attn.k_proj": (64, 128), "self_attn.v_proj": (64, 128),
        "self_attn.o_proj": (128, 128), "mlp.gate_proj": (384, 128), "mlp.up_proj": (384, 128),
        "mlp.down_proj": (128, 384), "input_layernorm": (128,), "post_attention_layernorm": (128,),
    }  # fmt: skip
    for layer in range(3):
        for number, (role, shape) in enumerate(roles.items()):
            state[f"model.layers.{layer}.{role}.weight"] = drawn(*shape, seed=10 * layer + number + 2)
    save_file(state, folder / "model.safetensors")
    return folder


RESIZED = {
    "width": {"set": {"hidden_size": 256}},
    "channels": {"set": {"intermediate_size": 768}, "new_channels": "copy"},
    "some channels": {"set": {"intermediate_size": 500}, "new_channels": "copy"},
    "both": {"set": {"hidden_size": 256, "intermediate_size": 768}, "new_channels": "copy"},
    "layers": {"set": {"num_hidden_layers": 5}, "layers": "0,1,2,1,2"},
}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", RESIZED)
def test_wider_networks_are_not_reported(
    name: str, step: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / f"resized {name}"
    if not out.exists():  # made for one step, and checked with both
        cs.apply(cs.resize(llama(tmp_path / "m"), **RESIZED[name]), out)  # type: ignore[arg-type]
    assert load_file(out / "model.safetensors")
    assert warnings(out) == []


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["gptq", "awq", "nf4", "mlx", "llm_int8"])
def test_quantised_models_are_not_reported(name: str, step: int, tmp_path: Path) -> None:
    encode = {"gptq": gptq, "awq": awq, "nf4": nf4, "mlx": mlx, "llm_int8": llm_int8}[name]
    state = coded_tensors(encode, tables=("model.embed_tokens", "lm_head"))
    first, second = (f"model.layers.{n}.mlp.up_proj." for n in (1, 2))
    state |= {key.replace(first, second): one.clone() for key, one in state.items() if key.startswith(first)}
    assert warnings(write_model(tmp_path / "m", state, SETTINGS.get(name))) == []
    zeros = {key: torch.full_like(one, one.flatten()[0].item()) for key, one in state.items() if "qzeros" in key}
    assert warnings(write_model(tmp_path / "m", state | zeros, SETTINGS.get(name))) == []
