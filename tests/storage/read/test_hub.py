"""``hf://``: one commit for all that is opened, the cache before the network, a token for its host alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, SourceError
from ckptsurgeon.storage.read.base import Folder
from ckptsurgeon.storage.read.uri import open_source

from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved

VALUES = {"encoder.weight": torch.full((400, 400), 1.0), "decoder.weight": torch.full((400, 400), 2.0)}
OTHER = {"encoder.weight": torch.full((400, 400), 3.0), "decoder.weight": torch.full((400, 400), 4.0)}


@pytest.mark.long
def test_a_file_is_opened_at_the_commit_of_its_branch(hub: Hub) -> None:
    repository = hub.repository("org/net", {"sub/model.pth": saved(VALUES), "config.json": b"{}"})
    with cs.open_checkpoint("hf://org/net/sub/model.pth") as far:
        assert far.path == f"hf://org/net@{repository.main}/sub/model.pth"
        repository.commit({"sub/model.pth": saved(OTHER)})
        assert torch.equal(far.tensor("decoder.weight"), VALUES["decoder.weight"])
    assert len(hub.asked("/api/models/org/net/revision/*")) == 1
    with cs.open_checkpoint("hf://org/net@main/sub/model.pth") as far:
        assert torch.equal(far.tensor("decoder.weight"), OTHER["decoder.weight"])


def test_a_repository_is_a_folder(hub: Hub) -> None:
    repository = hub.repository("org/net", {"pytorch_model.bin": saved(VALUES), "README.md": b"#", "sub/x": b"x"})
    folder = open_source("hf://org/net")
    assert (folder.names(), folder.folders()) == (["README.md", "pytorch_model.bin"], ["sub"])  # type: ignore[union-attr]
    assert folder.uri == f"hf://org/net@{repository.main}"
    with cs.open_checkpoint("hf://org/net") as far:
        assert list(far) == list(VALUES)
    assert open_source("hf://org/net/sub").names() == ["x"]  # type: ignore[union-attr]


@pytest.mark.long
def test_a_sharded_repository_is_fetched_in_parts(hub: Hub) -> None:
    files: dict[str, bytes] = {}
    torch.save(VALUES, "x.pth")
    cs.apply(cs.convert("x.pth"), "shards", to="safetensors", max_shard_size="1MB")
    for path in Path("shards").iterdir():
        files[path.name] = path.read_bytes()
    assert len(files) > 3
    hub.repository("org/net", files)
    cs.apply(cs.filter("hf://org/net", include=["encoder"]), "out.safetensors")
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("encoder.weight"), VALUES["encoder.weight"])
    assert hub.sent < 900_000


@pytest.mark.costly
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "net.safetensors.index.json"])
def test_an_index_is_asked_for_once_whatever_its_shards_are_called(hub: Hub, index: str) -> None:
    names = {"encoder.weight": "body.safetensors", "decoder.weight": "model-00002-of-000002.safetensors"}
    names["more"] = "model-00001-of-000002.safetensors"
    files = {name: save({key: VALUES.get(key, VALUES["encoder.weight"])}) for key, name in names.items()}
    hub.repository("org/net", {**files, index: json.dumps({"weight_map": names}).encode()})
    with cs.open_checkpoint("hf://org/net") as far:
        assert list(far) == list(names)
        assert far.notes == ()
    assert len(hub.asked(f"*/{index}", "GET")) == 1
    assert len(hub.asked(f"*/{index}")) <= 2


def test_what_the_cache_has_of_a_commit_takes_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)})
    hf_hub_download("org/net", "model.pth")
    hub.forget()
    with cs.open_checkpoint(f"hf://org/net@{repository.main}/model.pth") as near:
        assert torch.equal(near.tensor("encoder.weight"), VALUES["encoder.weight"])
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for uri in ("hf://org/net/model.pth", "hf://org/net"):
        with cs.open_checkpoint(uri) as near:
            assert near.path.startswith(f"hf://org/net@{repository.main}")
    assert not hub.requests
    for uri in ("hf://org/net/other.pth", "hf://org/other", "hf://org/net@v1"):
        with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
            cs.open_checkpoint(uri)


def test_offline_files_that_the_cache_lacks_are_said_to_be_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model.pth": saved(VALUES), "tokenizer.json": b"{}", "sub/note.txt": b"x", "README.md": b"x"}
    at = f"hf://org/net@{hub.repository('org/net', files).main}"
    hf_hub_download("org/net", "model.pth")
    with cs.open_checkpoint("hf://org/net") as far:
        assert not far.notes
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    others = f"HF_HUB_OFFLINE is set: of {at} only the files in the cache are read, and others may be missing"
    for uri in ("hf://org/net", "hf://org/net/model.pth"):
        with cs.open_checkpoint(uri) as near:
            assert near.notes == (others,)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    whole = cs.fetch("hf://org/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cs.open_checkpoint("hf://org/net") as near:
        assert not near.notes
    for name in ("tokenizer.json", "sub/note.txt", "README.md"):  # the last two are not read with the weights
        Path(whole.path, name).unlink()
    with cs.open_checkpoint("hf://org/net") as near:
        assert near.notes == (f"HF_HUB_OFFLINE is set, and tokenizer.json of {at} cannot be read: not in the cache",)


def test_a_commit_that_was_fetched_whole_is_listed_without_a_request(hub: Hub) -> None:
    repository = hub.repository("org/net", {"model.pth": saved(VALUES), "sub/a/other.pth": saved(OTHER)})
    cs.fetch("hf://org/net")
    hub.forget()
    at = f"hf://org/net@{repository.main}"
    whole = open_source(at)
    assert isinstance(whole, Folder)
    assert (whole.names(), whole.folders()) == (["model.pth"], ["sub"])
    with cs.open_checkpoint(f"{at}/sub/a") as near:
        assert torch.equal(near.tensor("encoder.weight"), OTHER["encoder.weight"])
    with pytest.raises(SourceError, match="has no file sub/b"):
        open_source(f"{at}/sub/b")
    assert not hub.requests


def test_reading_leaves_the_cache_as_it_was_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that has moved on since: what was fetched is still what there is of it without a network."""
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)})
    fetched = cs.fetch("hf://org/net")
    first = repository.main
    repository.commit({"model.pth": saved(OTHER)})
    with cs.open_checkpoint("hf://org/net/model.pth") as far:
        assert torch.equal(far.tensor("encoder.weight"), OTHER["encoder.weight"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cs.fetch("hf://org/net") == fetched
    with cs.open_checkpoint("hf://org/net/model.pth") as near:
        assert near.path == f"hf://org/net@{first}/model.pth"


def test_a_branch_that_cannot_be_asked_for_is_not_read_from_the_cache_without_a_word(hub: Hub) -> None:
    hub.repository("org/net", {"model.pth": saved(VALUES)})
    cs.fetch("hf://org/net")
    hub.fail("/api/models/org/net*", faults.status(500), times=None)
    with pytest.raises(SourceError, match="the hub repository org/net at main cannot be fetched"):
        cs.open_checkpoint("hf://org/net/model.pth")


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(
    hub: Hub, other_host: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)}, token="hf_secret", cdn=other_host.url)
    stored = repository.commits[repository.main]["model.pth"]
    other_host.file(stored.sha256, stored.content)
    with cs.open_checkpoint("hf://org/net/model.pth") as far:
        assert torch.equal(far.tensor("encoder.weight"), VALUES["encoder.weight"])
    assert {one.credentials for one in hub.requests} == {"Bearer hf_secret"}
    assert other_host.requests
    assert not any(one.credentials for one in other_host.requests)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/net/other.pth", "has no file other.pth"),
        ("hf://org/net@v9/model.pth", "has no revision v9"),
        ("hf://org/nothing/model.pth", "there is no hub repository org/nothing"),
        ("hf://org/gated/model.pth", "403"),
    ],
)
def test_what_is_not_there(hub: Hub, uri: str, message: str) -> None:
    hub.repository("org/net", {"model.pth": saved(VALUES)})
    hub.repository("org/gated", {"model.pth": saved(VALUES)}, gated=True)
    with pytest.raises(SourceError, match=message):
        open_source(uri)


