"""Credentials of an address, nested or signed: no verb prints them, and none writes them into any file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ckptsurgeon as cs
from ckptsurgeon.cli.application import verbs
from ckptsurgeon.storage.fetch.origin import FetchOrigin
from ckptsurgeon.storage.read.uri import shown
from ckptsurgeon.util.text import escape, without_secrets

from ...helpers.adapters import peft_folder
from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved

Run = Callable[..., Any]
VALUES = {f"{part}.{i}.weight": torch.randn(8, 8) for part in ("encoder", "decoder") for i in range(2)}
SECRET = "sesame"


@pytest.fixture(params=["chain", "web"])
def far(request: pytest.FixtureRequest, hub: Hub) -> Iterator[str]:
    """The address of a checkpoint, with all the secrets that one can have; "{name}" in it is the file's name."""
    files = {"a.pth": saved(VALUES), "b.pth": saved({key: value + 1 for key, value in VALUES.items()}), "r.yaml": b"x"}
    files["rows.txt"] = b"<blank>\na\nb\n"
    if request.param == "web":
        for name, data in files.items():
            hub.file(name, data, user=f"me:{SECRET}1", etag=f'"{name}"')
        host = hub.url.removeprefix("http://")
        yield f"http://me:{SECRET}1@{host}/files/{{name}}?token={SECRET}2&X-Amz-Signature={SECRET}3#{SECRET}4"
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/me:{SECRET}@host/all.zip", packed.getvalue())
    yield f"zip://{{name}}::memory://me:{SECRET}@host/all.zip"
    system.rm(f"/me:{SECRET}@host", recursive=True)


LINES = {
    "check": ["{a}"], "fits": ["{a}", "near.pth"], "prove": ["{a}", "{b}"],
    "inspect": ["{a}"], "diff": ["{a}", "{b}", "--values"], "match": ["{a}", "{b}"],
    "transplant": ["{a}", "near.pth", "-o", "out.safetensors"],
    "resize": ["{a}", "--set", "hidden_size=8", "-o", "out"],
    "stats": ["{a}", "-o", "out.safetensors"],
    "rename": ["{a}", "--map", "encoder=body", "-o", "out.safetensors"],
    "filter": ["{a}", "--include", "encoder", "-o", "out.safetensors"],
    "convert": ["{a}", "-o", "out", "--max-shard-size", "1KB"], "average": ["{a}", "{b}", "-o", "out.safetensors"],
    "merge": ["{a}", "{b}", "--method", "ties", "--base", "near.pth", "--param", "density=0.5", "-o", "out.safetensors"],
    "search": ["{r}", "--evaluate", "true {{model}}", "--maximize", "-o", "out.safetensors"],
    "lora merge": ["{a}", "adapter", "-o", "out.safetensors"],
    "lora extract": ["{a}", "{b}", "--rank", "2", "-o", "out"], "apply": ["plan.json", "-o", "out.safetensors"],
    "lora convert": ["adapter", "--to", "kohya", "--component", "unet", "--base", "{a}", "-o", "out.safetensors"],
    "lora resize": ["adapter", "--rank", "1", "-o", "out"],
    "lora concat": ["adapter", "adapter", "--base", "{a}", "-o", "out"],
    "verify": ["kept.safetensors", "--source", "{shown}={a}"], "scan": ["{a}"], "view": ["{a}", "{b}", "-o", "page.html"],
    "init": ["{a}", "-o", "dst.yaml"], "layouts": ["{a}"], "fetch": ["{a}", "--dir", "got"], "train": ["{r}", "--init", "{a}"],
    "patch make": ["{a}", "{b}", "-o", "d.ckptpatch"], "patch apply": ["{a}", "near.ckptpatch", "-o", "out.pth"],
    "patch show": ["{a}"], "demo-data": ["{a}"], "transcribe": ["{r}", "{a}"],  # both of which are refused
}  # fmt: skip
"""A command line of every verb; {a} and {b} are addresses."""


