"""``Pretrainer``: held against what SpeechBrain's own class did with the same files, and where ours is better, how."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
GOLDEN = FIXTURES / "golden" / "speechbrain"
THEIRS = json.loads((GOLDEN / "pretrainer.json").read_text())


def _cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speechbrain_cases", FIXTURES / "speechbrain_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speechbrain_cases"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CASES = _cases()
HUB = "cache/models--org--repo/snapshots/"


def unused(report: cs.Pretrained, _: list[str]) -> int:
    missing = [step for plan in report.plans.values() for step in plan.steps if step.reason == "missing"]
    return len(missing) + sum(len(plan.unexpected) for plan in report.plans.values())


OURS = CASES.Toolkit(cs.Pretrainer, cs.FetchConfig, str, "ckptsurgeon.api.pretrained", unused)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Files to load in the working directory, and a server that also plays the hub."""
    from huggingface_hub import constants

    CASES.make_files(tmp_path)
    with CASES.served(tmp_path) as (url, asked):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield SimpleNamespace(url=url, asked=asked)


def observed(name: str, server: SimpleNamespace) -> dict[str, Any]:
    seen: dict[str, Any] = CASES.run(name, OURS, Path.cwd(), server.url, server.asked)
    return seen


REFUSED_AT_COLLECTION = {
    "neither path nor default source": ("ConfigError", "enc has no path, and there is no default source."),
    "an address, nowhere to collect": ("ConfigError", "there is no folder to collect it in. Set collect_in."),
    "mistyped folder": ("SourceError", "there is no hub repository saves, and no folder saves here."),
    "mistyped deep folder": ("SourceError", "there is no hub repository saves/2024, and no folder saves/2024 here."),
    "mistyped folder in one that exists": ("SourceError", "there is no folder source/saves; it looks like a path"),
    "file that is not in the folder": (
        "SourceError", "source has no file encoder.ckpt. Did you mean enc.ckpt?",
    ),
    "an address that is not there": ("SourceError", "URL/web/nothing.ckpt cannot be had: 404 Not Found."),
    "a short body": ("SourceError", "URL/web/short/enc.ckpt broke off: 18 of 5000 bytes came."),
    "a short body over an older file": ("SourceError", "URL/web/short/enc.ckpt broke off: 18 of 5000 bytes came."),
    "no network allowed": ("SourceError", "URL/web/enc.ckpt is not in ROOT/collected/enc.ckpt yet, and allow_network"),
    "hub, no such repository": ("SourceError", "there is no hub repository org/nothing, and no folder org/nothing here."),
    "hub, no such file": ("SourceError", "the hub repository org/repo has no file encoder.ckpt."),
    "hub, no such revision": ("SourceError", "the hub repository org/repo has no revision v3."),
    "condition a text": ("ConfigError", "the condition of head is 'False'. It must be True or False"),
    "a path of no loadable": ("ConfigError", "paths names 'encc', which is no loadable. Did you mean enc?"),
    "a hook of no loadable": ("ConfigError", "custom_hooks names 'encc', which is no loadable. Did you mean enc?"),
    "a condition of no loadable": ("ConfigError", "conditions names 'encc', which is no loadable. Did you mean enc?"),
}  # fmt: skip
REFUSED_AT_LOADING = {
    "never collected": ("ConfigError", "enc was never collected. Call collect_files first, or set collect_in."),
    "size mismatch": ("PlanError", "head: shape mismatch: weight is (7, 3) in head.ckpt, (5, 3) in Linear"),
    "size mismatch of one layer": ("PlanError", "enc: shape mismatch: 2.weight is (2, 4) in enc.ckpt, (3, 4) in Sequ"),
    "size mismatch of the second": ("PlanError", "head: shape mismatch: weight is (7, 3)"),
    "keys of another module": ("PlanError", "enc: nothing would be loaded: all 4 tensors stay"),
    "an object nobody knows": ("ConfigError", "labels is a dict, and nothing says how a file is loaded into it."),
    "no checkpoint": ("FormatError", "enc: ROOT/collected/enc.ckpt is not a checkpoint"),
}
BETTER: dict[str, dict[str, Any]] = {
    "collect_in with missing parents": {
        "collect": "ok", "files": {"a/b/c/enc.ckpt": "link to source/enc.ckpt"}, "from": {"enc": "source/enc.ckpt"},
    },
    "stale link": {"files": {"collected/enc.ckpt": "link to other/enc.ckpt"}, "from": {"enc": "other/enc.ckpt"}},
    "stale download": {
        "files": {"collected/enc.ckpt": "copy of web/two/enc.ckpt"}, "from": {"enc": "web/two/enc.ckpt"},
    },
    "stale download, then a folder": {
        "files": {"collected/enc.ckpt": "link to source/enc.ckpt"}, "from": {"enc": "source/enc.ckpt"},
    },
    "hub, another revision than before": {
        "files": {"collected/enc.ckpt": f"link to {HUB}{CASES.OTHER_COMMIT}/enc.ckpt"},
        "from": {"enc": "hub/org/repo/v2/enc.ckpt"},
    },
    "hub, not linked": {
        "load": "ok", "paths": {"enc": f"{HUB}{CASES.COMMIT}/enc.ckpt"}, "from": {"enc": "hub/org/repo/main/enc.ckpt"},
    },
    "module. in front of every key": {"changed": {"enc": "4 of 4"}, "from": {"enc": "source/wrapped.ckpt"}},
}  # fmt: skip
"""Where theirs is silence, or breaks off for no reason, what comes of it here instead."""
SAME = [name for name in THEIRS if name not in {*REFUSED_AT_COLLECTION, *REFUSED_AT_LOADING, *BETTER}]


