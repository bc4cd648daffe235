"""--key: what was signed is found whole, and whatever is not as it was signed is a failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization as keys
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import ckptsurgeon as cs

Run = Callable[..., Any]
PEM = keys.Encoding.PEM


def write_key(name: str, key: Any, form: keys.PrivateFormat = keys.PrivateFormat.PKCS8, password: bytes = b"") -> None:
    lock = keys.BestAvailableEncryption(password) if password else keys.NoEncryption()
    Path(f"{name}.pem").write_bytes(key.private_bytes(PEM, form, lock))
    public = key.public_key().public_bytes(PEM, keys.PublicFormat.SubjectPublicKeyInfo)
    Path(f"{name}.pub").write_bytes(public)


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.manual_seed(0)
    Path("model").mkdir()
    torch.save({f"t{i}": torch.randn(40) for i in range(6)}, "model/pytorch_model.bin")
    Path("model/config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    write_key("mine", ed25519.Ed25519PrivateKey.generate())
    write_key("other", ed25519.Ed25519PrivateKey.generate())


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "file": ("out.safetensors", {}),
    "pth": ("out.pth", {}),
    "folder": ("out/", {}),
    "shards": ("out", {"max_shard_size": "400B"}),
    "dcp": ("out", {"to": "dcp"}),
}


def signed(kind: str, key: str = "mine.pem", **more: Any) -> str:
    output, options = KINDS[kind]
    cs.apply(cs.convert("model"), output, **options, key=key, **more)
    return output.rstrip("/")


def signature(output: str) -> Path:
    return Path(output, "model.sig") if os.path.isdir(output) else Path(f"{output}.sig")


def why(output: str, key: str = "mine.pub") -> list[str]:
    return [failure.why for failure in cs.verify(output, key=key).failed]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["mine.pub", "mine.pem"])
def test_what_was_signed_is_whole(kind: str, key: str) -> None:
    found = cs.verify(signed(kind), key=key)
    assert (found.ok, found.signed, found.notes) == (True, True, ())


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_and_no_signature_are_failures(kind: str) -> None:
    output = signed(kind)
    name = signature(output).name
    assert why(output, "other.pub") == [f"the signature {name} was not made with this key, or was changed later"]
    signature(output).unlink()
    (said,) = why(output)
    assert said.startswith("it is not signed: ")
    signature(output).mkdir()
    assert any(said.startswith(f"the signature {name} cannot be read: ") for said in why(output))
    signature(output).rmdir()
    assert cs.verify(output).signed is None


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["folder", "shards", "dcp"])
def test_every_file_of_a_folder_is_bound(kind: str) -> None:
    output = signed(kind)
    for file in sorted(Path(output).iterdir()):
        before = file.read_bytes()
        if file.name != "model.sig":
            file.write_bytes(before + b" ")
            assert any(file.name in said for said in why_or_broken(output)), file.name
            file.write_bytes(before)
    assert why(output) == []
    Path(output, "evil.py").write_text("")
    assert why(output) == ["evil.py is in the folder, but is not signed"]
    Path(output, "evil.py").unlink()
    Path(output, "sub").mkdir()
    assert why(output) == ["sub/ is in the folder, but is not signed"]


def why_or_broken(output: str) -> list[str]:
    """What failed; of an output that cannot be opened that alone, which names the file."""
    return why(output)


def test_a_file_that_was_signed_and_is_gone_or_a_link_is_a_failure() -> None:
    output = signed("folder")
    config = Path(output, "config.json")
    shutil.move(config, "elsewhere.json")
    assert "config.json was signed, but is not in the folder" in why(output)
    config.symlink_to(Path("elsewhere.json").absolute())
    assert "config.json is a link to a file outside the folder; such links are not followed" in why(output)


def test_a_forger_with_checksums_that_fit_is_found() -> None:
    from ..analysis.verify.test_verification import reseal

    output = signed("file")
    reseal(output, "t0", torch.zeros(40))
    os.rename("model", "gone")
    assert cs.verify(output).ok
    assert why(output) == [f"{output} has changed since it was signed"]


@pytest.mark.parametrize("change", ["payload", "sig", "mediaType", "text", "empty", "array"])
def test_a_signature_that_was_changed_is_a_failure(change: str) -> None:
    place = signature(signed("file"))
    bundle = json.loads(place.read_text())
    envelope = bundle["dsseEnvelope"]
    if change == "payload":
        envelope["payload"] = "A" + envelope["payload"][1:]
    elif change == "sig":
        envelope["signatures"][0]["sig"] = "AAAA" + envelope["signatures"][0]["sig"][4:]
    elif change == "mediaType":
        bundle["mediaType"] = "text/plain"
    text = {"text": "no JSON", "empty": "", "array": "[1]"}.get(change, json.dumps(bundle))
    place.write_text(text)
    (said,) = why("out.safetensors")
    assert said.startswith("the signature out.safetensors.sig ")
    assert ("was changed later" in said) is (change in ("payload", "sig"))


def test_without_the_key_of_the_signer_the_hint_is_to_get_it() -> None:
    output = signed("file")
    Path("text.pub").write_text("hello")
    write_key("rsa", rsa.generate_private_key(65537, 2048))
    for key in ("absent.pub", "text.pub", "rsa.pub"):
        with pytest.raises(cs.CheckpointError) as error:
            cs.verify(output, key=key)
        assert error.value.hint.startswith("Give the public key of the person or program that signed the output")


def test_keys_of_openssh_and_of_curves() -> None:
    write_key("ssh", ed25519.Ed25519PrivateKey.generate(), keys.PrivateFormat.OpenSSH)
    key = keys.load_ssh_private_key(Path("ssh.pem").read_bytes(), None)
    Path("ssh.line").write_bytes(key.public_key().public_bytes(keys.Encoding.OpenSSH, keys.PublicFormat.OpenSSH))
    write_key("p256", ec.generate_private_key(ec.SECP256R1()))
    for name, public in (("ssh", "ssh.line"), ("ssh", "ssh.pub"), ("p256", "p256.pub")):
        assert cs.verify(signed("file", f"{name}.pem", force=True), key=public).signed


def test_keys_that_cannot_sign_say_so_before_anything_is_written() -> None:
    write_key("locked", ed25519.Ed25519PrivateKey.generate(), password=b"secret")
    write_key("rsa", rsa.generate_private_key(65537, 2048))
    Path("text.pem").write_text("hello")
    os.mkfifo("waits.pem")
    for key, said in {
        "locked.pem": "is encrypted", "rsa.pem": "not an Ed25519 key or",
        "text.pem": "is not a key", "mine.pub": "is a public key", "absent.pem": "cannot be read", "waits.pem": "a FIFO",
    }.items():  # fmt: skip
        with pytest.raises(cs.CheckpointError, match=said):
            signed("file", key)
    assert not list(Path().glob("*out*"))


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")
def test_an_encrypted_key_of_openssh_is_an_error() -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", "locked"], check=True)
    with pytest.raises(cs.ConfigError, match="is encrypted"):
        signed("file", "locked")
    assert cs.verify(signed("file"), key="locked.pub").failed


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(cs.ConfigError, match="needs the package cryptography") as caught:
        signed("file")
    assert "ckptsurgeon[sign]" in (caught.value.hint or "")
    output = KINDS["file"][0]
    cs.apply(cs.convert("model"), output)
    assert cs.verify(output).ok
    with pytest.raises(cs.ConfigError, match="needs the package cryptography"):
        cs.verify(output, key="mine.pub")


def test_what_is_in_the_way_of_a_signature_stays() -> None:
    Path("out.safetensors.sig").write_text("a letter")
    with pytest.raises(cs.OutputError, match="exists"):
        signed("file")
    assert not Path("out.safetensors").exists()
    assert Path("out.safetensors.sig").read_text() == "a letter"


def test_a_folder_in_which_other_files_stay_is_not_signed() -> None:
    output = signed("folder")
    Path(output, "README.md").write_text("mine")
    with pytest.raises(cs.OutputError, match=r"that the signature would not cover: README\.md"):
        signed("folder", force=True)
    cs.apply(cs.convert("model"), f"{output}/", force=True)
    assert not signature(output).exists()  # it was over what is no more
    assert Path(output, "README.md").read_text() == "mine"


def test_an_output_without_a_key_says_what_becomes_of_the_earlier_signature() -> None:
    kept = (
        "the signature {} was made before this output was written, so ckpt verify --key will fail if the output differs"
    )
    gone = "the signature out/model.sig is removed: it was made for the earlier output, and this one is not signed"
    other = cs.convert("model", dtype="float16")
    out = signed("file")
    noted = [note for note in cs.apply(other, out, force=True).notes if "signature" in note]
    assert [note.startswith(kept.format("out.safetensors.sig")) for note in noted] == [True]
    assert why(out) != []
    assert not [note for note in cs.apply(other, out, force=True, key="mine.pem").notes if "signature" in note]
    signed("folder")
    assert [note for note in cs.apply(other, "out/", force=True).notes if "signature" in note] == [gone]
    signed("folder", force=True)
    assert not [note for note in cs.apply(other, "out/", force=True, key="mine.pem").notes if "signature" in note]
    receipt = cs.apply(other, "out/model.safetensors", force=True, key="mine.pem")
    assert any(note.startswith(kept.format("out/model.sig")) for note in receipt.notes)


def test_a_file_called_model_has_one_earlier_signature() -> None:
    Path("new").mkdir()
    Path("new/model").touch()  # without a file there, the output would be a folder
    plan = cs.convert("model")
    for key, number in (("mine.pem", 0), ("mine.pem", 0), (None, 1)):
        receipt = cs.apply(plan, "new/model", to="pth", force=True, key=key)
        assert len([note for note in receipt.notes if "signature new/model.sig" in note]) == number


def test_a_patch_says_it_too() -> None:
    signed("file")
    cs.apply(cs.convert("model", dtype="float16"), "new.safetensors")
    cs.make_patch("out.safetensors", "new.safetensors", "p.ckptpatch")
    Path("new.safetensors.sig").write_bytes(signature("out.safetensors").read_bytes())
    patched = cs.apply_patch("out.safetensors", "p.ckptpatch", "new.safetensors", force=True)
    assert any(note.startswith("the signature new.safetensors.sig was made before") for note in patched.notes)


def test_the_key_is_never_the_output() -> None:
    before = Path("mine.pem").read_bytes()
    with pytest.raises(cs.OutputError):
        cs.apply(cs.convert("model"), "mine.pem", to="pth", key="mine.pem", force=True)
    assert Path("mine.pem").read_bytes() == before


def test_the_command_line(ckpt: Run) -> None:
    assert ckpt("convert", "model", "-o", "out.safetensors", "--key", "mine.pem").code == 0
    done = ckpt("verify", "out.safetensors", "--key", "mine.pub")
    assert done.code == 0
    assert "PASS signature made with the given key; it covers every file" in " ".join(done.out.split())
    assert json.loads(ckpt("verify", "out.safetensors", "--key", "mine.pub", "--json").out)["signed"] is True
    done = ckpt("verify", "out.safetensors", "--key", "other.pub")
    assert done.code == 1
    assert (
        "FAIL out.safetensors the signature out.safetensors.sig was not made with this key, or was changed later"
        in " ".join(done.out.split())
    )


def test_the_same_key_gives_the_same_bytes() -> None:
    """Ed25519 signs without chance, and there is no time in it."""
    first = signature(signed("file")).read_bytes()
    assert signature(signed("file", force=True)).read_bytes() == first
