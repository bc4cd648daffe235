"""Trains low-rank adapters instead of the weights: PEFT adds them to a model, and their files have PEFT's format.

https://arxiv.org/abs/2106.09685; ``save_pretrained`` in https://github.com/huggingface/peft defines the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError, FormatError, SourceError
from ...util.did_you_mean import close_names
from ...util.text import escape, listing
from ..config.imports import require_package
from ..config.settings import ALL_LINEAR, Lora
from ..system.random_state import preserve_random_state, seed_all

__all__ = ["adapter_config", "adapter_tensors", "add_adapters", "check_lora", "load_adapter"]

MOST = 300
"""The maximum number of module names that are compared with a misspelt name."""
PREFIX = "base_model.model."
"""The prefix that PEFT puts before a model's keys in its files."""


def _modules_hint(keys: Collection[str]) -> str:
    """Return a hint that lists the names of a model's modules with a weight; ``keys`` are the keys of the model.

    A name is the last part of a module's path. Equal names are listed once.
    """
    names = [key.rpartition(".")[0].rpartition(".")[2] for key in keys if key.endswith(".weight")]
    named = [name for name in dict.fromkeys(names) if name and not name.isdigit()]
    return f"The model's modules are {listing(named, 8, where='')}." if named else ""


def check_lora(lora: Lora, keys: Collection[str], new: Collection[str] = ()) -> None:
    """Raise ConfigError, before anything slow is done, if adapters cannot be trained in a model with these ``keys``.

    The reasons are: PEFT is not installed, a name in ``lora`` matches no module, or a tensor in ``new`` would never be
    trained. ``new`` are the keys of tensors that are in no source of the initial weights.
    """
    _package()
    paths = {parent for key in keys for parent in _parents(key.rpartition(".")[0])}
    for field, given in (("targets", lora.targets), ("save", lora.save)):
        for name in given:
            if name != ALL_LINEAR and not any(map(_of_name(name), paths)):
                near = close_names(name, sorted({path.rpartition(".")[2] for path in paths}), MOST)
                raise ConfigError(
                    f"train.lora.{field} has {escape(name)}, but no module of the model has that name.",
                    hint=f"Did you mean {' or '.join(map(escape, near))}?" if near else _modules_hint(keys),
                )
    lost = sorted(
        key
        for key in new
        if not any(_of_name(name)(path) for name in lora.save for path in _parents(key.rpartition(".")[0]))
    )
    if lost:
        raise ConfigError(
            f"with train.lora, tensors that are in no source would stay untrained: {listing(lost, 3, where='')}.",
            hint="List the modules of these tensors in train.lora.save, which trains them as a whole: save: [lm_head].",
            details=lost,
        )


def _of_name(name: str) -> Callable[[str], bool]:
    """Return a function that gets the path of a module, and returns whether PEFT matches this path with ``name``.

    PEFT does so if ``name`` is the path, or the last parts of the path.
    """
    return lambda path: path == name or path.endswith(f".{name}")


def _parents(module: str) -> list[str]:
    """Return the path of a module and the paths of all modules that contain it."""
    words = module.split(".")
    return [".".join(words[:end]) for end in range(len(words), 0, -1)]


def add_adapters(model: nn.Module, lora: Lora, *, seed: int) -> list[str]:
    """Add adapters to a model, drawn with ``seed``; return the keys of all tensors that are not trained after that.

    Buffers are among these keys, because the file of an adapter has no buffers. Raises ConfigError for a module that
    cannot have an adapter.
    """
    device = next(model.parameters()).device
    try:
        with preserve_random_state():
            seed_all(seed)
            _package().inject_adapter_in_model(_config(lora), model)
    except ValueError as error:  # a module that is not a linear layer, convolution or embedding
        raise ConfigError(f"train.lora does not fit the model: {escape(str(error), 300)}") from error
    model.to(device)
    trained = {path for path, one in model.named_parameters(remove_duplicate=False) if one.requires_grad}
    return [key for key in model.state_dict() if key not in trained]


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's adapters, and of the modules that are saved as a whole, by their keys in PEFT.

    The weights of embeddings with an adapter are left out, because they are not trained. By default, PEFT would ask
    transformers which modules are embeddings; this fails for speech models.
    """
    found = _package().get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False
    )
    return {f"{PREFIX}{key}": tensor for key, tensor in found.items()}


def adapter_config(model: nn.Module, base: str) -> bytes:
    """Return the content of an adapter_config.json for a model's adapters; ``base`` is the path of the base's weights.

    The content is the configuration that PEFT keeps in the model. If targets are parameters of stacked experts, PEFT
    has added the names of these parameters and a rank for each.
    """
    config: Any = getattr(model, "peft_config")["default"]  # noqa: B009 (a Module has no such attribute)
    fields = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode("utf-8", "surrogatepass")


def load_adapter(model: nn.Module, path: str) -> None:
    """Load the adapters in the file ``path`` into a model; the file has the keys that ``adapter_tensors`` returns.

    Raises SourceError if the file cannot be read, FormatError if it is damaged, and ConfigError if it has other keys
    than the model's adapters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(path)
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise FormatError(f"{escape(path)} is not a valid safetensors file: {escape(str(error), 200)}.") from error
    own = adapter_tensors(model)
    if own.keys() != values.keys():
        other = sorted(own.keys() ^ values.keys())
        raise ConfigError(
            f"{escape(path)} is an adapter of another model; different keys: {listing(other, 3, where='')}."
        )
    _package().set_peft_model_state_dict(model, {key.removeprefix(PREFIX): one for key, one in values.items()})


def _config(lora: Lora) -> Any:
    targets: Any = ALL_LINEAR if ALL_LINEAR in lora.targets else list(lora.targets)
    return _package().LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank, lora_dropout=lora.dropout,
        target_modules=targets, modules_to_save=list(lora.save) or None,
    )  # fmt: skip


def _package() -> Any:
    return require_package("peft", extra="lora")
