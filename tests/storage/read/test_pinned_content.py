"""Plans and recipes say which content of an address they are of: its commit, or its strong ETag."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from huggingface_hub import hf_hub_download

import ckptsurgeon as cs

from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved

VALUES = {"encoder.weight": torch.full((40, 40), 1.0), "decoder.weight": torch.full((40, 40), 2.0)}


def safetensors(value: float) -> bytes:
    """Files of one header and one size, whatever the value."""
    from safetensors.torch import save

    return bytes(save({"encoder.weight": torch.full((40, 40), value)}))


def validators(data: dict[str, object]) -> list[str | None]:
    sources = data["sources"]
    assert isinstance(sources, list)
    return [file.get("validator") for source in sources for file in source["files"]]


def test_a_plan_and_a_recipe_have_the_etag(hub: Hub) -> None:
    url = hub.file("net.safetensors", safetensors(1))
    (etag,) = {file.etag for file in hub.files.values()}
    plan = cs.filter(url, include=["encoder"])
    assert validators(plan.to_json()) == [etag]
    cs.apply(plan, "out.safetensors")
    assert validators(json.loads(cs.open_checkpoint("out.safetensors").recipe or "")) == [etag]
    assert cs.Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_a_plan_on_paper_is_refused_where_only_values_have_changed(hub: Hub) -> None:
    """The header and the size are the same, and so is all that is read of the file when it is opened."""
    text = cs.filter(hub.file("net.safetensors", safetensors(1)), include=["encoder"]).to_json()
    cs.apply(cs.Plan.from_json(text), "out.safetensors")
    hub.file("net.safetensors", safetensors(2))
    with pytest.raises(cs.PlanError, match="net.safetensors has changed since the plan") as error:
        cs.apply(cs.Plan.from_json(text), "other.safetensors")
    assert error.value.exit_code == 4


@pytest.mark.parametrize("etag", ['W/"weak"', f'"{"x" * 300}"', None])
def test_what_tells_nothing_is_not_recorded(hub: Hub, etag: str | None) -> None:
    url = hub.file("net.safetensors", safetensors(1), etag=etag)
    if etag is None:
        hub.fail("/files/*", faults.missing_header("ETag"), times=None)
    text = cs.filter(url, include=["encoder"]).to_json()
    assert validators(text) == [None]
    cs.apply(cs.Plan.from_json(text), "out.safetensors")


def test_of_the_hub_it_is_the_commit_from_there_and_from_the_cache(hub: Hub) -> None:
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)})
    first = repository.main
    text = cs.filter("hf://org/net/model.pth", include=["encoder"]).to_json()
    assert validators(text) == [first]
    repository.commit({"model.pth": saved({key: value + 1 for key, value in VALUES.items()})})
    hf_hub_download("org/net", "model.pth", revision=first)
    hub.forget()
    cs.apply(cs.Plan.from_json(text), "out.safetensors")
    assert not hub.requests
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("encoder.weight"), VALUES["encoder.weight"])


def test_a_hub_without_etags_is_read_at_its_commit(hub: Hub) -> None:
    hub.repository("org/net", {"model.pth": saved(VALUES)})
    hub.fail("/org/net/resolve/*", faults.missing_header("ETag"), times=None)
    with cs.open_checkpoint("hf://org/net/model.pth") as far:
        assert torch.equal(far.tensor("decoder.weight"), VALUES["decoder.weight"])


def test_a_file_on_this_machine_has_none() -> None:
    torch.save(VALUES, "x.pth")
    assert "validator" not in json.dumps(cs.filter("x.pth", include=["encoder"]).to_json())


@pytest.mark.costly
@pytest.mark.parametrize("value", [3, ["x"], None])
def test_a_plan_with_something_else_there_is_malformed(hub: Hub, value: object) -> None:
    data = cs.filter(hub.file("net.safetensors", safetensors(1)), include=["encoder"]).to_json()
    data["sources"][0]["files"][0]["validator"] = value
    with pytest.raises(cs.ConfigError, match="the plan (is malformed|cannot be read)"):
        cs.Plan.from_json(data)


def test_verify_takes_the_same_content_from_another_server(
    hub: Hub, other_host: Hub, ckpt: Callable[..., object]
) -> None:
    cs.apply(cs.filter(hub.file("net.safetensors", safetensors(1)), include=["encoder"]), "out.safetensors")
    other = other_host.file("net.safetensors", safetensors(1), etag='"another"')
    source = json.loads(cs.open_checkpoint("out.safetensors").recipe or "")["sources"][0]["name"]
    done = ckpt("verify", "out.safetensors", "--source", f"{source}={other}", "--json")
    assert done.code == 0, done
    assert not json.loads(done.out)["not_compared"]