def test_every_case_was_recorded() -> None:
    assert THEIRS.keys() == CASES.CASES.keys()
    assert len(SAME) >= 24


@pytest.mark.parametrize("name", SAME)
def test_it_does_what_speechbrain_does(name: str, server: SimpleNamespace) -> None:
    seen, theirs = observed(name, server), THEIRS[name]
    assert (theirs["collect"], theirs["load"]) == ("ok", "ok")
    assert seen == theirs


@pytest.mark.parametrize("name", BETTER)
def test_it_loads_what_speechbrain_does_not(name: str, server: SimpleNamespace) -> None:
    seen, theirs = observed(name, server), THEIRS[name]
    assert (seen["collect"], seen["load"]) == ("ok", "ok")
    for what, value in BETTER[name].items():
        assert seen[what] == value
        assert theirs[what] != value
    assert seen["unused or missing"] == 0


@pytest.mark.parametrize("name", REFUSED_AT_COLLECTION)
def test_what_cannot_be_collected_is_said_and_nothing_is_written(name: str, server: SimpleNamespace) -> None:
    kind, text = REFUSED_AT_COLLECTION[name]
    seen = observed(name, server)
    assert (seen["collect"], seen["load"]) == (kind, "not tried")
    assert text in seen["said"]
    before = {"a short body over an older file": {"collected/enc.ckpt": "copy of web/enc.ckpt"}}
    assert seen["files"] == before.get(name, {})
    assert Path("collected").exists() == (name in before)
    assert not [path for path in Path.cwd().rglob(".*") if ".ckpt-tmp" in path.name]
    assert {count.partition(" ")[0] for count in seen["changed"].values()} == {"0"}
    assert seen["paths"] == CASES.CASES[name].paths


@pytest.mark.parametrize("name", REFUSED_AT_LOADING)
def test_what_cannot_be_loaded_is_said_and_no_module_is_touched(name: str, server: SimpleNamespace) -> None:
    kind, text = REFUSED_AT_LOADING[name]
    seen = observed(name, server)
    assert (seen["collect"], seen["load"]) == ("ok", kind)
    assert text in seen["said"]
    assert {count.partition(" ")[0] for count in seen["changed"].values()} == {"0"}


