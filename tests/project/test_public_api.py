"""The façade: sorted, complete, documented, and light to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import ckptsurgeon as cs


def test_all_is_sorted_and_complete() -> None:
    assert list(cs.__all__) == sorted(cs.__all__)
    for name in cs.__all__:
        assert getattr(cs, name) is not None
    assert set(cs.__all__) <= set(dir(cs))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cs.nothing


def test_every_public_thing_is_documented() -> None:
    for name in cs.__all__:
        thing = getattr(cs, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert "Any" not in str(inspect.signature(thing)), name


def test_every_class_of_ours_that_a_public_function_takes_is_public() -> None:
    private = set()
    for name in cs.__all__:
        function = inspect.unwrap(getattr(cs, name))
        if not inspect.isfunction(function):
            continue
        said = " ".join(str(one) for argument, one in function.__annotations__.items() if argument != "return")
        for word in set(re.findall(r"[A-Za-z_]\w*", said)):
            found = function.__globals__.get(word)
            if inspect.isclass(found) and found.__module__.startswith("ckptsurgeon") and word not in cs.__all__:
                private.add((name, word))
    assert not private


def test_every_error_has_its_exit_code_drawn() -> None:
    from ckptsurgeon import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        line = next(line for line in (errors.__doc__ or "").splitlines() if name in line)
        assert line.split()[-1].isdigit() is False or str(kind.exit_code) in line
        assert issubclass(kind, cs.CheckpointError)
        assert f" {kind.exit_code} " in line + " ", line


def loaded_after(code: str, *names: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_loads_neither_torch_nor_numpy() -> None:
    assert not loaded_after("import ckptsurgeon", "torch", "numpy", "rich", "typer", "huggingface_hub", "yaml")


@pytest.mark.long
def test_a_merge_without_an_alignment_loads_no_scipy(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    code = f"""
import ckptsurgeon as cs, ckptsurgeon.engine.matching.experts, os
os.chdir({str(tmp_path)!r})
cs.apply(cs.merge(["a.pth", "a.pth"], method="linear", weights=[1, 1]), "out.safetensors")
"""
    assert not loaded_after(code, "scipy")


def test_opening_and_planning_between_checkpoints_loads_no_torch(minilm: object) -> None:
    code = f"""
import ckptsurgeon as cs
path = {str(minilm)!r} + "/model.safetensors"
cs.inspect(path)
plan = cs.transplant(path, path, exclude=["pooler"])
cs.apply(plan, "out.safetensors")
assert cs.verify("out.safetensors").ok
"""
    assert not loaded_after(code, "torch", "huggingface_hub")


@pytest.mark.long
def test_plain_weights_need_no_other_format_encoding_or_tokeniser() -> None:
    torch.save({"layers.0.weight": torch.ones(2, 2), "layers.0.bias": torch.ones(2)}, "a.pth")
    Path("d.yaml").write_text("model: {tensors: {layers.0.weight: {shape: [2, 2]}, layers.0.bias: {shape: [2]}}}\n")
    code = """
import ckptsurgeon as cs
assert cs.inspect("a.pth").tensors
cs.apply(cs.transplant("a.pth", "d.yaml"), "b.safetensors")
"""
    others = (
        "formats.gguf", "formats.exported.onnx", "formats.sharded", "formats.torch_dcp", "tensors.quantised.search",
        "tensors.encodings.gptq_awq", "checkpoint.quantisation_notes", "tensors.odd_scales.notes",
        "api.model_folder.codes.described_shapes", "api.model_folder.config_differences", "vocabulary.sentencepiece",
        "storage.read.hub", "storage.read.web", "destinations.espnet", "destinations.speechbrain", "api.gguf.outputs",
    )  # fmt: skip
    assert not loaded_after(code, *(f"ckptsurgeon.{name}" for name in others))


@pytest.mark.long
def test_copying_loads_no_numpy(minilm: object) -> None:
    code = f"""
import ckptsurgeon as cs
path = {str(minilm)!r} + "/model.safetensors"
cs.apply(cs.transplant(path, path, exclude=["pooler"]), "out.safetensors")
cs.apply(cs.rename(path, map=["encoder=body"]), "renamed.safetensors")
"""
    assert not loaded_after(code, "torch", "numpy")


def test_inspect_as_a_command_loads_no_torch(minilm: object) -> None:
    code = f"from ckptsurgeon.cli import main\nassert main(['inspect', {str(minilm)!r}]) == 0"
    assert not loaded_after(code, "torch", "numpy", "huggingface_hub")


def test_commands_on_a_file_load_only_what_they_need() -> None:
    """Each module takes time to load: a third of a millisecond on average, as much as reading a header."""
    save_file({"a.weight": np.zeros((2, 3), np.float32)}, "a.safetensors")
    code = """
from ckptsurgeon.cli import main
for line in ("inspect a.safetensors", "diff a.safetensors a.safetensors", "convert a.safetensors -o b.safetensors",
             "rename a.safetensors --map a=b -o c.safetensors", "filter a.safetensors --include a -o d.safetensors"):
    assert main(line.split()) == 0, line
"""
    others = ("api.gguf.layouts", "api.lora.scales", "api.model_folder.folder_checks", "api.quantising.quantising",
              "api.transplant.transplant", "cli.verbs.merge", "methods.lora.names", "planning.lora_extract")  # fmt: skip
    assert not loaded_after(code, "torch", "numpy", "yaml", *(f"ckptsurgeon.{name}" for name in others))


def test_no_room_has_the_name_of_a_public_verb() -> None:
    """Importing a submodule sets its name on the package, and would hide the verb."""
    from pathlib import Path

    rooms = {path.name.removesuffix(".py") for path in Path(cs.__file__).parent.iterdir()}
    assert not rooms & set(cs.__all__)
