"""Every verb that reads at addresses: the same outputs as from files here, in few requests; counted by the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage.read import remote

from ...helpers.adapters import peft_folder
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved

MATRIX = 640_000
"""Bytes of one tensor."""


def model(seed: int, number: int = 12) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        f"{part}.{i}.weight": torch.randn(400, 400, generator=made)
        for part in ("encoder", "decoder")
        for i in range(number // 2)
    }


A, B = model(1), model(2)
WHOLE = len(A) * MATRIX


def served(hub: Hub, name: str, values: Mapping[str, torch.Tensor], kind: str) -> str:
    """The address of a model; it lies under its name here, too."""
    if kind == "pth":
        Path(name).write_bytes(saved(dict(values)))
    else:
        from safetensors.torch import save_file

        save_file(dict(values), name)
    return hub.file(name, Path(name).read_bytes())


def check_bounds(hub: Hub, nbytes: int, requests: int) -> None:
    print(f"{hub.sent} bytes of {nbytes} wanted, {len(hub.requests)} requests")
    assert nbytes * 0.9 <= hub.sent <= nbytes + 400_000
    assert len(hub.requests) <= requests


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("make", "share", "requests"),
    [
        (lambda a, b: cs.merge([a, b], method="linear", weight=[0.5, 0.5]), 2.0, 12),
        (lambda a, b: cs.merge([a], base=b, method="task_arithmetic", weight=0.3), 2.0, 12),
        (lambda a, b: cs.average([a, b]), 2.0, 12),
        (lambda a, b: cs.rename(a, map=["encoder=body"]), 1.0, 6),
        (lambda a, b: cs.filter(a, include=["encoder.{0,1}"]), 2 / 12, 6),
        (lambda a, b: cs.convert(a, dtype="bfloat16"), 1.0, 6),
        (lambda a, b: cs.lora_extract(a, b, rank=2), 2.0, 12),
    ],
    ids=["linear", "task arithmetic", "average", "rename", "filter", "convert", "lora extract"],
)
def test_a_plan_fetches_what_it_reads_once(
    hub: Hub, kind: str, make: Callable[[str, str], cs.Plan], share: float, requests: int
) -> None:
    first, second = f"a.{kind}", f"b.{kind}"
    there = make(served(hub, first, A, kind), served(hub, second, B, kind))
    out = ("far", "near") if there.verb == "lora extract" else ("far.safetensors", "near.safetensors")
    cs.apply(there, out[0])
    check_bounds(hub, int(share * WHOLE), requests)
    cs.apply(make(first, second), out[1])
    far, near = cs.open_checkpoint(weights(out[0])), cs.open_checkpoint(weights(out[1]))
    assert list(far) == list(near)
    assert all(torch.equal(far.tensor(key), near.tensor(key)) for key in near)


def weights(path: str) -> str:
    return f"{path}/adapter_model.safetensors" if Path(path).is_dir() else path


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_diff_by_values(hub: Hub, kind: str) -> None:
    changed = {**A, "decoder.1.weight": A["decoder.1.weight"] + 1}
    first, second = served(hub, f"a.{kind}", A, kind), served(hub, f"b.{kind}", changed, kind)
    cs.diff(first, second)
    assert hub.sent < 400_000
    hub.forget()
    found = cs.diff(first, second, values=True)
    assert [pair.key for pair in found.changed] == ["decoder.1.weight"]
    check_bounds(hub, 2 * WHOLE, 12)


@pytest.mark.long
def test_diff_by_content(hub: Hub) -> None:
    moved = {key.replace("encoder", "body"): value for key, value in A.items()}
    first, second = served(hub, "a.pth", A, "pth"), served(hub, "b.pth", moved, "pth")
    found = cs.diff(first, second, renames=True)
    assert len(found.renamed) == len(A) // 2
    check_bounds(hub, 2 * WHOLE, 12)


@pytest.mark.long
def test_match_reads_headers_alone(hub: Hub) -> None:
    moved = {key.replace("encoder", "body"): value for key, value in A.items()}
    cs.match(served(hub, "a.pth", A, "pth"), served(hub, "b.pth", moved, "pth"))
    assert hub.sent < 400_000
    assert len(hub.requests) <= 8


@pytest.mark.long
def test_verify_against_its_source(hub: Hub) -> None:
    url = served(hub, "a.pth", A, "pth")
    cs.apply(cs.filter(url, include=["encoder"]), "out.safetensors")
    hub.forget()
    done = cs.verify("out.safetensors", sources={url: url})
    assert done.ok
    assert done.compared == len(A) // 2
    check_bounds(hub, WHOLE // 2, 8)


def test_inspect_with_statistics(hub: Hub) -> None:
    found = cs.inspect(served(hub, "a.pth", A, "pth"), stats=True)
    assert found.stats is not None
    check_bounds(hub, WHOLE, 8)


@pytest.mark.long
def test_a_live_module_and_a_pretrainer(hub: Hub) -> None:
    module = torch.nn.ModuleList(torch.nn.Linear(400, 400, bias=False) for _ in range(6))
    values = {f"{i}.weight": torch.randn(400, 400) for i in range(6)}
    hub.repository("org/net", {"sub/model.ckpt": saved(values)})
    for number, where in enumerate(("hf://org/net/sub/model.ckpt", hub.file("model.ckpt", saved(values)))):
        pretrainer = cs.Pretrainer(f"collected{number}", {"net": module}, {"net": where})
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
        hub.forget()
        pretrainer.collect_files()
        pretrainer.load_collected()
        assert all(torch.equal(module.state_dict()[key], value) for key, value in values.items())
        assert hub.sent <= 6 * MATRIX + 100_000


# Adapters.


def adapter(folder: str = "adapter") -> None:
    made = torch.Generator().manual_seed(3)
    peft_folder(
        folder,
        {
            f"encoder.{i}.lora_{part}.weight": torch.randn(shape, generator=made)
            for i in range(6)
            for part, shape in (("A", (2, 400)), ("B", (400, 2)))
        },
        target_modules=["encoder"],
    )


@pytest.mark.long
def test_lora_merge_of_a_base_and_an_adapter_on_the_hub(hub: Hub, ckpt: Callable[..., object]) -> None:
    adapter()
    base = hub.repository("org/base", {"model.pth": saved(A), "config.json": b'{"model_type": "none"}'})
    tuned = hub.repository("org/adapter", {path.name: path.read_bytes() for path in Path("adapter").iterdir()})
    done = ckpt("lora", "merge", "hf://org/base", "hf://org/adapter", "-o", "far.safetensors")
    assert done.code == 0, done
    print(hub.sent, len(hub.requests))
    assert hub.sent <= WHOLE + 400_000
    Path("base.pth").write_bytes(saved(A))
    cs.apply(cs.lora_merge("base.pth", ["adapter"]), "near.safetensors")
    far, near = cs.open_checkpoint("far.safetensors"), cs.open_checkpoint("near.safetensors")
    assert all(torch.equal(far.tensor(key), near.tensor(key)) for key in near)
    assert not torch.equal(far.tensor("encoder.0.weight"), A["encoder.0.weight"])
    for commit in (base.main, tuned.main):
        assert commit in (far.recipe or "")


@pytest.mark.long
def test_an_adapter_on_a_web_server_has_its_configuration_beside_it(hub: Hub) -> None:
    adapter()
    for path in Path("adapter").iterdir():
        hub.file(f"lora/{path.name}", path.read_bytes())
    url = hub.file("a.pth", saved(A))
    cs.apply(cs.lora_merge(url, [f"{hub.url}/files/lora/adapter_model.safetensors"]), "far.safetensors")
    assert len(cs.open_checkpoint("far.safetensors")) == len(A)
    del hub.files["lora/adapter_config.json"]
    with pytest.raises(cs.SourceError, match=r"adapter_config\.json cannot be fetched: 404"):
        cs.lora_merge(url, [f"{hub.url}/files/lora/adapter_model.safetensors"])


@pytest.mark.costly
@pytest.mark.parametrize("lacking", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_on_the_hub_is_said(hub: Hub, lacking: str) -> None:
    adapter()
    files = {path.name: path.read_bytes() for path in Path("adapter").iterdir() if path.name != lacking}
    hub.repository("org/adapter", files)
    with pytest.raises(cs.SourceError, match=f"has no .*{lacking}"):
        cs.lora_merge(hub.file("a.pth", saved(A)), ["hf://org/adapter"])


# Folders.


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["dcp", "shards"])
def test_a_folder_on_the_hub_is_fetched_in_parts(hub: Hub, kind: str) -> None:
    torch.save(A, "a.pth")
    options = {"to": "dcp"} if kind == "dcp" else {"to": "safetensors", "max_shard_size": "2MB"}
    cs.apply(cs.convert("a.pth"), "folder", **options)
    hub.repository("org/net", {path.name: path.read_bytes() for path in Path("folder").iterdir()})
    cs.apply(cs.filter("hf://org/net", include=["encoder.{0,1}"]), "out.safetensors")
    found = cs.open_checkpoint("out.safetensors")
    assert all(torch.equal(found.tensor(key), A[key]) for key in found)
    assert len(found) == 2
    print(f"{kind}: {hub.sent} bytes, {len(hub.requests)} requests")
    files = len(list(Path("folder").iterdir()))
    ends = 2 * len(A) * remote.BLOCK if kind == "dcp" else 0  # each tensor of DCP is a zip, with a head and a tail
    assert hub.sent <= 2 * MATRIX + files * 70_000 + 200_000 + ends
    assert len(hub.requests) <= 3 * len(A) + 10
