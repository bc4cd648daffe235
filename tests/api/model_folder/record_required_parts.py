"""Record which tensors every model of each class of transformers has: ckptsurgeon/api/model_folder/weights/required_parts.jsonl.

    python -m tests.api.model_folder.record_required_parts FOLDER [TYPE …]

FOLDER is the one of ``make architectures``. A line is a model type: all patterns of keys ("#" is a number) that its classes can
have, which are tied to which,
and for each class, for each form in which it is saved, the patterns that are always there. What a configuration can turn
off is found by building two classes of each type again with one field changed at a time, and is never required.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptsurgeon.api.model_folder.weights import required_parts
from ckptsurgeon.api.model_folder.weights.required_parts import BUFFER, pattern_of

from .architectures import built, classes, corpus, described, made

OUTPUT = Path(required_parts.__file__).with_name("required_parts.jsonl")
DEPTH = 2
KINDS = ("layer_types", "block_type", "block_types")
"""The ends of the names of fields that list a kind for each layer; the default may be all of one kind."""
NO_SWITCH = (
    "size", "dim", "heads", "_id", "token", "dropout", "prob", "layers", "depth", "eps", "std", "rope", "theta", "length", "output_",
    "return_dict", "use_cache", "label", "torchscript", "checkpointing", "_range", "_factor", "channels", "kernel", "stride", "scal",
    "position_embeddings", "pretraining_tp", "is_encoder_decoder", "topk", "per_tok", "n_group", "num_experts",
    "num_local_experts", "n_routed_experts", "moe_num_experts",
)  # fmt: skip
"""Words in the names of fields that are sizes, numbers or ways of computing, and take no tensor away."""
IGNORED = "_keys_to_ignore_on_load_missing"
OF_MASKS = re.compile(r"masked_spec_embed$")
"""There only if a probability is above zero."""
MOST = 0.5
"""The share of patterns above which a changed field is taken to have made another network."""


def variants(config: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield fields of a configuration, nested ones too, with the value that turns off what they turn on, or the reverse."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and name.endswith(KINDS):
            kinds = dict.fromkeys([*kinds_of_layers(), *value])
            yield from (((name,), [kind] * len(value)) for kind in kinds if {kind} != set(value))
        elif name.startswith("_") or any(word in name for word in NO_SWITCH):
            continue
        elif hasattr(value, "to_diff_dict"):
            yield from (((name, *path), other) for path, other in variants(value))
        elif isinstance(value, bool):
            yield (name,), not value
        elif isinstance(value, (int, list)) and value:
            yield (name,), type(value)()


def kinds_of_layers() -> tuple[str, ...]:
    """Return the kinds of layers that any configuration may name."""
    from transformers import configuration_utils

    return tuple(configuration_utils.ALLOWED_LAYER_TYPES)


def keys_of(kind: Any, path: tuple[str, ...] = (), other: Any = None) -> tuple[set[str], list[set[str]]]:
    """Return the patterns of a model in memory, and in the forms without ties in which it is saved."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.initialization import no_init_weights

    config = made(kind.config_class, DEPTH)
    holder = config
    for name in path[:-1]:
        holder = getattr(holder, name)
    if path:
        setattr(holder, path[-1], other)
    with torch.device("meta"), no_init_weights():
        model = kind(config)
    state, tied = model.state_dict(), getattr(model, "all_tied_weights_keys", {})
    untied = {key: one for key, one in state.items() if key not in tied}
    saved = dict(untied)
    with suppress(Exception):
        saved = revert_weight_conversion(model, dict(untied))
    return patterns(described(state, {})), [patterns(untied), patterns(saved)]


def patterns(keys: Iterable[str]) -> set[str]:
    return {pattern_of(key) for key in keys}


