"""Opens adapters: folders of PEFT or mlx-lm, and single files with kohya's, diffusers' or ComfyUI's key names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import checkpoint_of, open_checkpoint, place_of
from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS
from ...engine.prefetch import fetch_keys
from ...errors import CheckpointError, ConfigError, FormatError, SourceError
from ...formats.base.header import FilePrint
from ...methods.lora.adapter import Adapter
from ...methods.lora.composed import COMPOSED
from ...methods.lora.config import AdapterConfig, parse_config, refusal_of
from ...methods.lora.expert_stack import is_stack
from ...methods.lora.kind_config import TYPES, lora_fields
from ...methods.lora.kinds import MERGED
from ...methods.lora.mlx import TRANSPOSED, check_mlx, is_mlx, read_mlx
from ...methods.lora.reading import Excluded, read_adapter
from ...planning.lora_merge.expert_stacks import has_stacks, stack_modules
from ...planning.lora_merge.fitting import AdapterView
from ...planning.lora_output.stacked_experts import single_experts, with_layers_only
from ...storage.json_text import read_json
from ...storage.read.base import File, Source
from ...storage.read.uri import open_source
from ...tensors.info import TensorInfo
from ...util.text import brief_repr, escape
from ..inputs.argument_types import CheckpointLike
from ..inputs.inputs import plan_source, view_of
from ..inputs.operations import operate
from .adapter_files import BYTES, MLX_WEIGHTS, configuration_of, has_configuration
from .recorded_alpha import recorded_alpha_notes

__all__ = ["METADATA", "KeptStacks", "open_adapter"]

ALPHA = ".alpha"
"""The suffix of the keys with the alpha values in files of kohya and diffusers."""

TAKEN = {(): "LORA", COMPOSED: "LORA, LOHA and LOKR", MERGED: "LORA, LOHA, LOKR and OFT"}
"""{the argument ``methods`` of ``open_adapter``: PEFT's names of the kinds of adapters that can be used}"""

METADATA = "lora_adapter_metadata"
"""The metadata entry in which diffusers stores the adapter configuration of each model of a pipeline."""

KeptStacks = Callable[[Mapping[str, Any], Collection[str]], Collection[str]]
"""A function that returns the parameters of stacked experts in a configuration that are not read as single experts.

Its second argument are names of the model: the keys of its base, or modules of another adapter of it.
"""


def open_adapter(
    given: CheckpointLike,
    name: str,
    weight: float,
    opened: list[Checkpoint],
    *,
    methods: tuple[str, ...] = (),
    excluded: Excluded | None = None,
    base: Mapping[str, TensorInfo] | None = None,
    kept_stacks: KeptStacks | None = None,
    names: Collection[str] = (),
) -> tuple[AdapterView, str]:
    """Return an opened adapter and the path of its adapter_config.json; append its checkpoint to ``opened``.

    The path is '' if the adapter is remote or in memory, or has no configuration. ``name`` is the adapter's name in
    messages, and ``weight`` its weight in the sum. If ``methods`` is ``COMPOSED``, it may be a LoHa or LoKr; if it is
    ``MERGED``, also an OFT, or a decomposition with a core. Modules that are ``excluded`` are not checked. ``base`` are
    the tensors of the base, if it is open: an adapter of stacked experts changes the base's stacks, or, if the base has
    none, gets the names of its single experts. ``kept_stacks`` says whether it stays an adapter of stacks without a
    base; ``names`` of the model show the names of its single experts then. Raises SourceError or FormatError if
    ``given`` is not an adapter, ConfigError if it is an adapter of a kind that cannot be merged.
    """
    checkpoint, config = _opened(given)
    opened.append(checkpoint)
    data, held = _configuration(config) if config is not None else (None, ())
    here = config.uri if config is not None and "://" not in config.uri else ""
    if isinstance(data, dict) and is_mlx(data):
        scale = check_mlx(checkpoint, data, name)
        opened[-1] = operate([checkpoint], TRANSPOSED)[0].checkpoint
        source = replace(plan_source(name, opened[-1], operations=TRANSPOSED), beside=held)
        return AdapterView(view_of(source, opened[-1]), read_mlx(opened[-1], scale, name), weight), here
    shapes = {key: info.shape for key, info in (base or {}).items()}
    single, whole = None, data if isinstance(data, dict) and has_stacks(data, shapes) else None
    if kept_stacks is not None and isinstance(data, dict) and kept_stacks(data, names):
        whole = data
    if whole is not None:
        data = with_layers_only(whole)
    elif config and isinstance(data, dict):
        single = single_experts(checkpoint, data, config.uri, names or shapes)
    rows = single.operations if single is not None else ()
    if single is not None:
        data, checkpoint = dict(single.config), operate([checkpoint], rows)[0].checkpoint
        opened[-1] = checkpoint
    fetch_keys(checkpoint, [key for key in checkpoint if key.endswith(ALPHA)])
    fields = _fields(data, methods, config.uri) if config is not None else None
    said = parse_config(fields, config.uri, TAKEN[methods]) if config is not None else None
    if said is not None and whole is not None:
        said = replace(said, data=whole)
    adapter = read_adapter(
        checkpoint,
        said,
        name,
        lambda key: _number(checkpoint, key),
        _within(checkpoint, methods),
        methods=methods,
        excluded=excluded,
        stacks=stack_modules(checkpoint, whole, said, config.uri, shapes) if whole and config and said else (),
    )
    if config is not None and data is not None and methods:
        _check_keys(adapter, data, config.uri)
    if config is None:
        adapter = replace(adapter, notes=(*adapter.notes, *recorded_alpha_notes(checkpoint)))
    if single is not None:
        adapter = replace(adapter, notes=(single.note, *adapter.notes))
    source = replace(plan_source(name, checkpoint, operations=rows), beside=held)
    return AdapterView(view_of(source, checkpoint), adapter, weight), here


def _opened(given: CheckpointLike) -> tuple[Checkpoint, File | None]:
    """Return an adapter's open weights, and the file of its configuration (None if there is no such file)."""
    place = place_of(given)
    if not place:
        return open_checkpoint(given, unwrap=False, called="adapter"), None
    weights, config = _files(open_source(place), place)
    if not isinstance(given, Checkpoint):
        return checkpoint_of(weights, weights.uri, unwrap=False), config
    weights.close()
    return given.lent(unwrap=False), config


def _files(source: Source, path: str) -> tuple[File, File | None]:
    """Return the file with the weights and the file with the configuration.

    ``source`` is a folder or a single file. The second result is None if there is no configuration in the folder of a
    single file. Raises SourceError if a given folder lacks one of the two files.
    """
    if isinstance(source, File):
        return source, configuration_of(source.folder()) if has_configuration(source) else None
    names = source.names()
    weights = [one for one in (*ADAPTER_WEIGHTS, MLX_WEIGHTS) if one in names]
    if ADAPTER not in names:
        raise SourceError(
            f"{escape(path)} has no {ADAPTER}.", hint="Give a folder that PEFT wrote, or the file of an adapter."
        )
    if not weights:
        raise SourceError(
            f"{escape(path)} has no {' or '.join(ADAPTER_WEIGHTS)}.",
            hint="Save the adapter again with save_pretrained, or give the file with its weights.",
        )
    return source.file(weights[0]), configuration_of(source)


def _configuration(file: File) -> tuple[Any, tuple[FilePrint, ...]]:
    """Return an adapter's configuration as parsed JSON, and a tuple with the fingerprint of its file, for the plan.

    Closes the file. Raises ConfigError if it is not valid JSON.
    """
    try:
        given = file.read(0, min(BYTES, file.size))
        data = read_json(given)
    except ValueError as error:
        raise ConfigError(
            f"{escape(file.uri)} is not valid JSON: {escape(str(error))}.",
            hint="Save the adapter again, or fetch this file again.",
        ) from error
    finally:
        file.close()
    return data, (FilePrint(ADAPTER, len(given), hashlib.sha256(given).hexdigest()),)


def _check_keys(adapter: Adapter, data: Mapping[str, Any], uri: str) -> None:
    """Raise ConfigError if a module's kind (LoRA, LoHa, LoKr) is not the one in the configuration ``data``.

    ``uri`` is the address of the configuration, for the message.
    """
    kind = data["peft_type"]
    modules = (one for one in adapter.modules if not is_stack(one.kind))
    other = next((one.a for one in modules if one.kind.partition(" ")[0] != TYPES.get(kind, "")), "")
    if other:
        raise ConfigError(
            f"{escape(uri)} has the peft_type {kind}, but {escape(adapter.name)} has the key {escape(other)}, which "
            "adapters of this type do not have.",
            hint="Put the adapter_config.json that was saved with these weights into their folder.",
        )


def _number(checkpoint: Checkpoint, key: str) -> float:
    """Return the value of a tensor with one element, such as kohya's ``alpha``.

    These are the only values of an adapter that are read for a plan. Raises FormatError if the value is not finite.
    """
    from ...engine.compute.reading import read_number

    number = read_number(checkpoint, key)
    if number is None:
        raise FormatError(
            f"the tensor {escape(key)} of {escape(checkpoint.path)} has values that are not finite (NaN or inf).",
            rule="alpha",
        )
    return number


def _fields(data: Any, methods: tuple[str, ...], name: str) -> Any:
    """Return the adapter configuration ``data``; if its type is one of ``methods``, with the fields of a LoRA.

    The types are LoHa, LoKr and, if ``methods`` is ``MERGED``, OFT. Any other configuration is returned unchanged.
    ``name`` is the name of the configuration in messages.
    """
    kind = str(data.get("peft_type")) if isinstance(data, Mapping) else ""
    taken = bool(methods) and kind in TYPES and (kind != "OFT" or methods == MERGED)
    return lora_fields(data, name) if taken else data


def _within(checkpoint: Checkpoint, methods: tuple[str, ...]) -> Mapping[str, AdapterConfig]:
    """Return {component of a pipeline (``unet``): adapter configuration} from the metadata of a diffusers file.

    If the file is for one model without a name, the key is ''. The result is {} if the metadata have no configuration.
    With ``methods``, the configurations may be for LoHa or LoKr. Raises ConfigError if the metadata are damaged, or are
    those of an adapter that ckpt cannot merge.
    """
    text = checkpoint.metadata.get(METADATA)
    if text is None:
        return {}
    name = f"{METADATA} of {checkpoint.path}"
    try:
        parts = _parts(read_json(text))
        if methods:
            parts = {part: _fields(said, methods, name) for part, said in parts.items()}
        other = next((said for said in parts.values() if said["peft_type"] != "LORA" or refusal_of(said, name)), None)
        found = (
            {part: parse_config(said, name, TAKEN[methods]) for part, said in parts.items()} if other is None else {}
        )
    except (ValueError, TypeError, CheckpointError) as error:
        raise ConfigError(
            f"{escape(name)} is damaged: {brief_repr(str(error), 200)}.",
            hint="Save the adapter again, or fetch this file again.",
        ) from error
    if other is not None:
        parse_config(other, name, TAKEN[methods])  # raises the error
    return found


def _parts(data: Any) -> dict[str, Any]:
    """Return {component of a pipeline: its configuration} from the metadata that diffusers writes.

    The fields there have names such as ``unet.r``. If the metadata has the configuration of a single model, its key is
    ''.
    """
    if "peft_type" in data:  # of save_lora_adapter, which writes the adapter of one model
        return {"": dict(data)}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in dict(data).items():
        component, _, setting = str(key).partition(".")
        parts.setdefault(component, {"peft_type": "LORA"})[setting] = value
    return parts
