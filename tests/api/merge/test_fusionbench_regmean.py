"""RegMean++ against FusionBench's own, recorded by ``make oracle-fusionbench``: vision models that see images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.fusionbench_vision import ALPHA, MODELS, images, recorded_vision, vision_model

pytest.importorskip("transformers", minversion="5")


def saved(tmp_path: Path) -> list[Path]:
    import torch

    for number, name in enumerate(MODELS):
        vision_model(number).save_pretrained(tmp_path / name)
        save_file({"pixel_values": torch.from_numpy(images(number))}, tmp_path / f"{name}.inputs.safetensors")
    return [tmp_path / name for name in MODELS]


def test_regmean_plusplus_equals_fusionbenchs(tmp_path: Path) -> None:
    first, *others = saved(tmp_path)
    given = {"alpha": ALPHA, "ridge": 0.0}
    plan = cs.stats(
        first, inputs=f"{first}.inputs.safetensors", gram=True, parameters=given,
        merged_with={str(one): f"{one}.inputs.safetensors" for one in others},
    )  # fmt: skip
    cs.apply(plan, tmp_path / "joint.safetensors")
    merge = cs.merge(
        [first, *others], method="regmean_plusplus", statistics=str(tmp_path / "joint.safetensors"), **given
    )
    cs.apply(merge, tmp_path / "out")
    found, wanted = load_file(tmp_path / "out/model.safetensors"), recorded_vision()
    assert len(wanted) == 37
    for key, value in wanted.items():
        far = np.abs(found[key].double().numpy() - value).max() / np.abs(value).max()
        assert float(far) <= 1e-5, key
    mean = np.mean([vision_model(number).state_dict()["encoder.layers.1.mlp.fc2.weight"] for number in range(3)], 0)
    assert not np.allclose(mean, wanted["encoder.layers.1.mlp.fc2.weight"], rtol=1e-2)