def test_every_verb_is_walked() -> None:
    assert set(LINES) == {verb.NAME for verb in verbs()}


def written() -> str:
    """The names and bytes of all files, here and in the cache."""
    return "".join(f"{path}\n{path.read_bytes()!r}" for path in Path().rglob("*") if path.is_file())


@pytest.mark.parametrize("form", [["-v"], ["--json"], ["-n", "--json"]], ids=" ".join)
@pytest.mark.parametrize("verb", LINES)
def test_no_verb_prints_or_writes_a_secret(far: str, verb: str, form: list[str], ckpt: Run) -> None:
    line = {*LINES[verb], *verb.split()}
    if line & {"near.pth", "near.ckptpatch"}:
        torch.save(VALUES, "near.pth")
    if "adapter" in line:
        peft_folder("adapter", {f"encoder.0.lora_{part}.weight": torch.ones(shape) for part, shape in (("A", (2, 8)), ("B", (8, 2)))}, target_modules=["encoder"])  # fmt: skip
    places = {"a": far.format(name="a.pth"), "b": far.format(name="b.pth"), "r": far.format(name="r.yaml")}
    places["shown"] = shown(places["a"])
    if "kept.safetensors" in line:
        cs.apply(cs.filter(places["a"], include=["encoder"]), "kept.safetensors")
    if verb == "apply":
        Path("plan.json").write_text(ckpt("filter", places["a"], "--include", "encoder", "-n", "--json").out)
    if verb == "patch apply":
        cs.make_patch(places["a"], "near.pth", "near.ckptpatch")
    done = ckpt(*verb.split(), *(arg.format(**places) for arg in LINES[verb]), *form)
    assert done.code != 70, done
    assert SECRET not in done.out + done.err
    assert SECRET not in written()


@pytest.mark.parametrize("form", [[], ["--json"], ["-n", "--json"]], ids=" ".join)
def test_the_notes_on_a_spec_have_no_secret(hub: Hub, form: list[str], ckpt: Run) -> None:
    torch.save(VALUES, "near.pth")
    place = hub.file("a.pth", saved(VALUES), user=f"me:{SECRET}").replace("http://", f"http://me:{SECRET}@")
    done = ckpt("transplant", f"{place}:encoder.:encoder: encoder.1,", "near.pth", "-o", "out.safetensors", *form)
    assert not done.code, done
    assert SECRET not in done.out + done.err
    assert "is read as 'encoder'" in " ".join((done.out + done.err).split())
    assert SECRET not in written()


@pytest.mark.costly
@pytest.mark.parametrize("verb", LINES)
def test_no_error_has_a_secret(hub: Hub, verb: str, ckpt: Run) -> None:
    """Addresses that lead nowhere, in all the ways that there are."""
    host = hub.url.removeprefix("http://")
    hub.fail("*/busy*", faults.redirect(f"http://me:{SECRET}@{host}/none?sig={SECRET}"), times=None)
    for where in (
        f"http://me:{SECRET}@{host}/none.pth?sig={SECRET}", f"http://me:{SECRET}@{host}/busy.pth",
        f"zip://x.pth::http://me:{SECRET}@{host}/none.zip", f"simplecache::http://me:{SECRET}@{host}/none.pth",
        f"simplecache::zip://x::s3://me:{SECRET}@bucket/x.zip?AWSAccessKeyId={SECRET}", f"http://me:{SECRET}@[::1/x.pth",
        f"http://me:{SECRET}@host:port/x.pth", f"http://me:{SECRET}/{SECRET}@h/x.pth", f"nosuch://me:{SECRET}@h/x.pth",
        f"file://me:{SECRET}@h/x.pth", f"http://me:{SECRET}@/x.pth", f"ftp://me:{SECRET}@127.0.0.1:9/x.pth",
    ):  # fmt: skip
        places = dict.fromkeys(("a", "b", "r"), where) | {"shown": "x"}
        done = ckpt(
            *verb.split(), *(arg.format(**places) for arg in LINES[verb]), *(["--json"] if "::" in where else [])
        )
        assert done.code in (1, 2, 3, 4, 5), done
        assert SECRET not in done.out + done.err, done
    assert SECRET not in written()


