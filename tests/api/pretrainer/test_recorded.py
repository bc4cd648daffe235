"""``Pretrainer``, held against what SpeechBrain's own class did with the same files, and where ours is better, how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ckptsurgeon as cs

from .cases import CASES, GOLDEN

THEIRS = json.loads((GOLDEN / "pretrainer.json").read_text())


HUB = "cache/models--org--repo/snapshots/"


def unused(report: cs.Pretrained, _: list[str]) -> int:
    missing = [step for plan in report.plans.values() for step in plan.steps if step.reason == "missing"]
    return len(missing) + sum(len(plan.unexpected) for plan in report.plans.values())


OURS = CASES.Toolkit(cs.Pretrainer, cs.FetchConfig, str, "ckptsurgeon.api.pretrainer.loading", unused)


def observed(name: str, server: SimpleNamespace) -> dict[str, Any]:
    seen: dict[str, Any] = CASES.run(name, OURS, Path.cwd(), server.url, server.asked)
    return seen


REFUSED_AT_COLLECTION = {
    "neither path nor default source": ("ConfigError", "enc has no path, and no default source is given."),
    "an address, nowhere to collect": ("ConfigError", "no folder is given to collect it in. Set collect_in to a folder."),
    "mistyped folder": ("SourceError", "there is no hub repository saves and no local folder saves."),
    "mistyped deep folder": ("SourceError", "there is no hub repository saves/2024 and no local folder saves/2024."),
    "mistyped folder in one that exists": ("SourceError", "there is no folder source/saves; this looks like a path"),
    "file that is not in the folder": (
        "SourceError", "source has no file encoder.ckpt. Did you mean enc.ckpt?",
    ),
    "an address that is not there": ("SourceError", "URL/web/nothing.ckpt cannot be fetched: 404 Not Found."),
    "a short body": ("SourceError", "URL/web/short/enc.ckpt broke off: 18 of 5000 bytes were received."),
    "a short body over an older file": ("SourceError", "URL/web/short/enc.ckpt broke off: 18 of 5000 bytes were received."),
    "no network allowed": ("SourceError", "the file URL/web/enc.ckpt was not fetched to ROOT/collected/enc.ckpt yet, and allow_network"),
    "hub, no such repository": ("SourceError", "there is no hub repository org/nothing and no local folder org/nothing."),
    "hub, no such file": ("SourceError", "has no file encoder.ckpt."),
    "hub, no such revision": ("SourceError", "the hub repository org/repo has no revision v3."),
    "condition a text": ("ConfigError", "the condition of head is 'False', which is not a bool. Give True or False"),
    "a path of no loadable": ("ConfigError", "paths has an entry for 'encc', which is not in loadables. Did you mean enc?"),
    "a hook of no loadable": ("ConfigError", "custom_hooks has an entry for 'encc', which is not in loadables. Did you mean enc?"),
    "a condition of no loadable": ("ConfigError", "conditions has an entry for 'encc', which is not in loadables. Did you mean enc?"),
}  # fmt: skip
REFUSED_AT_LOADING = {
    "never collected": ("ConfigError", "enc was never collected. Call collect_files first, or set collect_in."),
    "size mismatch": ("PlanError", "head: shape mismatch: weight is (7, 3) in head.ckpt, (5, 3) in Linear"),
    "size mismatch of one layer": ("PlanError", "enc: shape mismatch: 2.weight is (2, 4) in enc.ckpt, (3, 4) in Sequ"),
    "size mismatch of the second": ("PlanError", "head: shape mismatch: weight is (7, 3)"),
    "keys of another module": ("PlanError", "enc: nothing would be loaded: none of the 4 tensors"),
    "an object nobody knows": ("ConfigError", "there is no hook to load a file into labels, an object of type dict."),
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


@pytest.mark.costly
@pytest.mark.parametrize("name", SAME)
def test_it_does_what_speechbrain_does(name: str, server: SimpleNamespace) -> None:
    seen, theirs = observed(name, server), THEIRS[name]
    assert (theirs["collect"], theirs["load"]) == ("ok", "ok")
    assert seen == theirs


@pytest.mark.costly
@pytest.mark.parametrize("name", BETTER)
def test_it_loads_what_speechbrain_does_not(name: str, server: SimpleNamespace) -> None:
    seen, theirs = observed(name, server), THEIRS[name]
    assert (seen["collect"], seen["load"]) == ("ok", "ok")
    for what, value in BETTER[name].items():
        assert seen[what] == value
        assert theirs[what] != value
    assert seen["unused or missing"] == 0


@pytest.mark.costly
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


@pytest.mark.costly
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