def test_speechbrain_leaves_modules_half_loaded() -> None:
    """What the rule above is for."""
    assert THEIRS["size mismatch of one layer"]["changed"] == {"enc": "2 of 4"}
    assert THEIRS["size mismatch of the second"]["changed"] == {"enc": "4 of 4", "head": "0 of 2"}
    assert THEIRS["module. in front of every key"]["changed"] == {"enc": "0 of 4"}
    assert THEIRS["a short body over an older file"]["files"] == {"collected/enc.ckpt": "copy of nothing whole"}


def test_what_only_looks_like_a_path_is_never_asked_of_the_hub(server: SimpleNamespace) -> None:
    Path("results").mkdir()
    for source in ("./saves", "/nowhere/saves", "~/saves", "results/save", "a/b/c", "saves/", "..", "C:\\saves"):
        with pytest.raises(cs.SourceError, match="there is no folder|has no file"):
            cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files(source)
    for source, why in (
        ("here.ckpt", "is a file"),
        ("s3://bucket/x", "neither a folder nor an"),
        ("a b/c", "no name of"),
    ):
        with pytest.raises(cs.CheckpointError, match=why):
            cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files(source)
    assert not server.asked


def test_the_nearest_folder_is_named(server: SimpleNamespace) -> None:
    with pytest.raises(cs.SourceError, match=r"no folder \./sourc/?;.*Did you mean \./source\?"):
        cs.Pretrainer("collected", {"enc": nn.Linear(1, 1)}).collect_files("./sourc/")


def pretrainer(source: str = "source", **given: Any) -> tuple[cs.Pretrainer, nn.Module]:
    module = CASES.encoder()
    return cs.Pretrainer("collected", {"enc": module}, **given), module


def test_what_was_downloaded_is_not_asked_for_again(server: SimpleNamespace) -> None:
    for source in (f"{server.url}/web", "org/repo"):
        pretrainer()[0].collect_files(source)
        server.asked.clear()
        found = pretrainer()[0].collect_files(source, fetch_config=cs.FetchConfig(allow_network=False))
        assert found["enc"].is_file()
        assert not server.asked


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


@pytest.mark.parametrize("strategy", ["symlink", "copy"])
def test_a_file_of_unknown_origin_is_never_replaced_unasked(strategy: str, server: SimpleNamespace) -> None:
    Path("collected").mkdir()
    mine = Path("collected/enc.ckpt")
    mine.write_bytes(Path("other/enc.ckpt").read_bytes())
    for source in ("source", f"{server.url}/web", "org/repo"):
        with pytest.raises(cs.OutputError, match=r"nothing says where it is from\. FetchConfig\(overwrite=True\)"):
            pretrainer()[0].collect_files(source, strategy)
        assert mine.read_bytes() == Path("other/enc.ckpt").read_bytes()
        assert os.listdir("collected") == ["enc.ckpt"]
    pretrainer()[0].collect_files("other", strategy)  # the same bytes: nothing is lost
    pretrainer()[0].collect_files("source", strategy, cs.FetchConfig(overwrite=True))
    assert mine.read_bytes() == Path("source/enc.ckpt").read_bytes()


def test_a_file_that_changed_behind_is_neither_loaded_nor_replaced(server: SimpleNamespace) -> None:
    ours, module = pretrainer()
    ours.collect_files(f"{server.url}/web")
    Path("collected/enc.ckpt").write_bytes(Path("other/enc.ckpt").read_bytes())
    before = CASES.values_of(module)
    with pytest.raises(cs.PlanError, match="has changed since it was collected from http://127.0.0.1"):
        ours.load_collected()
    with pytest.raises(cs.OutputError, match="it has changed since it was collected"):
        pretrainer()[0].collect_files("source")
    assert CASES.count_changed(before, CASES.values_of(module)) == "0 of 4"