def test_an_address_as_an_output_or_a_target_has_no_secret(ckpt: Run) -> None:
    torch.save(VALUES, "near.pth")
    where = f"s3://me:{SECRET}@bucket/x.pth?token={SECRET}"
    for line in (
        ["convert", "near.pth", "-o", where], ["transplant", "near.pth", where, "-o", "out.safetensors"], ["verify", where],
        ["transplant", "near.pth", "near.pth", "-o", where], ["apply", where, "-o", "out.pth"], ["merge", where, "-o", "o"],
        ["filter", "near.pth", "--root", where, "-o", "o.pth"], ["rename", "near.pth", "--map-file", where, "-o", "o.pth"],
        ["view", "near.pth", "-o", where], ["inspect", "near.pth", "--include", where], ["fetch", "near.pth", "--dir", where],
    ):  # fmt: skip
        for form in ([], ["--json"]):
            done = ckpt(*line, *form)
            assert SECRET not in done.out + done.err, done


WORD = st.text("abcXYZ019-_.~!$*+,;=%", min_size=1, max_size=8)
SCHEMES = st.sampled_from(["http", "https", "s3", "ftp", "HTTP", "gs", "abfs+x"])


@given(
    schemes=st.lists(SCHEMES, min_size=1, max_size=3),
    user=WORD,
    password=st.text("abcXYZ019-_.~!$*:@/+=%?", max_size=6),
    name=st.sampled_from(["token", "sig", "X-Amz-Signature", "AWSAccessKeyId", "access_token", "any"]),
    around=st.sampled_from(["{}", "cannot read '{}'", 'url "{}" (404)', "<{}>", "see {}\nand {}", "zip://in.pth::{}"]),
)
def test_secrets_are_found_wherever_they_stand(
    schemes: list[str], user: str, password: str, name: str, around: str
) -> None:
    secret = password.replace("?", "").replace("@", "").lstrip("0123456789/") + SECRET  # what else is a port and a path
    address = "::".join(f"{one}://{user}:{secret}@host:8080/a/b.pth?{name}={SECRET}&x=1" for one in schemes)
    text = around.replace("{}", address)
    for told in (without_secrets(text), escape(text), str(cs.SourceError(text, hint=text))):
        assert SECRET not in told
        assert "host:8080/a/b.pth" in told


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/net@main/a.pth", "hf://gpt2@v1", "model.layers.?.weight", "a=b", "re:x?y=z", "https://host:80/a@v1/b.pth",
        "s3://bucket/a@b", "file.pth:::decoder", "me@host", "key=value", "zip://a::b", "http://h:8080", "x=1&y=2",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == escape(text) == text


def test_the_place_in_the_cache_does_not_hang_on_the_password() -> None:
    one, other = (FetchOrigin("store", f"zip://x::http://me:{word}@h", "a.zip") for word in ("one", "other"))
    assert one.sha256 == other.sha256
    assert one.shown == "zip://x::http://h/a.zip"


def test_a_chain_is_opened_and_its_fields_stand_behind_it(ckpt: Run) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/me:{SECRET}@host/net.pth", saved(VALUES))
    for prefix in ("simplecache::", ""):
        where = f"{prefix}memory://me:{SECRET}@host/net.pth"
        assert ckpt("inspect", where).code == 0
        Path("dst.yaml").write_text(yaml.safe_dump({"model": {"tensors": {"x.0.weight": {"shape": [8, 8]}}}}))
        done = ckpt("transplant", f"{where}:encoder:x", "dst.yaml", "-o", "out.safetensors", "--force")
        assert done.code == 0, done
        assert list(cs.open_checkpoint("out.safetensors")) == ["x.0.weight"]
    system.rm(f"/me:{SECRET}@host", recursive=True)
