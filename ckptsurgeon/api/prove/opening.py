"""Opens checkpoints as networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint, path_of
from ...destinations._load import target_with
from ...destinations.hf.files import CONFIG
from ...destinations.torch_module.meta import build_on_meta
from ...destinations.torch_module.user_code import PROCESS_STATE
from ...engine.inputs import PlanInputs
from ...errors import ConfigError, PlanError
from ...formats.unsupported.folders import PIPELINE, object_in, pipeline_index
from ...planning.plan.plan import Plan
from ...planning.quantised_error import UndecodableWeightError
from ...planning.transplant.options import Options
from ...storage.read.base import Folder
from ...storage.read.uri import open_source, shown
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from ..edit import convert
from ..inputs.argument_types import CheckpointLike
from ..inputs.encoding import ENCODINGS
from ..inputs.inputs import close_plan, specs_of
from ..layouts.named_layout import TRANSFORMERS
from ..model_folder.checks import contradictions
from ..model_folder.embedded import embedded_model
from ..model_folder.folder import model_folder
from ..transplant.transplant import TransplantRequest, plan_into
from .computed_tensors import computed_tensors
from .network import Network

__all__ = ["built_module", "configuration_of", "no_configuration", "open_network"]

DECODE = (
    "Dequantise the model first, with the package that quantised it. If config.json has no quantization_config, copy "
    "that of the original model."
)
"""The hint for weights that cannot be decoded: the network computes with decoded weights."""


def configuration_of(path: str, root: str | None = None) -> str:
    """Return the path of the config.json in a checkpoint's folder; '' if there is none.

    If the folder is a diffusers pipeline, ``root`` is the component whose config.json is returned.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
    if root and os.path.isfile(os.path.join(folder, PIPELINE)):
        folder = os.path.join(folder, root)
    found = os.path.join(folder, CONFIG)
    return found if os.path.isfile(found) else ""


def no_configuration(path: str, what: str, hint: str) -> ConfigError:
    """Return the error for a checkpoint without a config.json in its folder, so that ``what`` is not known.

    ``hint`` is the hint, unless the folder is a diffusers pipeline: then the hint names the components that can run,
    which are those of transformers.
    """
    name = escape(shown(path))
    if not os.path.isfile(os.path.join(path, PIPELINE)):
        return ConfigError(f"there is no config.json in the folder of {name}, so {what} is not known.", hint=hint)
    folder = open_source(path)
    index = pipeline_index(folder) if isinstance(folder, Folder) else {}
    ours = [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and entry[:1] == ["transformers"] and configuration_of(path, name)
    ]
    choose = f"Name a component of transformers: {' or '.join(f'--root {escape(one)}' for one in ours)}."
    return ConfigError(
        f"{name} is a diffusers pipeline of several networks, but one network is run.",
        hint=choose if ours else "It has no component of transformers, which ckpt can run: use ckpt diff --values.",
    )


def _check_library(configuration: str) -> None:
    """Raise ConfigError if a config.json is of a network of diffusers, which ckpt cannot build."""
    folder = open_source(os.path.dirname(configuration) or os.curdir)
    is_config = os.path.basename(configuration) == CONFIG and isinstance(folder, Folder)
    fields = object_in(folder, CONFIG) if is_config and isinstance(folder, Folder) else {}
    kind = fields.get("_class_name")
    if isinstance(kind, str) and "_diffusers_version" in fields:
        raise ConfigError(
            f"{escape(shown(configuration))} is of a network of diffusers ({escape(kind, 60)}), which ckpt cannot run.",
            hint="Compare the weights with ckpt diff --values.",
        )


