"""Writes the modules of a new adapter in the names of a toolkit: PEFT, kohya, diffusers, ComfyUI or mlx-lm."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import PlanError
from ...methods.lora.names import COMPONENTS
from ...util.text import count, escape, listing
from ..plan.files import PlanCompanion
from ..plan.step import Step
from .components import BLOCKS, MAIN
from .modules import COMFY, NewModule, factor_step, folded, folding_notes
from .peft import CONFIG, WEIGHTS, companion, peft_fields, peft_steps

__all__ = ["SPELLINGS", "AdapterFiles", "check_component", "written"]

SPELLINGS = ("peft", "kohya", "diffusers", "comfy", "mlx")
"""The toolkits whose names can be written."""
TITLES = {"peft": "PEFT", "kohya": "kohya", "diffusers": "diffusers", "comfy": "ComfyUI", "mlx": "mlx-lm"}

MLX_WEIGHTS = "adapters.safetensors"
METADATA = "lora_adapter_metadata"
"""The metadata entry in which diffusers stores the configuration of each model of a pipeline."""
_TO_KOHYA = {
    **dict.fromkeys(MAIN, "lora_unet"), "text_encoder": "lora_te", "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}  # fmt: skip
_OF_KOHYA = {
    "lora_unet": "unet", "lora_transformer": "transformer", "lora_te": "text_encoder", "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3",
}  # fmt: skip

_WRAPPER = "text_model."
_CLIP = re.compile(
    r"^(text_model[._])*"
    r"(?=encoder[._]layers[._]\d+[._](self_attn[._]|mlp[._]fc|layer_norm)|embeddings[._]|final_layer_norm)"
)
"""Matches the beginning of names in CLIP's text encoder: transformers has ``text_model.`` there before 5.6."""


@dataclass
class AdapterFiles:
    """An adapter in the names of a toolkit: its steps, its other files, its metadata, and notes.

    ``weights`` is the name that the file of tensors must have; '' if it may have any name. ``operations`` are added to
    the operations of the plan's first source; they make the tensors with the alphas.
    """

    steps: list[Step] = field(default_factory=list)
    companions: tuple[PlanCompanion, ...] = ()
    weights: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    operations: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def written(
    modules: Sequence[NewModule], to: str, settings: Mapping[str, Any] | None = None, component: str = ""
) -> AdapterFiles:
    """Return an adapter with the names of the toolkit ``to``, one of ``SPELLINGS``.

    Scales that a toolkit cannot store are multiplied into the factors B. ``settings`` are fields of PEFT's
    configuration that do not follow from the modules. ``component`` is the model of a pipeline that the modules are
    for, if their names do not show it. Raises PlanError for tensors that the toolkit cannot store at all.
    """
    modules = _placed(modules, component)
    if to == "peft":
        return _peft(modules, settings or {})
    embeddings = [module.name for module in modules if module.embedding]
    if embeddings:
        raise PlanError(
            f"{TITLES[to]} has no names for adapters of embeddings: {listing(embeddings)}.",
            hint="Leave these embeddings out with --exclude, or merge the adapter into its base.",
            details=embeddings,
        )
    if to == "mlx":
        return _mlx(modules)
    return _diffusers(modules) if to == "diffusers" else _with_alphas(modules, to)


def check_component(component: str) -> None:
    """Raise PlanError unless ``component`` is '' or the name of a model in a pipeline of diffusers."""
    if component and component not in COMPONENTS:
        raise PlanError(
            f"--component {escape(component, 40)} is not a model of a pipeline.", hint=f"Use {', '.join(COMPONENTS)}."
        )


def _placed(modules: Sequence[NewModule], component: str) -> list[NewModule]:
    """Return the modules with the component that they belong to: ``component`` if it is given, else their own.

    Their own component gets the name that diffusers has for it. Raises PlanError if ``component`` is given, but the
    modules belong to several components.
    """
    check_component(component)
    found = {module.component for module in modules}
    if component and len(found) > 1:
        raise PlanError(
            f"--component {component} needs an adapter for one model, but this adapter is for "
            f"{count(len(found), 'model')}: {listing(sorted(found))}.",
            hint="Leave --component out, or leave the other models out with --exclude.",
        )
    return [replace(one, component=component or _component(one)) for one in modules]


def _component(one: NewModule) -> str:
    """Return diffusers' name of a module's component; if the module's name has underscores, kohya's prefix is kept."""
    return one.component if one.joined else _OF_KOHYA.get(one.component, one.component)


