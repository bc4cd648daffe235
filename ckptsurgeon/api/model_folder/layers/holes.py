"""Notes on tensors that some layers lack, or that differ in shape from the same tensors of other layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

from ....planning.merge.layers import INPUT, LayerList, layers_of, lists_with_gaps, numbered_lists
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape, shape_text, together
from ..weights.shape_checks import DescribedTensor, is_number
from .experts import expert_gap_notes

__all__ = ["STACKS", "gap_notes", "hole_notes", "is_stack", "layer_gap_notes", "pairs_in_layers", "uneven_notes"]

STACKS = ("block", "blocks", "h", "layer", "layers")
"""Names of the modules that contain the layers of a model."""
OWN_LAYERS = ("block_configs", "per_layer_config")
"""Fields of config.json that show that any layer of the model may lack any module."""
ALIKE = frozenset((
    "bart", "bert", "bloom", "camembert", "cohere", "distilbert", "electra", "falcon", "gemma", "gemma2", "gemma3_text",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "marian", "mbart", "mistral", "olmo", "olmo2", "opt",
    "phi", "phi3", "qwen2", "qwen3", "roberta", "starcoder2", "vit", "whisper", "xlm-roberta",
))  # fmt: skip
"""Model types whose layers all have the same tensors."""
OF_KINDS = frozenset((
    "afmoe", "apertus", "arcee", "bamba", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe",
    "exaone4", "exaone_moe", "falcon_h1", "flex_olmo", "glm", "glm4", "glm4_moe", "gpt_oss", "granitemoe",
    "granitemoehybrid", "granitemoeshared", "jamba", "lfm2", "minimax_m2", "mixtral", "olmo3", "olmoe", "phimoe",
    "qwen2_moe", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "stablelm",
))  # fmt: skip
"""Model types with a few kinds of layers, in which all layers with the same module have the same tensors in it."""
FEWEST = 4
"""A tensor that a single layer lacks is reported only if the model has at least this many layers.

With 3 layers, a tensor that belongs to every second layer may be missing in only one of them.
"""
VALUES = (".weight", ".bias")
"""Suffixes of the tensors of a plain module; quantised modules also have scales and the like."""
DIRECT = ("_bias", ".sinks")
"""Suffixes of tensors that are parameters of the module itself, not of a linear layer in it."""
ESSENTIAL = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
"""Sets of projections: a module that has some projections of a set normally has all projections of this set."""
OUTPUTS = ("o_proj", "out_proj", "gate_proj", "up_proj", "down_proj")
"""The projections in ``ESSENTIAL`` that every layer has of its own: layers never share them."""
_PROJECTION = re.compile(r"(?:self_attn|mlp)\.\w+_proj(?=\.|_)|(?:self_attn|mlp)\.\w+_proj$")
_OF_EXPERTS = re.compile(r"\.(?:experts|switch_mlp)\.|\.(?:gate|router)\.weight$")
_ROUTER = re.compile(r"\.(?:gate|router)(?:\.\w+)?\.weight$")
_NUMBER = re.compile(r"\.\d+\.")
_CODED = re.compile(
    r"_(?:blocks|scales|scale_inv|scale|packed|absmax|state)$|\.(?:q|k|v|input|output|weight)?_?scale\w*$"
    r"|\.(?:qweight|qzeros|scales|biases|g_idx|qweight_type|SCB|weight_\w+)$"
)
"""Matches scales, codes and the like of quantised tensors, which other checks report."""


@notes_of(NoteKind.MISSING_TENSORS)
def hole_notes(
    lists: Sequence[LayerList], gaps: Mapping[str, Collection[int]], keys: Sequence[str], config: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a note on a layer that lacks tensors that the other layers of its kind have.

    ``lists`` are the lists of numbered modules in ``keys`` whose indices have no gaps. ``gaps`` maps the prefix of each
    other list to the indices that exist.

    In many architectures, layers differ on purpose (the first, the last, every second one, layers with attention): each
    kind of layer has tensors that the other kinds lack. So missing tensors are a fault only if a single layer lacks
    them, and if this layer has no tensor that the other layers lack.
    """
    if not config or any(name in config for name in OWN_LAYERS):
        return
    kind = config.get("model_type")
    for one in (*lists, *(LayerList(prefix, len(numbers)) for prefix, numbers in gaps.items())):
        if is_stack(one.prefix) and one.count > 1:
            layers = {number: dict.fromkeys(rests) for number, rests in layers_of(one, keys).items()}
            if kind in ALIKE:
                found = _lacking(layers)
            else:
                found = (_of_kinds(layers) if kind in OF_KINDS else _essential(layers)) or _lone(layers)
            if found:
                number = min(found)
                others = count(len(found) - 1, "other layer")
                more = f"; {others} {'lacks' if len(found) == 2 else 'lack'} tensors, too" if len(found) > 1 else ""
                lacks = f"{escape(one.key(number, ''))} lacks {together(found[number], 3)}"
                have = f"which {'other' if more else 'the other'} layers have"
                yield f"{lacks}, {have}: transformers initialises what is missing{more}"


