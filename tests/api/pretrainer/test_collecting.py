"""Where the files of a ``Pretrainer`` come from, and what is said when they cannot be fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import ckptsurgeon as cs

from .cases import CASES, pretrainer


def test_what_only_looks_like_a_path_is_never_asked_of_the_hub(server: SimpleNamespace) -> None:
    Path("results").mkdir()
    for source in ("./saves", "/nowhere/saves", "~/saves", "results/save", "a/b/c", "saves/", "..", "C:\\saves"):
        with pytest.raises(cs.SourceError, match="there is no folder|has no file"):
            cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files(source)
    for source, why in (
        ("here.ckpt", "is a file"),
        ("s3://bucket/x", "neither a folder nor an"),
        ("a b/c", "not the name of a hub repository"),
    ):
        with pytest.raises(cs.CheckpointError, match=why):
            cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files(source)
    assert not server.asked


def test_the_nearest_folder_is_named(server: SimpleNamespace) -> None:
    with pytest.raises(cs.SourceError, match=r"no folder \./sourc/?;.*Did you mean \./source\?"):
        cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files("./sourc/")


@pytest.mark.long
def test_what_was_downloaded_is_not_asked_for_again(server: SimpleNamespace) -> None:
    for source in (f"{server.url}/web", "org/repo"):
        pretrainer()[0].collect_files(source)
        server.asked.clear()
        found = pretrainer()[0].collect_files(source, fetch_config=cs.FetchConfig(allow_network=False))
        assert found["enc"].is_file()
        assert not server.asked


@pytest.mark.long
def test_overwrite_asks_again(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files(f"{server.url}/web")
    (Path("web") / "enc.ckpt").write_bytes(Path("other/enc.ckpt").read_bytes())
    pretrainer()[0].collect_files(f"{server.url}/web", fetch_config=cs.FetchConfig(overwrite=True))
    assert Path("collected/enc.ckpt").read_bytes() == Path("other/enc.ckpt").read_bytes()


def test_a_copy_is_made_anew_when_its_original_changed(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files("source", "copy")
    Path("source/enc.ckpt").write_bytes(Path("other/enc.ckpt").read_bytes())
    pretrainer()[0].collect_files("source", "copy")
    assert Path("collected/enc.ckpt").read_bytes() == Path("other/enc.ckpt").read_bytes()


def test_a_body_of_unknown_length_is_taken_whole_or_not_at_all(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files(f"{server.url}/web/chunked")
    assert Path("collected/enc.ckpt").read_bytes() == Path("web/enc.ckpt").read_bytes()
    with pytest.raises(cs.SourceError, match="broke off"):
        pretrainer()[0].collect_files(f"{server.url}/web/broken", fetch_config=cs.FetchConfig(overwrite=True))
    assert Path("collected/enc.ckpt").read_bytes() == Path("web/enc.ckpt").read_bytes()
    assert sorted(os.listdir("collected")) == [".enc.ckpt.collected.json", "enc.ckpt"]


@pytest.mark.long
def test_an_address_that_nobody_answers_is_said(server: SimpleNamespace) -> None:
    with pytest.raises(cs.SourceError, match=r"http://127\.0\.0\.1:9/enc\.ckpt cannot be reached"):
        pretrainer()[0].collect_files("http://127.0.0.1:9")


def test_where_nothing_can_be_written_it_is_said(server: SimpleNamespace) -> None:
    Path("collected").touch()
    with pytest.raises(cs.OutputError, match=r"cannot (make the folder|write)"):
        pretrainer()[0].collect_files("source")
    with pytest.raises(cs.OutputError, match=r"cannot (make the folder|write)"):
        cs.Pretrainer("/proc/collected", {"enc": CASES.encoder()}).collect_files("source")
    Path("folder/enc.ckpt").mkdir(parents=True)
    with pytest.raises(cs.OutputError, match="is not a regular file, so it is not replaced"):
        cs.Pretrainer("folder", {"enc": CASES.encoder()}).collect_files("source")


def test_a_link_to_nowhere_and_a_link_to_a_folder_are_told_apart(server: SimpleNamespace) -> None:
    for target, said in (("nowhere", "is a link whose target does not exist"), ("b", "is not a regular file")):
        Path("a").mkdir(exist_ok=True)
        Path("b").mkdir(exist_ok=True)
        Path("a/enc.ckpt").unlink(missing_ok=True)
        Path("a/enc.ckpt").symlink_to(Path(target).absolute())
        with pytest.raises(cs.SourceError, match=said):
            pretrainer()[0].collect_files("a")


def test_all_files_are_collected_or_none(server: SimpleNamespace) -> None:
    both = cs.Pretrainer(
        "new/collected", {"enc": CASES.encoder(), "head": CASES.head()},
        {"enc": f"{server.url}/web/enc.ckpt", "head": f"{server.url}/web/short/head.ckpt"},
    )  # fmt: skip
    with pytest.raises(cs.SourceError, match="broke off"):
        both.collect_files()
    assert not Path("new").exists()
    assert not both.is_local


def test_credentials_go_to_their_host_alone_and_are_never_written(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    handler = CASES.Handler
    real = handler.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: (seen.append(self.headers["Authorization"]), real(self))[1])
    address = server.url.replace("http://", "http://user:sesame@") + "/web/enc.ckpt?key=secret"
    ours = cs.Pretrainer("collected", {"enc": CASES.encoder()}, {"enc": address})
    ours.collect_files()
    assert seen == ["Basic dXNlcjpzZXNhbWU="]
    for path in Path("collected").iterdir():
        assert not [word for word in (b"sesame", b"secret", b"dXNlcj") if word in path.read_bytes()]
    with pytest.raises(cs.SourceError) as error:
        cs.Pretrainer("c", {"enc": 1}, {"enc": address.replace("enc.ckpt", "no.ckpt")}).collect_files()
    assert "sesame" not in str(error.value)
    assert "secret" not in str(error.value)
    assert "hf_" not in repr(cs.FetchConfig(token="hf_secret"))


def test_a_corrupt_file_in_the_hub_cache_is_found_and_fetched_again(server: SimpleNamespace) -> None:
    config = cs.FetchConfig(huggingface_cache_dir="cache")
    pretrainer()[0].collect_files("org/repo", fetch_config=config)
    blob = next(Path("cache/models--org--repo/blobs").iterdir())
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    offline = cs.FetchConfig(huggingface_cache_dir="cache", allow_network=False)
    elsewhere = cs.Pretrainer("elsewhere", {"enc": CASES.encoder()})
    with pytest.raises(cs.SourceError, match=r"its digest differs\. The file was removed from the cache"):
        elsewhere.collect_files("org/repo", fetch_config=offline)
    assert not blob.exists()
    assert not Path("elsewhere").exists()
    elsewhere.collect_files("org/repo", fetch_config=config)
    assert Path("elsewhere/enc.ckpt").read_bytes() == blob.read_bytes() == good


def test_speechbrains_own_objects_are_taken_for_settings(server: SimpleNamespace) -> None:
    theirs = SimpleNamespace(
        overwrite=False, allow_updates=False, allow_network=True, token=False, revision="v2",
        huggingface_cache_dir="cache",
    )  # fmt: skip
    hub, local = SimpleNamespace(name="HUGGING_FACE"), SimpleNamespace(name="LOCAL")
    found = pretrainer()[0].collect_files((hub, "org/repo"), SimpleNamespace(name="NO_LINK"), theirs)
    assert CASES.OTHER_COMMIT in str(found["enc"])
    ours, _ = pretrainer(paths={"enc": (local, "source/enc.ckpt")})
    assert os.readlink(ours.collect_files()["enc"]) == str(Path("source/enc.ckpt").absolute())
    with pytest.raises(cs.SourceError, match=r"^there is no folder source/none\.$"):
        pretrainer()[0].collect_files((local, "source/none"))
    for settings, why in (({"local_strategy": "hardlink"}, "is unknown"), ({"fetch_config": {}}, "not a FetchConfig")):
        with pytest.raises(cs.ConfigError, match=why):
            pretrainer()[0].collect_files("source", **settings)


def test_a_local_folder_with_the_name_of_a_repository_is_not_said_to_be_missing(server: SimpleNamespace) -> None:
    Path("org/nothing").mkdir(parents=True)
    with pytest.raises(cs.SourceError, match=r"^there is no hub repository org/nothing\. A private repository"):
        pretrainer()[0].collect_files("hf://org/nothing")


def test_paths_that_are_no_text_are_said(server: SimpleNamespace) -> None:
    for path, why in ((3, "3 is not a path"), ("source/", "is a folder, not a file"), ("", "is not a path")):
        with pytest.raises(cs.ConfigError, match=why):
            pretrainer(paths={"enc": path})[0].collect_files()
    with pytest.raises(cs.ConfigError, match="loadables is"):
        cs.Pretrainer(loadables=[nn.Linear(1, 1)])  # type: ignore[arg-type]
    assert pretrainer(paths={"enc": Path("source/enc.ckpt")})[0].collect_files()["enc"].exists()


def test_the_second_collection_goes_back_to_where_the_first_one_was_asked_from(server: SimpleNamespace) -> None:
    ours, module = pretrainer()
    ours.collect_files("source")
    ours.collect_files("other")
    ours.load_collected()
    assert CASES.file_of(CASES.values_of(module), Path.cwd()) == "other/enc.ckpt"
    assert ours.is_local == ["enc"]


@pytest.mark.long
def test_collecting_loads_neither_torch_nor_the_hub_s_client(server: SimpleNamespace) -> None:
    code = (
        "import sys, ckptsurgeon as cs\n"
        "cs.Pretrainer('collected', {'enc': object()}).collect_files('source')\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & sys.modules.keys(), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Path("collected/enc.ckpt").is_symlink()