def optional(kind: Any) -> tuple[set[str], set[str]]:
    """Return what some field of the configuration takes away, and all that some field adds."""
    known, forms = keys_of(kind)
    gone, added, by_kinds = set[str](), set[str](), [forms]
    for path, other in variants(made(kind.config_class, DEPTH)):
        with suppress(Exception):
            everything, changed = keys_of(kind, path, other)
            added |= everything
            if path[-1].endswith(KINDS):
                by_kinds.append(changed)
            for before, after in zip(forms, changed, strict=True):
                if len(before - after) <= MOST * len(before):
                    gone |= before - after
    for each in zip(*by_kinds, strict=True):  # a kind of layer has what others lack
        gone |= set[str]().union(*each) - each[0].intersection(*each)
    return gone, added | known


def line(kind: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is recorded of a model type."""
    import transformers

    forms, known, ties = dict[str, list[set[str]]](), set[str](), set[tuple[str, str]]()
    for one in entries:
        if "fault" in one:
            continue
        first, *_, last = [one["states"][0], *one["states"]]
        ties |= {(pattern_of(key), pattern_of(tied)) for key, (_, _, tied) in first.items() if tied}
        known.update(*map(patterns, one["states"]))
        untied = patterns(key for key, (_, _, tied) in first.items() if not tied)
        found = [untied, patterns(last) if len(one["states"]) > 1 else untied]
        before = forms.setdefault(one["class"], found)
        forms[one["class"]] = [a & b for a, b in zip(before, found, strict=True)]
    gone = set[str]()
    largest = sorted(forms, key=lambda name: -len(forms[name][0]))[:1]
    for name in dict.fromkeys([*largest, *(one for one in forms if one.endswith("Model"))][:2]):
        with suppress(Exception):
            taken, added = optional(getattr(transformers, name))
            gone |= taken
            known |= added
        gc.collect()
    tails = {tail_of(one) for one in gone}
    every = sorted(known)
    number = {one: at for at, one in enumerate(every)}
    classes = {}
    for name, found in sorted(forms.items()):
        ignored = re.compile("|".join(getattr(getattr(transformers, name), IGNORED, None) or ["(?!)"]))
        always = [
            {one for one in form if tail_of(one) not in tails and not ignored.search(one)} for form in unique(found)
        ]
        classes[name] = [
            ranges(sorted(number[one] for one in form if not OF_MASKS.search(one) and not BUFFER.search(one)))
            for form in always
        ]
    aliases = sorted([number[key], number[source]] for key, source in ties)
    return {"type": kind, "keys": front_coded(every), "ties": aliases, "classes": classes}


def front_coded(keys: Iterable[str]) -> list[Any]:
    """Return sorted keys as the number of letters that each shares with the one before, and its rest."""
    found: list[Any] = []
    before = ""
    for key in keys:
        shared = next(
            (at for at, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key))
        )
        found += [shared, key[shared:]]
        before = key
    return found


def ranges(numbers: Iterable[int]) -> list[int]:
    """Return sorted numbers as the first one and the one behind the last of each range."""
    found: list[int] = []
    for number in numbers:
        if found and found[-1] == number:
            found[-1] += 1
        else:
            found += [number, number + 1]
    return found


def made_of(kind: str) -> list[dict[str, Any]]:
    """Return the architectures of a type, built now."""
    return list(built(classes()[kind]))


def tail_of(pattern: str) -> str:
    """Return the last three segments of a pattern: a module and what holds it, whatever prefix a class gives it."""
    return ".".join(pattern.split(".")[-3:])


def unique(forms: list[set[str]]) -> list[set[str]]:
    return [one for at, one in enumerate(forms) if one not in forms[:at]]


def main() -> None:
    """Write the lines of all types, or print those of the types that are named."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    entries = dict[str, list[dict[str, Any]]]()
    for kind, one in corpus(Path(sys.argv[1]), sys.argv[2:]):
        entries.setdefault(kind, []).append(one)
    lines = []
    for kind, found in sorted(entries.items()):
        print(kind, file=sys.stderr, flush=True)
        lines.append(json.dumps(line(kind, found), separators=(",", ":")))
    if sys.argv[2:]:
        print("\n".join(lines))
    else:
        OUTPUT.write_text("\n".join([json.dumps({"transformers": transformers.__version__}), *lines]) + "\n")


if __name__ == "__main__":
    main()
