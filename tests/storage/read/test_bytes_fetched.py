"""A plan fetches what it reads and no more: counted by the server."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.inputs import close_plan
from ckptsurgeon.errors import PlanError

from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved


def model(decoder: int = 45) -> dict[str, torch.Tensor]:
    """A tenth of it is the encoder: five matrices of 640 kB of fifty."""
    torch.manual_seed(0)
    parts = {f"encoder.{i}.weight": torch.randn(400, 400) for i in range(5)}
    return parts | {f"decoder.{i}.weight": torch.randn(400, 400) for i in range(decoder)}


@cache
def encoded(kind: str) -> bytes:
    if kind != "safetensors":
        return saved(model(), _use_new_zipfile_serialization=kind == "pth")
    torch.save(model(), "x.pth")
    cs.apply(cs.convert("x.pth"), "x.safetensors")
    return Path("x.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["pth", "safetensors", "legacy"])
def test_a_tenth_of_a_file_takes_eleven_percent_of_its_bytes(hub: Hub, kind: str) -> None:
    data = encoded(kind)
    url = hub.file("big", data)
    told: list[tuple[int, int]] = []
    plan = cs.filter(url, include=["encoder"])
    cs.apply(plan, "out.safetensors", progress=lambda done, total: told.append((done, total)))
    ours = cs.open_checkpoint("out.safetensors")
    assert all(torch.equal(ours.tensor(key), value) for key, value in model().items() if key.startswith("encoder"))
    assert told == sorted(told)
    assert told[-1][0] <= told[-1][1] < len(data)
    print(f"{kind}: {hub.sent / len(data):.2%} of {len(data)} bytes, {len(hub.requests)} requests")
    if kind != "legacy":  # its pickles are read a megabyte at a time
        assert hub.sent <= 0.11 * len(data)
        assert len(hub.requests) <= 8
    assert hub.sent < 0.15 * len(data)


def test_a_live_module_is_loaded_from_an_address(hub: Hub) -> None:
    module = torch.nn.ModuleDict(
        {"encoder": torch.nn.ModuleList(torch.nn.Linear(400, 400, bias=False) for _ in range(5))}
    )
    data = encoded("pth")
    cs.load_into(module, hub.file("big.pth", data), include=["encoder"])
    assert torch.equal(module.state_dict()["encoder.3.weight"], model()["encoder.3.weight"])
    assert hub.sent < 0.15 * len(data)


@pytest.mark.long
def test_computed_steps_are_fetched_together(hub: Hub) -> None:
    url, other = hub.file("a.pth", encoded("pth")), hub.file("b.pth", saved({k: v + 1 for k, v in model().items()}))
    plan = cs.average([url, other])
    hub.forget()
    cs.apply(plan, "out.safetensors")
    assert len(hub.requests) <= 24  # of at most four megabytes each
    found = cs.open_checkpoint("out.safetensors").tensor("decoder.3.weight")
    assert torch.allclose(found, model()["decoder.3.weight"] + 0.5, atol=1e-6)


def test_a_transplant_keeps_secrets_out_of_outputs_and_messages(hub: Hub, ckpt: Callable[..., object]) -> None:
    torch.save(model(), "dst.pth")
    url = hub.file("net.pth", encoded("pth"), user="me:p4ss").replace("//", "//me:p4ss@") + "?token=t0ken"
    done = ckpt("transplant", url, "dst.pth", "--include", "encoder", "-o", "out.safetensors")
    assert done.code == 0, done
    written = Path("out.safetensors").read_bytes()
    for secret in ("p4ss", "t0ken"):
        assert secret.encode() not in written
        assert secret not in done.out + done.err
    planned = ckpt("transplant", url, "dst.pth", "--include", "encoder", "-n", "--json")
    assert "p4ss" not in planned.out + planned.err
    assert f"{hub.url}/files/net.pth" in planned.out


def test_a_source_that_changes_under_way_leaves_nothing(hub: Hub) -> None:
    plan = cs.filter(hub.file("net.pth", encoded("pth")), include=["decoder"])
    hub.file("net.pth", saved(model(44)))
    with pytest.raises(cs.CheckpointError, match="changed while it was being read"):
        cs.apply(plan, "out.safetensors")
    assert not list(Path().glob("out*"))


def test_a_plan_on_paper_is_refused_when_its_source_has_changed(hub: Hub) -> None:
    opened = cs.filter(hub.file("net.pth", encoded("pth")), include=["decoder"])
    plan = cs.Plan.from_json(opened.to_json())
    close_plan(opened)  # its connection would be closed by the garbage collection, with a warning
    cs.apply(plan, "out.safetensors")
    hub.file("net.pth", saved(model(44)))
    with pytest.raises(PlanError, match="has changed since the plan"):
        cs.apply(plan, "other.safetensors")


def test_a_bad_checksum_far_away_is_an_error(hub: Hub) -> None:
    url = hub.file("net.pth", encoded("pth"))
    plan = cs.filter(url, include=["decoder"])
    hub.fail("/files/*", faults.wrong_bytes(), times=None)
    with pytest.raises(
        cs.FormatError, match="does not match its checksum|has other sizes|has another name|data descriptor"
    ):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()
