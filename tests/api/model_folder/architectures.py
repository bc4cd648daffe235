"""``make architectures``: the notes on the default models of transformers, of which there should be none.

    python -m tests.api.model_folder.architectures FOLDER [WORD …]

Each class of each type that has a WORD in its name (all types without one) is built without values, with 4 and with 8 layers
and at most 8 experts. Names and shapes, in memory and as they are saved, and both forms of the configuration are kept in FOLDER
as JSON lines, and read from there the next time. Exit status 1 if there is a note.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptsurgeon.api.model_folder.folder import ModelFolder
from ckptsurgeon.api.model_folder.folder_checks import weights_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor
from ckptsurgeon.planning.target import Companion

DEPTHS = (4, 8)
EXPERTS = 8
OF_IDS = "there is no row for these ids"
"""In notes on ids beyond the vocabulary: defaults of a model of text and images are often ids of another text model."""
OF_DEPTH = "(vision_feature_layer)"
"""In notes on layers whose outputs are taken: VipLLaVA's defaults need more layers than the smaller models have."""
OF_LAYERS = re.compile(r"(n|num)_(\w+_)?layers?|\w*coder_layers|\w*depth")
OF_EXPERTS = re.compile(r"\w*num_(\w+_)?experts(_per_tok)?|n_routed_experts|num_experts_per_token")


def smaller(kind: Any, depth: int) -> dict[str, Any]:
    """Return arguments for a configuration with at most so many layers and eight experts, also in nested ones."""
    default = kind()
    found: dict[str, Any] = {}
    for name, value in vars(default).items():
        fewer = depth // 2 if "shared" in name else depth
        most = fewer if OF_LAYERS.fullmatch(name) else EXPERTS if OF_EXPERTS.fullmatch(name) else None
        if most is not None and type(value) is int and value > most:
            found[name] = most
        elif hasattr(value, "to_diff_dict"):
            found[name] = {**value.to_diff_dict(), "model_type": value.model_type, **smaller(type(value), depth)}
    return found


def made(kind: Any, depth: int) -> Any:
    """Return a configuration with fewer layers, or the default one if the class does not take these."""
    with suppress(Exception):
        return kind(**smaller(kind, depth))
    return kind()


def classes() -> dict[str, list[str]]:
    """Return the classes of models by the type of their configuration."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    found: dict[str, dict[str, None]] = {}
    for mapping in (name for name in dir(modeling_auto) if re.fullmatch(r"MODEL_\w*MAPPING_NAMES", name)):
        for kind, names in getattr(modeling_auto, mapping).items():
            found.setdefault(kind, {}).update(dict.fromkeys([names] if isinstance(names, str) else names))
    return {kind: sorted(found[kind]) for kind in sorted(found) if kind in CONFIG_MAPPING}


def described(state: Any, tied: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: [str(one.dtype).removeprefix("torch."), list(one.shape), tied.get(key, "")] for key, one in state.items()
    }


def architecture(name: str, depth: int | None) -> dict[str, Any]:
    """Return the names and shapes of a model of a class, in memory and as ``save_pretrained`` writes it."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.initialization import no_init_weights

    made_by = getattr(transformers, name)
    config = made_by.config_class() if depth is None else made(made_by.config_class, depth)
    config.architectures = [name]
    with torch.device("meta"), no_init_weights():
        model = made_by(config)
    state = model.state_dict()
    tied = getattr(model, "all_tied_weights_keys", {})
    untied = {key: one for key, one in state.items() if key not in tied}
    saved = dict(untied)
    with suppress(Exception):
        saved = revert_weight_conversion(model, dict(untied))
    forms = [json.loads(model.config.to_json_string(use_diff=one)) for one in (False, True)]
    states = [described(state, tied)]
    states += [one for one in (described(untied, {}), described(saved, {})) if one != states[-1]]
    return {"class": name, "depth": depth, "states": states, "configs": forms}


def built(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the architectures of a type; for a class that cannot be built, the reason."""
    for name in names:
        found = [tried(name, depth) for depth in DEPTHS]
        yield from found if any("fault" not in one for one in found) else [tried(name, None)]
        gc.collect()


def tried(name: str, depth: int | None) -> dict[str, Any]:
    try:
        return architecture(name, depth)
    except Exception as error:  # whatever a class raises without its libraries or a backbone
        return {"class": name, "depth": depth, "fault": f"{type(error).__name__}: {str(error)[:80]}"}


def corpus(folder: Path, words: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all architectures with the type of each: those that are kept, else built and then kept."""
    import transformers

    folder = folder / transformers.__version__
    folder.mkdir(parents=True, exist_ok=True)
    for kind, names in classes().items():
        path = folder / f"{kind}.jsonl"
        if words and not any(word in kind for word in words):
            continue
        if not path.exists():
            lines = [json.dumps(one) for one in built(names)]
            path.with_suffix(".part").write_text("\n".join(lines))
            path.with_suffix(".part").replace(path)
        for line in path.read_text().splitlines():
            yield kind, json.loads(line)


def notes(one: dict[str, Any]) -> set[str]:
    """Return all notes on an architecture."""
    found: set[str] = set()
    for config in one["configs"]:
        folder = ModelFolder("", (Companion("config.json", text=json.dumps(config)),))
        for state in one["states"]:
            tensors = [DescribedTensor(key, dtype, tuple(shape), tied) for key, (dtype, shape, tied) in state.items()]
            notes = weights_notes(tensors, folder, folder)
            found.update(one for one in notes if OF_IDS not in one and OF_DEPTH not in one)
    return found


def main() -> int:
    """Print each note once per type, and the counts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    number, faults, said = 0, dict[str, str](), dict[tuple[str, str], str]()
    for kind, one in corpus(Path(sys.argv[1]), sys.argv[2:]):
        if "fault" in one:
            faults[one["class"]] = one["fault"]
            continue
        number += 1
        for note in notes(one):
            if said.setdefault((kind, re.sub(r"\d+", "N", note)), note) is note:
                print(f"{kind}  {one['class']} of {one['depth'] or 'all layers'}: {note}", flush=True)
    for name, fault in faults.items():
        print(f"not built: {name}: {fault}")
    print(f"{number} architectures, {len(faults)} classes that cannot be built here, {len(said)} notes")
    return 1 if said or not number else 0


if __name__ == "__main__":
    sys.exit(main())
