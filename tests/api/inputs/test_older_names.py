"""A live module of transformers and its own files, which have older names: the renaming, and what verbs say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.older_names import older_names_said

transformers = pytest.importorskip("transformers")
CAUSE = "vit has other names than <ViTForImageClassification> for 16 tensors, as transformers saves them"


@pytest.fixture
def vit() -> Any:
    """A small module, saved in the folder vit under older names."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained("vit")
    return model


def test_a_transplant_into_a_live_module_renames_older_keys(vit: Any) -> None:
    plan = cs.transplant("vit", vit)
    assert plan.counts == {"copied": len(vit.state_dict())}
    cs.apply(plan, "out.safetensors")
    written = load_file("out.safetensors")
    assert all(torch.equal(written[key], value) for key, value in vit.state_dict().items())


def test_diff_fits_and_merges_name_the_cause(vit: Any) -> None:
    base = transformers.ViTModel(vit.config)
    base.save_pretrained("base")
    plan = cs.merge(["vit", vit], method="linear", weights=[1, 1], on_missing="skip")
    for notes in (cs.diff("vit", vit).notes, cs.fits("vit", vit).notes, cs.transplant(vit, "vit").notes, plan.notes):
        assert [note for note in notes if note.startswith(CAUSE) and "save_pretrained" in note]
    for verb in (lambda: cs.average([vit, "vit"]), lambda: cs.merge(["vit", vit], method="linear", weights=[1, 1])):
        with pytest.raises(cs.PlanError, match=CAUSE) as raised:
            verb()
        assert "on_missing" not in str(raised.value)
    vit.save_pretrained("saved")
    assert not cs.diff("vit", "saved").notes
    cs.average(["vit", "saved"])


def test_an_error_that_has_another_cause_keeps_its_hint(vit: Any) -> None:
    with pytest.raises(cs.PlanError) as raised, older_names_said(["vit", vit]):
        raise cs.PlanError("too much memory.", hint="Allow more memory.")
    assert raised.value.hint == "Allow more memory."


def test_a_model_of_another_class_is_not_called_older() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, vocab_size=8, max_position_embeddings=8)
    transformers.BertModel(config).save_pretrained("bert")
    assert not [note for note in cs.diff("bert", transformers.BertForMaskedLM(config)).notes if "other names" in note]