def _one_model(modules: Sequence[NewModule], to: str) -> None:
    found = sorted({module.component for module in modules})
    if len(found) > 1:
        raise PlanError(
            f"the adapter is for several models of a pipeline ({listing(found)}), but a folder of {TITLES[to]} is for "
            "one model.",
            hint="Leave the other models out, as in --exclude 'text_encoder.*' or --exclude 'lora_te_*'.",
        )
    _check_dotted(modules, to)


def _check_dotted(modules: Sequence[NewModule], to: str) -> None:
    """Raise PlanError if a module's name has underscores in place of the dots that the name has in the model."""
    if any(module.joined for module in modules):
        raise PlanError(
            f"kohya's names have underscores where the model's names have dots: {TITLES[to]} needs the names of the "
            "model.",
            hint="Give the model with --base; only its keys are read.",
        )


def _check_distinct(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PlanError(
                f"two modules would have the name {escape(name)}.", hint="Leave one module out with --exclude."
            )
        seen.add(name)


def _peft(modules: Sequence[NewModule], settings: Mapping[str, Any]) -> AdapterFiles:
    _one_model(modules, "peft")
    fields = peft_fields(modules, settings)
    return AdapterFiles(peft_steps(modules), (companion(fields, CONFIG),), WEIGHTS)


def _diffusers(modules: Sequence[NewModule]) -> AdapterFiles:
    """Return the adapter with diffusers' names, which begin with the name of a model of the pipeline.

    The metadata contains PEFT's configuration for each of these models. Raises PlanError if the model of a module is
    not known.
    """
    _check_dotted(modules, "diffusers")
    made, data = AdapterFiles(), dict[str, Any]()
    groups: dict[str, list[NewModule]] = {}
    for module in modules:
        if module.component not in COMPONENTS:
            raise _no_component(module, "diffusers")
        groups.setdefault(module.component, []).append(module)
    for component, own in groups.items():
        own = [replace(module, origin="") for module in own]  # diffusers has no wrappers around layers
        fields = peft_fields(own, {})
        kept = (
            "r",
            "lora_alpha",
            "rank_pattern",
            "alpha_pattern",
            "target_modules",
            "use_rslora",
            "use_dora",
            "lora_bias",
        )
        data |= {f"{component}.{name}": fields[name] for name in kept}
        for module in own:
            made.steps += (factor_step(f"{component}.{module.name}.lora_{part}.weight", module, part) for part in "AB")
    _check_distinct(step.key for step in made.steps)
    made.metadata[METADATA] = json.dumps(data, indent=2, sort_keys=True)
    return made


def _no_component(module: NewModule, to: str) -> PlanError:
    model = escape(module.component)
    has = f"{TITLES[to]} has no model {model}" if model else "the adapter does not say which model it is for"
    return PlanError(
        f"the names of {TITLES[to]} begin with the name of a model in the pipeline, and {has}.",
        hint="Name the model, as in --component unet.",
    )


def _with_alphas(modules: Sequence[NewModule], to: str) -> AdapterFiles:
    """Return the adapter as one file of kohya or ComfyUI, which has a tensor with the alpha of each module."""
    made, alphas = AdapterFiles(), dict[str, float]()
    if to == "comfy":
        _check_dotted(modules, to)
        made.notes += _diffusers_notes(modules)
    kept = [module if _alpha(module) is not None else folded(module, 1.0) for module in modules]
    made.notes += folding_notes(modules, kept)
    if to == "kohya":
        made.notes += _wrapper_notes(kept)
    prefixes = {module.component for module in modules}
    for module in kept:
        name = _comfy_name(module) if to == "comfy" else _kohya_name(module, prefixes)
        sides = {"A": "lora_down", "B": "lora_up"}
        made.steps += (factor_step(f"{name}.{sides[part]}.weight", module, part) for part in "AB")
        alpha = _alpha(module)
        assert alpha is not None  # after folding, alpha is the rank
        alphas[f"constant alpha {alpha!r}"] = alpha
        made.steps.append(Step(f"{name}.alpha", "copy", "float32", (), 0, f"constant alpha {alpha!r}", "float32", (1,)))
    _check_distinct(step.key for step in made.steps)
    made.operations = [{"constant": name, "values": [alpha]} for name, alpha in alphas.items()]
    return made


def _diffusers_notes(modules: Sequence[NewModule]) -> list[str]:
    """Return [note] on modules that ComfyUI does not find, because they have diffusers' names; [] if there are none."""
    found = [module.name for module in modules if module.name.startswith(BLOCKS)]
    if not found:
        return []
    number = f"{count(len(found), 'module')} {'has' if len(found) == 1 else 'have'}"
    return [
        f"{number} names of diffusers' layout, and ComfyUI does not find them under {COMFY}: --to kohya or --to "
        f"diffusers writes names that ComfyUI maps to its own: {listing(found, where='')}"
    ]


def _alpha(module: NewModule) -> float | None:
    """Return an alpha that makes alpha / rank exactly the module's scale; None if float32 cannot store it."""
    for text in (f"{module.scale * module.rank:.15g}", repr(module.scale * module.rank)):
        try:
            (alpha,) = struct.unpack("<f", struct.pack("<f", float(text)))
        except OverflowError:
            return None
        if alpha / module.rank == module.scale:
            return float(alpha)
    return None


def _comfy_name(module: NewModule) -> str:
    if module.component not in ("", *MAIN):
        raise PlanError(
            f"the names of ComfyUI that start with {COMFY} are only for the diffusion model, but the adapter changes "
            f"{escape(module.component)}.",
            hint="Use --to kohya, whose names ComfyUI reads, or leave the other models out, as in --exclude "
            "'text_encoder.*' or --exclude 'lora_te_*'.",
        )
    return f"{COMFY}.{module.name}"


def _kohya_name(module: NewModule, components: set[str]) -> str:
    prefix = _TO_KOHYA.get(module.component)
    if prefix is None and module.joined:
        prefix = module.component  # a prefix of kohya's own stays as it is
    if prefix is None:
        raise _no_component(module, "kohya")
    if prefix == "lora_te" and "text_encoder_2" in components:
        prefix = "lora_te1"  # SDXL has two text encoders
    return f"{prefix}_{_wrapped(module).replace('.', '_')}"


def _wrapped(module: NewModule) -> str:
    """Return the name of a module, with ``text_model.`` once if the module is of a text encoder of CLIP."""
    if not _TO_KOHYA.get(module.component, module.component).startswith("lora_te"):
        return module.name
    return _CLIP.sub(_WRAPPER, module.name, count=1)


def _wrapper_notes(modules: Sequence[NewModule]) -> list[str]:
    """Return [note] on modules whose names get or lose ``text_model.``; [] if there are none."""
    found = [module.name for module in modules if _wrapped(module).replace(".", "_") != module.name.replace(".", "_")]
    if not found:
        return []
    number = f"{count(len(found), 'module')} of text encoders {'has' if len(found) == 1 else 'have'}"
    said = f"{number} {_WRAPPER} once in the new names, as in kohya's; their own names differ, as in transformers 5.6"
    return [f"{said}: {listing(found, where='')}"]


def _mlx(modules: Sequence[NewModule]) -> AdapterFiles:
    """Return the adapter in mlx-lm's form: transposed factors, and one rank and one scale for all modules.

    Raises PlanError for factors that are not matrices.
    """
    _one_model(modules, "mlx")
    odd = [
        module.name for module in modules if len(module.a.inputs[0].shape) != 2 or len(module.b.inputs[0].shape) != 2
    ]
    if odd:
        raise PlanError(
            f"mlx-lm has adapters of linear layers only, but the factors of {listing(odd)} are not matrices.",
            hint="Leave these modules out with --exclude.",
        )
    made, rank = AdapterFiles(weights=MLX_WEIGHTS), max(module.rank for module in modules)
    scales = {module.scale for module in modules}
    scale = scales.pop() if len(scales) == 1 else 1.0
    kept = [folded(module, scale) for module in modules]
    made.notes += folding_notes(modules, kept)
    smaller = [module.name for module in modules if module.rank < rank]
    if smaller:
        made.notes.append(
            f"mlx-lm has one rank for all modules: the factors of {count(len(smaller), 'module')} are filled with "
            f"zeros up to rank {rank}: {listing(smaller, where='')}"
        )
    for module in kept:
        for part in "AB":
            key = f"{module.name}.lora_{part.lower()}"
            made.steps.append(factor_step(key, module, part, rank=rank, transpose=True))
    _check_distinct(step.key for step in made.steps)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": [module.name for module in kept]}
    fields = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    made.companions = (companion(fields, CONFIG),)
    return made