def gap_notes(keys: Sequence[str]) -> Iterator[Note]:
    """Yield notes on gaps in the indices of layers and experts, for a checkpoint without a configuration."""
    yield from layer_gap_notes(keys)
    yield from _first_layer_notes(keys)
    yield from expert_gap_notes(keys)


@notes_of(NoteKind.LAYER_GAP)
def layer_gap_notes(keys: Sequence[str]) -> Iterator[str]:
    """Yield a note if layer indices have gaps, for a checkpoint whose number of layers is not known.

    There is a note only if most layers are alike. Other gaps are normal: in an ``nn.Sequential``, modules without
    weights have an index as well.
    """
    for prefix, numbers in lists_with_gaps(keys).items():
        first, last = min(numbers), max(numbers)
        lost = last - first + 1 - len(numbers)
        if not is_stack(prefix) or not lost or len(numbers) < FEWEST:
            continue
        if _are_alike(prefix, numbers, keys):
            more = f" and {lost - 1} more" if lost > 1 else ""
            missing = next(number for number in range(first, last) if number not in numbers)
            yield f"{escape(prefix)} has layers {first} to {last}, but no tensor of layer {missing}{more}"


@notes_of(NoteKind.LAYERS_FROM_ONE)
def _first_layer_notes(keys: Sequence[str]) -> Iterator[str]:
    """Yield a note if the layers of a checkpoint with embeddings begin at 1, as after a wrong renaming.

    Without embeddings, the checkpoint may be a part of a model on purpose.
    """
    lists = {prefix: numbers for prefix, numbers in lists_with_gaps(keys).items() if is_stack(prefix)}
    for prefix, numbers in lists.items():
        is_shifted = min(numbers) == 1 and max(numbers) == len(numbers) >= FEWEST
        if is_shifted and _are_alike(prefix, numbers, keys) and any(map(INPUT.search, keys)):
            yield f"{escape(prefix)} has layers 1 to {max(numbers)}, but no tensor of layer 0"


def _are_alike(prefix: str, numbers: Set[int], keys: Sequence[str]) -> bool:
    """Return whether most layers have the same tensors, several of them in submodules."""
    layers = layers_of(LayerList(prefix, len(numbers)), keys).values()
    usual, alike = Counter(frozenset(rests) for rests in layers).most_common(1)[0]
    return alike * 2 > len(numbers) and sum("." in rest for rest in usual) >= FEWEST