def open_network(
    source: CheckpointLike, configuration: str, *, task: str | None, root: str | None, read_buffers: bool = True
) -> Network:  # fmt: skip
    """Open a checkpoint as the network that a configuration describes; raises ConfigError or PlanError.

    ``configuration`` is the path of the configuration, ``task`` the ESPnet task, if an ESPnet configuration fits
    several tasks, and ``root`` the dotted path of the state dict. Without ``read_buffers``, no values are read.
    """
    _check_library(configuration)
    spec = target_with(configuration, None, task, dequantized=True)
    if spec.build is None:
        raise ConfigError(
            f"{escape(spec.name)} describes only tensors, not a network that can run.",
            hint="Give the configuration of a model: --model config.json, or a YAML file with model:.",
        )
    options = Options.of(dtype="float32")
    with ExitStack() as opened:
        given, inner = source, root
        conversion = _to_transformers(source, root)
        if conversion is not None:
            opened.callback(close_plan, conversion)
            given, inner = _converted(conversion), None
        try:
            # Rows are copied by position, whatever tokeniser is there: shared_tokens compares the tokens.
            request = TransplantRequest(root=inner, by_place=True, encoding=ENCODINGS[1])
            plan = plan_into(specs_of(given), spec, options, request)
            opened.callback(close_plan, plan)
            module = built_module(spec.build)
            computed = computed_tensors(spec, module, [step.key for step in plan.steps if step.reason == "missing"])
        except PlanError as error:
            name = escape(shown(path_of(source)))
            hint = f"ckpt fits {name} {escape(configuration)} lists all tensors that are missing or have another shape."
            raise PlanError(
                f"{name} does not load into the network of {escape(configuration)}: {error.message}",
                hint=DECODE if isinstance(error, UndecodableWeightError) else hint,
                details=error.details,
            ) from error
        path = path_of(source)
        folder = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
        network = Network(shown(path), module, plan, folder, _notes(source, root), _tokens(source, root))
        network.is_converted, network.computed = conversion is not None, computed
        if read_buffers:
            network.load_buffers()
        network.opened = opened.pop_all()
    return network


def _to_transformers(source: CheckpointLike, root: str | None) -> Plan | None:
    """Return the plan that gives a GGUF file the names and layout of transformers; None for any other checkpoint."""
    with open_checkpoint(source, root) as checkpoint:
        if not checkpoint.header.stored:
            return None
        in_blocks = any(DTYPES[info.dtype].block for info in checkpoint.values())
    dtype = "float32" if in_blocks else None
    return convert(source, layout=TRANSFORMERS, root=root, dequantize=in_blocks, dtype=dtype)


def _tokens(source: CheckpointLike, root: str | None) -> tuple[str, ...]:
    with open_checkpoint(source, root) as checkpoint:
        embedded = embedded_model(checkpoint)
        return embedded.tokens if embedded is not None else ()


def _converted(plan: Plan) -> Checkpoint:
    """Return the tensors that a plan would write, as a checkpoint; values are read from the plan's open source."""
    assert isinstance(plan.inputs, PlanInputs)
    (opened,) = plan.inputs.sources
    steps = [step for step in plan.steps if step.source is not None]
    return opened.holding({step.key: opened[step.source_key] for step in steps})


def _notes(source: CheckpointLike, root: str | None) -> tuple[str, ...]:
    """Return the notes on a checkpoint, and the notes on files in its folder that contradict the tensors."""
    with open_checkpoint(source, root) as checkpoint:
        folder = None if checkpoint.folder is None else model_folder(checkpoint)
        return (*checkpoint.notes, *contradictions(checkpoint, folder))


def built_module(build: Callable[[], object]) -> nn.Module:
    """Build a module on the meta device, in float32 and evaluation mode; the global random state does not change.

    While the module is built, a lock keeps other threads from drawing random numbers: restoring the random state would
    undo their draws.
    """
    with PROCESS_STATE, torch.random.fork_rng(devices=()):
        module = build_on_meta(lambda: _module(build()))
    return module.float().eval().requires_grad_(False)


def _module(made: object) -> nn.Module:
    assert isinstance(made, nn.Module)
    return made
