"""Errors of transplants into quantised models: their shapes and dtypes are those of weights, not those of codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers import coded_matrices
from ...helpers.coded_matrices import SETTINGS, save_model
from ...helpers.four_bits import FOUR_BITS
from ...helpers.quantised import Quantised
from ...helpers.zoo import BY_NAME, IN, KEPT, LAYERS, OUT

MODELS = [one for name in sorted(KEPT) if (one := BY_NAME[name]).layers == LAYERS] + list(FOUR_BITS.values())


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_a_mismatch_shows_the_shape_of_the_weight(model: Quantised, tmp_path: Path) -> None:
    destination = model.folder(tmp_path / "to")
    save_file({f"{LAYERS[0]}.weight": torch.zeros(OUT + 8, IN)}, "src.safetensors")
    with pytest.raises(cs.PlanError) as error:
        cs.transplant("src.safetensors", destination)
    assert f"is ({OUT + 8}, {IN}) in src.safetensors, ({OUT}, {IN}) in to." in error.value.message


def tokens(name: str, number: int) -> str:
    Path(name).write_text("\n".join(f"word{i}" for i in range(number)) + "\n")
    return name


WIDTH, FEW, MANY = 128, 64, 72


@pytest.mark.costly
@pytest.mark.parametrize("method", ["mlx", "nf4", "gptq", "awq", "llm_int8"])
def test_new_tokens_that_cannot_be_encoded_are_the_error_and_others_are_encoded(method: str) -> None:
    coded = {"model.embed_tokens": torch.randn(MANY, WIDTH), "model.layers.0.mlp.up_proj": torch.randn(256, WIDTH)}
    encode = getattr(coded_matrices, method)
    destination = save_model(Path("to"), SETTINGS[method], {name: encode(one) for name, one in coded.items()})
    plain = {f"{name}.weight": one for name, one in coded.items()}
    save_file({**plain, "model.embed_tokens.weight": torch.randn(FEW, WIDTH)}, "src.safetensors")
    lists = f"{tokens('few.txt', FEW)}:{tokens('many.txt', MANY)}"
    with pytest.raises(
        cs.PlanError, match=r"model\.embed_tokens\.weight of to is quantised .*: some of its values are"
    ) as error:
        cs.transplant("src.safetensors", destination, vocab=lists)
    assert error.value.hint is not None
    assert 'new_tokens="mean"' in error.value.hint or "--new-tokens mean" in error.value.hint
    plan = cs.transplant("src.safetensors", destination, vocab=lists, new_tokens="mean")
    assert any("are decoded, computed and encoded again" in note for note in plan.notes)


def test_a_source_that_cannot_be_decoded_leaves_the_first_error(tmp_path: Path) -> None:
    """A plain tensor of such a source can be copied, so that what is wrong with it is said."""
    source, destination = BY_NAME["aqlm"].folder(tmp_path / "from"), BY_NAME["gptq"].folder(tmp_path / "to")
    embedding = "model.embed_tokens.weight"
    with pytest.raises(cs.PlanError, match="tensors of the destination are in no source"):
        cs.transplant(source, destination, include=[embedding], on_missing="error")