@notes_of(NoteKind.OTHER)
def uneven_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a tensor differs in shape between two layers of a model whose layers should all be alike.

    Of quantised tensors, only the number of rows is compared: the number of columns depends on the bits.
    """
    if config.get("model_type") not in ALIKE:
        return
    plain = {one.key: f"is {shape_text(one.shape)}" for one in tensors if one.key.endswith(VALUES) and is_number(one)}
    for sizes in (plain, _rows_of_codes(tensors, config)):
        for first, other in pairs_in_layers(sizes):
            if sizes[first] == sizes[other]:
                continue
            why = f"layers of {escape(str(config['model_type']))} are alike, so one of the two is from another model"
            yield f"{escape(first)} {sizes[first]}, but {escape(other)} {sizes[other]}: {why}"
            return


def pairs_in_layers(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key in the first layer, key in a later layer) for tensors that have the same name in both layers.

    The first layer is the first that has a tensor of this name. Each tensor of a later layer is in one pair.
    """
    for one in numbered_lists(list(keys)):
        first: dict[str, str] = {}
        for number, rests in layers_of(one, keys).items() if is_stack(one.prefix) else ():
            for rest in rests:
                key = one.key(number, rest)
                other = first.setdefault(rest, key)
                if key != other:
                    yield other, key


def _rows_of_codes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Return {key that a quantised tensor would have if stored plainly: text with its number of rows}.

    If headers do not contain the shape, the text has the number of parameters instead.
    """
    from ..codes.logical_tensors import shapes_of_codes

    shapes = shapes_of_codes(tensors, config)
    return {key: f"has {count(shape[0], 'row' if shape[1:] else 'parameter')}" for key, shape in shapes.items()}


def is_stack(prefix: str) -> bool:
    """Return whether the numbered modules below a prefix are the layers of a model, not modules inside a layer."""
    if prefix.endswith("reassemble_stage.layers"):  # in DPT, these layers differ: each resizes by another factor
        return False
    return prefix.rpartition(".")[2] in STACKS and not any(map(str.isdigit, prefix.split(".")))


def _lacking(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return {index of a layer: tensors that it lacks, although at least half of the layers have them}.

    ``layers`` has the names of each layer's tensors, without the prefix of the layer.
    """
    counts = Counter(rest for rests in layers.values() for rest in rests)
    usual = [rest for rest, number in counts.items() if number * 2 >= len(layers)]
    found = {number: _lost(rests, usual, counts) for number, rests in layers.items()}
    return {number: lost for number, lost in found.items() if lost}


