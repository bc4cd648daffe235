"""Code that only data names is not run: beside a checkpoint, in a recipe or a plan that is looked at; and what ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ckptsurgeon as cs

from ..promises.clauses import NEVER_RUN, clause

Run = Callable[..., Any]
SINGS = "from pathlib import Path\nPath('canary').touch()\n"
NET = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
CANARY = Path("canary")
PLAIN = {"tensors": {"weight": {"shape": [2, 2], "init": "zeros"}, "bias": {"shape": [2], "init": "zeros"}}}
NAMED: dict[str, tuple[str, Any, Any]] = {
    "_target_": ("evil.Net", {"_target_": "evil.Net"}, None),
    "_target_, deep": ("evil.Net", {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "evil.Net"}]}, None),
    "a task": ("evil.py:Task", PLAIN, {"task": "evil.py:Task"}),
    "a dataset": ("evil.py:make", PLAIN, {"data": {"train": "evil.py:make"}}),
    "a dataset by _target_": ("evil.make", PLAIN, {"data": {"train": {"_target_": "evil.make"}}}),
    "a list of datasets": ("evil.make", PLAIN, {"data": {"dev": ["a.csv", {"x": {"_target_": "evil.make"}}]}}),
    "hyperpyyaml": ("!apply:evil.make", {"speechbrain": "hyper.yaml"}, None),
    "ESPnet": ("ESPnet", {"espnet": "espnet.yaml"}, None),
}


def write(model: Any, train: Any = None, path: str = "dl/c.yaml") -> None:
    Path("dl").mkdir(exist_ok=True)
    Path(path).write_text(yaml.safe_dump({"model": model, **({"train": train} if train else {})}))


def source() -> str:
    save_file({"weight": torch.ones(2, 2)}, "src.safetensors")
    return "src.safetensors"


def flat(text: str) -> str:
    return " ".join(text.split())


@clause(NEVER_RUN)
@pytest.mark.parametrize("name", NAMED)
def test_naming_a_checkpoint_runs_nothing_beside_it(name: str, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said, model, train = NAMED[name]
    write(PLAIN)
    cs.apply(cs.transplant(source(), "dl/c.yaml"), "dl/c.init.safetensors")
    Path("dl/evil.py").write_text(SINGS)
    Path("dl/hyper.yaml").write_text("modules:\n    net: !apply:evil.make\n")
    Path("dl/espnet.yaml").write_text("token_list: [a]\nencoder: rnn\nencoder_conf: {}\n")
    write(model, train)
    # The forger's own init names his own configuration, by its digest.
    import hashlib

    data = Path("dl/c.yaml").read_bytes()
    from safetensors import safe_open

    with safe_open("dl/c.init.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    field = next(key for key, value in metadata.items() if "c.yaml" in value)
    recipe = json.loads(metadata[field])
    recipe["target"]["files"] = [{"name": "c.yaml", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    save_file(tensors, "dl/c.init.safetensors", {**metadata, field: json.dumps(recipe)})

    for args, config, init in (
        (("--init", "dl/c.init.safetensors"), "dl/c.yaml", "dl/c.init.safetensors"),
        ((), "c.yaml", "c.init.safetensors"),
    ):
        if not args:
            monkeypatch.chdir("dl")
        done = ckpt("train", *args, "--device", "cpu")
        assert done.code == 2, done
        told = flat(done.err)
        assert f"error: {config} runs code (" in told
        assert said in told
        assert told.endswith(f"If you trust it, name the file: ckpt train {config} --init {init}.")
        assert not CANARY.exists()
        with pytest.raises(cs.ConfigError, match="runs code"):
            cs.train(init=init)
    assert not CANARY.exists()


@clause(NEVER_RUN)
def test_a_configuration_that_runs_nothing_may_be_named_by_its_init_alone(ckpt: Run) -> None:
    write(PLAIN)
    cs.apply(cs.transplant(source(), "dl/c.yaml"), "dl/c.init.safetensors")
    done = ckpt("train", "--init", "dl/c.init.safetensors", "--device", "cpu")
    assert "runs code" not in done.err
    assert "train" in done.err  # it has no data, which is the next that is wrong


PLUGIN = SINGS + (
    "from ckptsurgeon.methods.merge._method import merge_method\n"
    "@merge_method('half', paper='none')\ndef half(tensors):\n    'Half.'\n    return lambda at: at.models[0] / 2\n"
)


def recipes() -> None:
    source()
    Path("evil.py").write_text(SINGS + NET)
    write({"_target_": "evil.Net"}, path="dst.yaml")
    Path("plugin.py").write_text(PLUGIN)
    Path("net.yaml").write_text("verb: transplant\nsource: src.safetensors\ndestination: dst.yaml\n")
    Path("plug.yaml").write_text(
        "verb: merge\nmodels: [src.safetensors, src.safetensors]\nmethod: half\nplugin: plugin.py\n"
    )


@clause(NEVER_RUN)
@pytest.mark.parametrize(
    ("recipe", "said"), [("net.yaml", "evil.Net of dst.yaml"), ("plug.yaml", "the plugin plugin.py")]
)
def test_a_dry_run_of_a_recipe_runs_nothing(recipe: str, said: str, ckpt: Run) -> None:
    recipes()
    done = ckpt("apply", recipe, "-n")
    assert done.code == 2, done
    assert done.out == ""
    told = flat(done.err)
    assert f"error: planning the recipe {recipe} would run {said}; nothing was run." in told
    assert told.endswith(f"ckpt apply -n --run-code {recipe}.")
    assert not CANARY.exists()
    with pytest.raises(cs.ConfigError, match="nothing was run"):
        cs.load_plan(recipe, run_code=False)
    assert not CANARY.exists()
    done = ckpt("apply", recipe, "-n", "--run-code")
    assert done.code == 0, done
    assert CANARY.exists()


def test_code_may_be_run_without_a_dry_run_and_is_not_asked_for_then(ckpt: Run) -> None:
    recipes()
    done = ckpt("apply", "net.yaml", "-o", "a.safetensors")
    assert done.code == 0, done
    assert "--run-code is only for a dry run (-n)" in ckpt("apply", "net.yaml", "-o", "b.safetensors", "--run-code").err


@clause(NEVER_RUN)
def test_a_plan_that_is_looked_at_says_what_carrying_it_out_would_run(ckpt: Run) -> None:
    """Also one that was forged: what runs is read from the configuration, not from the plan."""
    recipes()
    made = json.loads(ckpt("transplant", "src.safetensors", "dst.yaml", "-n", "--json").out)
    made["notes"] = []
    Path("plan.json").write_text(json.dumps(made))
    CANARY.unlink()
    done = ckpt("apply", "plan.json", "-n")
    assert done.code == 0, done
    assert "note: applying the plan runs code: evil.Net of dst.yaml" in flat(done.err)
    assert not CANARY.exists()
    Path("dst.yaml").unlink()
    assert "note: applying the plan will fail: the destination dst.yaml cannot be read" in flat(
        ckpt("apply", "plan.json", "-n").err
    )


def test_an_error_says_what_ran_before_it(ckpt: Run) -> None:
    source()
    Path("parts.py").write_text(NET + "def fails(**named):\n    raise ValueError('no')\n")
    write({"_target_": "parts.fails", "inner": {"_target_": "parts.Net"}}, path="dst.yaml")
    told = flat(ckpt("transplant", "src.safetensors", "dst.yaml", "-n").err)
    assert "error: dst.yaml cannot be built: ValueError: no" in told
    assert told.endswith(
        "This code had already run: the import of parts.py, parts.Net from parts.py, parts.fails from parts.py."
    )
    write({"_target_": "parts.Net", "inner": {"_target_": "parts.nothing"}}, path="dst.yaml")
    told = flat(ckpt("transplant", "src.safetensors", "dst.yaml", "-n").err)
    assert told.endswith("parts has no nothing. This code had already run: the import of parts.py.")
    write({"_target_": "missing.Net"}, path="dst.yaml")
    assert "By then" not in ckpt("transplant", "src.safetensors", "dst.yaml", "-n").err


def test_an_error_in_hyperparams_says_which_tags_ran(ckpt: Run) -> None:
    pytest.importorskip("hyperpyyaml")
    source()
    Path("parts.py").write_text(NET + "def fails():\n    raise ValueError('no')\ndef three():\n    return 3\n")
    Path("dst.yaml").write_text(
        "n: !apply:parts.three\nmodules:\n    a: !new:parts.Net\n    n: !ref <n>\n    b: !apply:parts.fails\n"
    )
    done = ckpt("transplant", "src.safetensors", "dst.yaml", "-n", "--json")
    told = json.loads(done.err.splitlines()[-1])
    ran = [line.removeprefix("ran ") for line in told["details"]]
    assert ran == ["the import of parts.py", "parts.three", "parts.Net", "parts.fails"]