def test_a_file_that_was_only_touched_is_the_same(server: SimpleNamespace) -> None:
    ours, _ = pretrainer()
    ours.collect_files(f"{server.url}/web")
    os.utime("collected/enc.ckpt", (1, 1))
    assert ours.load_collected().counts == {"copied": 4}


def test_a_body_of_unknown_length_is_taken_whole_or_not_at_all(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files(f"{server.url}/web/chunked")
    assert Path("collected/enc.ckpt").read_bytes() == Path("web/enc.ckpt").read_bytes()
    with pytest.raises(cs.SourceError, match="broke off"):
        pretrainer()[0].collect_files(f"{server.url}/web/broken", fetch_config=cs.FetchConfig(overwrite=True))
    assert Path("collected/enc.ckpt").read_bytes() == Path("web/enc.ckpt").read_bytes()
    assert sorted(os.listdir("collected")) == [".enc.ckpt.collected.json", "enc.ckpt"]


def test_an_address_that_nobody_answers_is_said(server: SimpleNamespace) -> None:
    with pytest.raises(cs.SourceError, match=r"http://127\.0\.0\.1:9/enc\.ckpt cannot be reached"):
        pretrainer()[0].collect_files("http://127.0.0.1:9")


def test_where_nothing_can_be_written_it_is_said(server: SimpleNamespace) -> None:
    Path("collected").touch()
    with pytest.raises(cs.OutputError, match=r"cannot (collect into|write)"):
        pretrainer()[0].collect_files("source")
    with pytest.raises(cs.OutputError, match=r"cannot (collect into|write)"):
        cs.Pretrainer("/proc/collected", {"enc": CASES.encoder()}).collect_files("source")
    Path("folder/enc.ckpt").mkdir(parents=True)
    with pytest.raises(cs.OutputError, match="is no regular file, and is not replaced"):
        cs.Pretrainer("folder", {"enc": CASES.encoder()}).collect_files("source")


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


def test_a_redirect_to_another_host_gets_no_credentials(server: SimpleNamespace, tmp_path: Path) -> None:
    from ckptsurgeon.fetching.download import _request
    from ckptsurgeon.fetching.origin import Origin

    request = _request(Origin("url", "http://user:pw@host/a", "b.ckpt"))
    assert request.full_url == "http://host/a/b.ckpt"
    assert "Authorization" not in request.headers  # those are what a redirect passes on
    assert request.unredirected_hdrs["Authorization"].startswith("Basic ")


def test_a_corrupt_file_in_the_hub_cache_is_found(server: SimpleNamespace) -> None:
    config = cs.FetchConfig(huggingface_cache_dir="cache")
    pretrainer()[0].collect_files("org/repo", fetch_config=config)
    blob = next(Path("cache/models--org--repo/blobs").iterdir())
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(cs.SourceError, match="its SHA-256 differs"):
        cs.Pretrainer("elsewhere", {"enc": CASES.encoder()}).collect_files("org/repo", fetch_config=config)


def test_the_record_says_the_commit_of_the_hub(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files("org/repo", fetch_config=cs.FetchConfig(revision="v2", huggingface_cache_dir="cache"))
    record = json.loads(Path("collected/.enc.ckpt.collected.json").read_text())
    assert (record["kind"], record["source"], record["commit"]) == ("hub", "org/repo/enc.ckpt", CASES.OTHER_COMMIT)


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
    for settings, why in (({"local_strategy": "hardlink"}, "is unknown"), ({"fetch_config": {}}, "no FetchConfig")):
        with pytest.raises(cs.ConfigError, match=why):
            pretrainer()[0].collect_files("source", **settings)


def test_paths_that_are_no_text_are_said(server: SimpleNamespace) -> None:
    for path, why in ((3, "3 is not a path"), ("source/", "names a folder, not a file"), ("", "is not a path")):
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


def test_a_broken_record_is_no_record(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files(f"{server.url}/web")
    for text in ("", "[]", "{}", '{"kind": 3}', "nonsense"):
        Path("collected/.enc.ckpt.collected.json").write_text(text)
        server.asked.clear()
        pretrainer()[0].collect_files(f"{server.url}/web")
        assert server.asked == ["GET /web/enc.ckpt"]


def test_the_report_says_what_became_of_each(server: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    enc, labels = CASES.encoder(), dict[str, Any]()
    ours = cs.Pretrainer(
        "collected", {"enc": enc, "labels": labels, "head": CASES.head()},
        {"enc": "source/partial.ckpt", "labels": "source/labels.txt"}, {"labels": CASES.read_lines}, {"head": lambda: False},
    )  # fmt: skip
    ours.collect_files("source")
    report = ours.load_collected()
    assert report.counts == {"copied": 1, "kept": 3}
    assert (report.hooked, report.skipped) == (("labels",), ("head",))
    assert report.summary().splitlines() == [
        "enc: 1 copied, 3 kept of 4 tensors; 1 source key not used",
        "labels: loaded by its hook",
        "head: skipped, its condition is false",
    ]
    assert "enc: 3 tensors kept, not in the file: 0.bias, 2.weight, 2.bias" in report.notes
    assert [record.message for record in caplog.records if record.name.startswith("ckptsurgeon")] == [
        "enc: 3 tensors kept, not in the file: 0.bias, 2.weight, 2.bias",
        "enc: 1 key not used: extra.bias",
    ]


def test_options_are_those_of_load_into_by_name(server: SimpleNamespace) -> None:
    head = CASES.head()
    before = head.weight.detach().clone()
    ours = cs.Pretrainer("collected", {"head": head}, {"head": "source/wide.ckpt"})
    ours.collect_files()
    assert ours.load_collected({"head": {"on_mismatch": "slice"}}).counts == {"resized": 2}
    assert torch.equal(head.weight, torch.load("source/wide.ckpt")["weight"][:5])
    assert not torch.equal(head.weight, before)
    for options, why in (
        ({"hed": {}}, "options name 'hed'"),
        ({"head": {"on_mistake": "init"}}, "no option 'on_mistake'"),
        ({"head": "init"}, "options is"),
    ):
        with pytest.raises(cs.ConfigError, match=why):
            ours.load_collected(options)  # type: ignore[arg-type]


def test_hooks_are_called_after_everything_was_checked_and_before_anything_is_written(server: SimpleNamespace) -> None:
    enc, head = CASES.encoder(), CASES.head()
    before = CASES.values_of(enc)
    calls = []

    def fails(thing: Any, path: Any) -> None:
        calls.append(CASES.count_changed(before, CASES.values_of(enc)))
        raise OSError("the labels are gone")

    ours = cs.Pretrainer(
        "collected", {"enc": enc, "head": head, "labels": {}}, {"head": "source/wide.ckpt"}, {"labels": fails}
    )
    ours.add_paths({"labels": "source/labels.txt"})
    ours.collect_files("source")
    with pytest.raises(cs.PlanError, match="head: shape mismatch"):
        ours.load_collected()
    assert not calls
    with pytest.raises(OSError, match="the labels are gone") as error:
        ours.load_collected({"head": {"on_mismatch": "slice"}})
    assert calls == ["0 of 4"]
    assert "in the hook of 'labels'" in error.value.__notes__[0]
    assert CASES.count_changed(before, CASES.values_of(enc)) == "0 of 4"


def test_a_hook_that_is_no_function_is_said(server: SimpleNamespace) -> None:
    ours, _ = pretrainer(custom_hooks={"enc": "load"})
    ours.collect_files("source")
    with pytest.raises(cs.ConfigError, match="the custom hook of enc is a str, not a function"):
        ours.load_collected()


class Labels:
    """An object with a loader of its own, as SpeechBrain's label encoders have."""

    def __init__(self) -> None:
        self.got: list[Any] = []


def test_hooks_that_a_class_registered_with_speechbrain_are_found(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Marked(nn.Linear):
        pass

    checkpoints = ModuleType("speechbrain.utils.checkpoints")
    checkpoints.DEFAULT_LOAD_HOOKS = {Labels: lambda thing, path, end: thing.got.append((path, end))}  # type: ignore[attr-defined]
    checkpoints.DEFAULT_TRANSFER_HOOKS = {  # type: ignore[attr-defined]
        nn.Module: lambda thing, path: pytest.fail("the planner loads modules"),
        Marked: lambda thing, path: setattr(thing, "got", path),
    }
    monkeypatch.setitem(sys.modules, "speechbrain.utils.checkpoints", checkpoints)
    labels, marked, head = type("Derived", (Labels,), {})(), Marked(3, 5), CASES.head()
    ours = cs.Pretrainer("collected", {"labels": labels, "marked": marked, "head": head})
    ours.add_paths({"labels": "source/labels.txt", "marked": "source/head.ckpt"})
    paths = ours.collect_files("source")
    report = ours.load_collected()
    assert labels.got == [(str(paths["labels"]), False)]
    assert marked.got == str(paths["marked"])
    assert report.hooked == ("labels", "marked")
    assert list(report.plans) == ["head"]


def test_a_sentencepiece_model_is_loaded_as_such(server: SimpleNamespace) -> None:
    import sentencepiece

    thing = sentencepiece.SentencePieceProcessor()
    ours = cs.Pretrainer("collected", {"spm": thing}, {"spm": "source/labels.txt"})
    ours.collect_files()
    with pytest.raises((OSError, RuntimeError)):
        ours.load_collected()  # no such model; but it was asked to load it


@pytest.mark.parametrize("method", ["collect_files", "load_collected", "set_collect_in", "add_loadables", "add_paths",
                                    "add_custom_hooks", "add_conditions", "is_loadable", "split_path"])  # fmt: skip
def test_it_has_the_methods_of_speechbrains(method: str) -> None:
    assert callable(getattr(cs.Pretrainer, method))


def test_paths_are_split_as_speechbrain_splits_them() -> None:
    split: Callable[[Any], Any] = cs.Pretrainer.split_path
    assert split("sb/asr-crdnn-libri/lm.ckpt") == ("sb/asr-crdnn-libri", "lm.ckpt")
    assert split("lm.ckpt") == ("./", "lm.ckpt")
    assert split("https://host/a/lm.ckpt") == ("https://host/a", "lm.ckpt")
    assert split(("HUGGING_FACE", "a/b/lm.ckpt")) == (("HUGGING_FACE", "a/b"), "lm.ckpt")


@pytest.mark.parametrize("name", ["ecapa", "ecapa classifier", "crdnn"])
def test_real_layouts_load_whole(name: str) -> None:
    rows = json.loads((GOLDEN / "layouts.json").read_text())[name]
    if name == "crdnn":
        assert ["RNN.rnn.0.drop_masks", [16000, 16], "float32"] in rows
    state = CASES.from_layout(rows)
    torch.save(state, "net.ckpt")
    network = CASES.module_of(rows)
    ours = cs.Pretrainer("collected", {"net": network})
    ours.collect_files(".")
    assert ours.load_collected().counts == {"copied": len(rows)}
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_python_of_the_page_does_what_it_says() -> None:
    """Every block of docs/howto/speechbrain.md that is ours, in order; the first one makes the files."""
    text = (FIXTURES.parent / "docs/howto/speechbrain.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own page
    assert len(blocks) == 3
    assert torch.equal(names["model"].weight, torch.load("pretrained/embedding_model.ckpt")["weight"])
    assert names["report"].counts == {"copied": 4}


def test_collecting_loads_neither_torch_nor_the_hub_s_client(server: SimpleNamespace) -> None:
    code = (
        "import sys, ckptsurgeon as cs\n"
        "cs.Pretrainer('collected', {'enc': object()}).collect_files('source')\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & sys.modules.keys(), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Path("collected/enc.ckpt").is_symlink()