def _lone(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return {index of a layer: tensors that only this layer lacks}, if there is exactly one such layer.

    The result is empty if there are several such layers, or if the layer is the first or the last.
    """
    if len(layers) < FEWEST:
        return {}
    counts = Counter(rest for rests in layers.values() for rest in rests)
    usual = [rest for rest, number in counts.items() if number == len(layers) - 1]
    found = {number: [rest for rest in usual if rest not in rests] for number, rests in layers.items()}
    odd = [number for number, lost in found.items() if lost]
    if len(odd) != 1 or odd[0] in (min(layers), max(layers)):
        return {}
    lost = _lost(layers[odd[0]], found[odd[0]], counts)
    return {odd[0]: lost} if lost else {}


def _lost(own: Collection[str], usual: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Return the tensors in ``usual`` (the tensors that most layers have) that a layer lacks.

    ``own`` has the tensors of the layer. ``counts`` has, for each tensor, the number of layers that have it. The result
    is empty if the layer has a tensor that no other layer has: then the layer is of another kind.
    """
    if any(counts[rest] == 1 for rest in own):
        return []
    modules = {rest[:place] for rest in own for place, letter in enumerate(rest) if letter == "."}
    return [
        rest
        for rest in usual
        if rest not in own
        and not _is_coded(rest, own)
        and (f".{rest}".endswith(VALUES) or rest.rpartition(".")[0] not in modules)
        and not any(rest.startswith(f"{other}.") for other in own)
    ]


def _is_coded(rest: str, own: Collection[str]) -> bool:
    """Return whether a layer has codes instead of the weight with the name ``rest``.

    This is the case if the weight's module has any tensor except a bias. ``own`` has the names of the layer's tensors.
    """
    module, _, leaf = rest.rpartition(".")
    names = {one.removeprefix(f"{module}.") for one in own if one.startswith(f"{module}.")}
    return leaf == "weight" and any("." not in one and one != "bias" for one in names)


def _of_kinds(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return {index of a layer: tensors that one of its modules lacks, although the module has them in other layers}.

    For each module, only layers with this module are compared. A tensor is reported if at least half of these layers
    have it. An MLP with a router or experts counts as another module than an MLP without them, even if both have the
    same name.
    """
    found: dict[int, list[str]] = {}
    kinds = {number: _modules(rests) for number, rests in layers.items()}
    for kind in dict.fromkeys(kind for modules in kinds.values() for kind in modules):
        alike = {number: modules[kind] for number, modules in kinds.items() if kind in modules}
        counts = Counter(rest for rests in alike.values() for rest in rests)
        usual = [rest for rest, number in counts.items() if number * 2 >= len(alike)]
        for number, own in alike.items():
            lost = [rest for rest in usual if not _is_elsewhere(rest, own)]
            if lost:
                found.setdefault(number, []).extend(lost)
    return found


def _modules(rests: Collection[str]) -> dict[tuple[str, bool], dict[str, None]]:
    """Return the tensors of a layer, grouped by (name of the module, whether the module has experts).

    ``rests`` are the names of the tensors in the layer. Tensors of modules without submodules (norms) are under the
    name ''.
    """
    found: dict[str, dict[str, None]] = {"": {}}
    for rest in rests:
        module, pattern = _module_and_pattern(rest)
        if module or rest.endswith(VALUES):
            found.setdefault(module, {})[pattern] = None
    return {(name, any(map(_OF_EXPERTS.search, own))): own for name, own in found.items()}


@lru_cache(4096)  # names repeat in all layers, and a layer may have a thousand tensors of experts
def _module_and_pattern(rest: str) -> tuple[str, str]:
    module = rest.partition(".")[0] if rest.count(".") + rest.endswith(DIRECT) > 1 else ""
    return module, _NUMBER.sub(".*.", rest)


def _is_elsewhere(rest: str, own: Collection[str]) -> bool:
    """Return whether a tensor need not be reported as missing: it has another form, or other notes report it.

    ``rest`` is the tensor's name in the layer, and ``own`` has the names of the layer's tensors. Other notes report
    routers and parts of quantised tensors.
    """
    if rest in own or _ROUTER.search(rest):
        return True
    module, _, leaf = rest.rpartition(".")
    if leaf == "bias" or rest.endswith(DIRECT):
        return False
    if leaf == "weight":
        return any(one.startswith(f"{module}.") and one != f"{module}.bias" for one in own)
    if _CODED.search(rest):
        return True
    return any(one.startswith((f"{rest}.", f"{rest}_")) and one != f"{rest}_bias" for one in own)


def _essential(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return {index of a layer: projections that a module lacks although it has the other projections of a set}.

    The sets are in ``ESSENTIAL``. Only the output projection of attention and the three matrices of an MLP, plain or
    quantised, are reported, because layers may share the projections of queries, keys and values. A projection is
    reported only if most layers with the other projections have it.
    """
    found: dict[int, list[str]] = {}
    names = {number: {rest[: match.end()] for rest in rests if (match := _PROJECTION.match(rest))}
             for number, rests in layers.items()}  # fmt: skip
    for rests in ESSENTIAL:
        for lost in rests:
            others = {rest for rest in rests if rest != lost}
            alike = [number for number, own in names.items() if others <= own]
            odd = [number for number in alike if lost not in names[number]]
            if odd and len(odd) * 2 < len(alike) and lost.endswith(OUTPUTS):
                for number in odd:
                    found.setdefault(number, []).append(f"{lost}.weight")
    return found