@pytest.mark.parametrize("uri", ["hf://", "hf://a b/c", "hf://datasets/org/net", "hf://org/net/../other"])
def test_what_is_no_address_of_a_model(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_source(uri)


def test_a_spec_with_a_revision_and_prefixes(hub: Hub, ckpt: Callable[..., object]) -> None:
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)})
    torch.save({"body.weight": torch.zeros(400, 400)}, "dst.pth")
    done = ckpt("transplant", "hf://org/net@main/model.pth:encoder:body", "dst.pth", "-o", "out.safetensors")
    assert done.code == 0, done
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("body.weight"), VALUES["encoder.weight"])
    recipe = json.loads(cs.open_checkpoint("out.safetensors").recipe or "")
    assert recipe["sources"][0]["path"] == f"hf://org/net@{repository.main}/model.pth"


def test_verify_asks_nobody_that_its_user_does_not_name(hub: Hub, ckpt: Callable[..., object]) -> None:
    repository = hub.repository("org/net", {"model.pth": saved(VALUES)})
    assert ckpt("convert", "hf://org/net/model.pth", "-o", "out.safetensors").code == 0
    repository.commit({"model.pth": saved(OTHER)})
    hub.forget()
    alone = ckpt("verify", "out.safetensors")
    assert alone.code == 0, alone
    assert not hub.requests
    assert "is remote" in alone.out + alone.err
    source = json.loads(cs.open_checkpoint("out.safetensors").recipe or "")["sources"][0]
    both = ckpt("verify", "out.safetensors", "--source", f"{source['name']}={source['path']}", "--json")
    assert both.code == 0, both
    assert not json.loads(both.out)["not_compared"]


@pytest.mark.long
def test_an_output_at_an_address_is_verified(hub: Hub, ckpt: Callable[..., object]) -> None:
    Path("model.pth").write_bytes(saved(VALUES))
    assert ckpt("convert", "model.pth", "-o", "out.safetensors").code == 0
    data = bytearray(Path("out.safetensors").read_bytes())
    url = hub.file("out.safetensors", bytes(data))
    done = ckpt("verify", url)
    assert (done.code, "verified" in done.out) == (0, True), done
    data[-1] ^= 1
    assert ckpt("verify", hub.file("flipped.safetensors", bytes(data))).code == 1
    hub.repository("org/out", {"out.safetensors": Path("out.safetensors").read_bytes()})
    assert ckpt("verify", "hf://org/out/out.safetensors").code == 0
