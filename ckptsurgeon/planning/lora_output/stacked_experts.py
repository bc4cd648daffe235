"""Reads a LoRA of stacked experts (PEFT's ``target_parameters``), also as a LoRA of each single expert.

transformers 5 has one parameter for all experts of a layer. PEFT stores the factors A of all experts one below the
other, (experts * rank, in). In the factor B, (out, rank * experts), the columns of all experts for one rank are side by
side. A wrapper of a second parameter of the same module is inside the first, as ``base_layer``. Files of transformers
have single experts; gpt-oss has none, since its gate and up alternate in the rows of one matrix: ``lora merge`` changes
its stacks as they are (``planning/lora_merge/expert_stacks.py``). ``lora resize`` and ``lora concat`` keep all stacks.
https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py (``ParamWrapper``)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ...methods.lora.config import AdapterConfig, parse_config
from ...tensors.info import TensorInfo
from ...util.text import count, escape, shape_text
from ..keys.spelling import numberless, quoted

__all__ = [
    "FIRST",
    "ExpertStack",
    "SingleExperts",
    "expert_stacks",
    "inseparable_stacks",
    "is_of",
    "known_experts",
    "nested_key",
    "selected_fields",
    "selects_matrix",
    "single_experts",
    "target_stacks",
    "with_layers_only",
]

_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+\.experts)((?:\.base_layer)?)\.lora_([AB])\.weight", re.DOTALL)
FIRST, _LAST = "gate_up_proj", "down_proj"
"""The names of parameters of stacked experts, in the order of transformers' modules."""
_PARTS = {FIRST: ("gate_proj", "up_proj"), _LAST: (_LAST,)}
"""{name of a parameter of stacked experts: names of the matrices of a single expert}"""
_OF_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", _LAST: "w2"}
"""{name of a matrix of an expert: its name in Mixtral}"""
_MODULE, _MODULE_OF_MIXTRAL = "mlp.experts", "block_sparse_moe.experts"
_ROUTER, _ROUTER_OF_MIXTRAL = "mlp.gate", "block_sparse_moe.gate"
_FIELD, _WEIGHT = "target_parameters", ".weight"
_STACK_NAME, _ROUTER_NAME = re.compile(r"\bexperts\\?\.(gate_up|down)_proj$"), re.compile(r"\bmlp\\?\.gate$")
"""Match patterns, escaped or not, of ranks and alphas of stacks and routers."""
_OF_WEIGHT = re.compile(r"\\?\.weight$")
_SINGLE = re.compile(r"\.experts\.\d+\.(?:gate|up|down)_proj\b|\.block_sparse_moe\.experts\.\d+\.w[123]\b")
"""Matches the names of single experts that can be written: those of most models, and Mixtral's."""
_QWEN = re.compile(r"qwen3moe|qwen3(?:coder)?\d+ba\d+b")
"""Matches names of models, and of their classes, whose single experts PEFT loads into stacks; so it does for Mixtral.

Into stacks of other models, PEFT 0.21 may load factors of single experts without effect
(``_convert_peft_config_moe`` in peft/utils/transformers_weight_conversion.py).
"""


@dataclass(frozen=True)
class SingleExperts:
    """The ``operations`` that make the factors of single experts, the configuration of these factors, and a note."""

    operations: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class ExpertStack:
    """A parameter of stacked experts, and the keys ``a`` and ``b`` of its factors.

    ``module`` is the name of the module that contains the experts.
    """

    module: str
    parameter: str
    a: str
    b: str
    experts: int
    rank: int
    inputs: int
    outputs: int

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the matrices of a single expert in this stack."""
        return _PARTS[self.parameter]


def single_experts(
    tensors: Mapping[str, TensorInfo], data: Mapping[str, Any], name: str, base: Collection[str] = ()
) -> SingleExperts | None:
    """Return how an adapter of stacked experts becomes an adapter of single experts; None for any other adapter.

    ``tensors`` are the adapter's tensors, ``data`` is its configuration, and ``name`` the name of its file in messages.
    ``base`` are the keys of the base, if it is given, or of an adapter of single experts: they show whether the model
    is a Mixtral, whose experts have other names. Raises FormatError if factors do not fit each other or the
    configuration.
    """
    parameters = target_stacks(data)
    if not parameters or is_of(data, "gptoss"):
        return None
    settings = parse_config({field: value for field, value in data.items() if field != _FIELD}, name)
    stacks = [*expert_stacks(tensors, data, settings, name)]
    if not stacks:
        return None
    single = [key for key in base if _SINGLE.search(key)]
    is_mixtral = any(f".{_MODULE_OF_MIXTRAL}." in key for key in single) if single else is_of(data, "mixtral")
    rows = tuple(row for stack in _alike(stacks) for row in _rows(*stack, is_mixtral=is_mixtral))
    if is_mixtral:
        rows += tuple(_of_routers(tensors))
    experts = count(stacks[0].experts, "expert")
    note = f"the LoRA of stacked experts is read as one of single experts ({experts} in each of its layers)"
    return SingleExperts(rows, _config(data, stacks, settings, is_mixtral=is_mixtral), note)


def is_of(data: Mapping[str, Any], model: str) -> bool:
    """Return whether the name of a model, or of its class, in a configuration contains the word ``model``."""
    return model in _said(data)


def known_experts(data: Mapping[str, Any]) -> bool:
    """Return whether a configuration names a model whose files name single experts as PEFT expects them.

    For other models, stacks of experts must stay stacked: their files may have other names, as those of LFM2 do.
    """
    return is_of(data, "mixtral") or _QWEN.search(_said(data)) is not None


def _said(data: Mapping[str, Any]) -> str:
    """Return the names of a model and of its class in a configuration, without case, hyphens and underscores."""
    said = f"{data.get('auto_mapping')} {data.get('base_model_name_or_path')}"
    return re.sub(r"[-_]", "", said).lower()


def target_stacks(data: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters of stacked experts that ``target_parameters`` of a configuration selects.

    The result is empty if it selects anything else than stacked experts and single matrices.
    """
    given = data.get(_FIELD)
    if not isinstance(given, list) or not all(_parameter(one) or _matrix(one) for one in given):
        return set()
    return {_parameter(one) for one in given} - {""}


def inseparable_stacks(data: Mapping[str, Any], base: Collection[str] = ()) -> set[str]:
    """Return the result of ``target_stacks`` for models whose single experts have no known names, else an empty set.

    ``base`` are the keys of the base, if these may show the names. gpt-oss has no single experts.
    """
    is_known = known_experts(data) or any(map(_SINGLE.search, base))
    return set() if is_known and not is_of(data, "gptoss") else target_stacks(data)


def with_layers_only(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without its stacked experts; single matrices of ``target_parameters`` become modules.

    So do the names of these matrices in the patterns of ranks and alphas.
    """
    targets, matrices = data.get("target_modules") or [], [*filter(None, map(_matrix, data[_FIELD]))]
    patterns = {field: data[field] for field in ("rank_pattern", "alpha_pattern") if isinstance(data.get(field), dict)}
    return {
        **{field: value for field, value in data.items() if field != _FIELD},
        "target_modules": [*targets, *matrices] if isinstance(targets, list) else targets,
        **{
            field: {_OF_WEIGHT.sub("", name) if matrices else name: value for name, value in table.items()}
            for field, table in patterns.items()
        },
    }


def _parameter(name: object) -> str:
    """Return the parameter of stacked experts that an entry of ``target_parameters`` selects; '' for any other."""
    last = name.rpartition(".")[2] if isinstance(name, str) else ""
    return last if last in _PARTS else ""


def _matrix(name: object) -> str:
    """Return the module whose weight an entry of ``target_parameters`` selects, such as a router; '' for any other.

    The factors of such a matrix are those of an ordinary layer, not of stacked experts.
    """
    return name.removesuffix(_WEIGHT) if isinstance(name, str) and name.endswith(_WEIGHT) else ""


def expert_stacks(
    tensors: Mapping[str, TensorInfo], data: Mapping[str, Any], settings: AdapterConfig, name: str
) -> Iterator[ExpertStack]:
    """Yield the stacks of experts that an adapter changes, one for each parameter that it selects in each layer.

    ``data`` is its configuration, ``settings`` that of its layers, and ``name`` the name of the file in messages.
    Raises FormatError if factors do not fit each other or the configuration.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for key in tensors:
        if factor := _FACTOR.fullmatch(key):
            found.setdefault(factor[1], {}).setdefault(factor[2], {})[factor[3]] = key
    for module, wrappers in found.items():
        pairs = [pair for pair in wrappers.values() if {*pair} == {"A", "B"}]
        parameters = _parameters_of(module, data)
        if len(pairs) != len(wrappers) or len(pairs) != len(parameters):
            raise _misfit(module, tensors, [key for pair in wrappers.values() for key in pair.values()], name)
        stacks = [
            _stack(module, parameter, pair, tensors, settings, name)
            for parameter, pair in zip(_ordered(parameters, pairs, tensors), pairs, strict=True)
        ]
        if len({stack.experts for stack in stacks}) > 1:
            ranks = ", ".join(f"{stack.rank} ({stack.parameter})" for stack in stacks)
            keys = [key for pair in pairs for key in pair.values()]
            raise _misfit(
                module, tensors, keys, name, f", for the ranks {ranks}, which give different numbers of experts"
            )
        yield from stacks


def _parameters_of(module: str, data: Mapping[str, Any]) -> set[str]:
    """Return the parameters that ``target_parameters`` selects in a module with experts, as PEFT compares the names."""
    names = [one for one in data[_FIELD] if f".{module}.{_parameter(one)}".endswith(f".{one}")]
    return {_parameter(one) for one in names} - {""} or target_stacks(data)


def nested_key(key: str, *, is_inner: bool) -> str:
    """Return the key of a factor of stacked experts whose wrapper is inside another (``is_inner``), or is not.

    PEFT wraps a module once for each of its parameters: the first parameter gets the innermost wrapper.
    """
    plain = key.replace(".experts.base_layer.lora_", ".experts.lora_")
    return plain.replace(".experts.lora_", ".experts.base_layer.lora_") if is_inner else plain


def selects_matrix(name: str, data: Mapping[str, Any]) -> bool:
    """Return whether ``target_parameters`` of a configuration selects the module ``name``, such as a router."""
    given = data.get(_FIELD) or []
    return any(f".{name}{_WEIGHT}".endswith(f".{one}") for one in given if _matrix(one))


def selected_fields(layers: Iterable[str], stacks: Iterable[str], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that select these layers and stacks of experts, by their full names.

    Layers that ``target_parameters`` of the configuration ``data`` selects are selected as parameters again.
    """
    names = list(layers)
    parameters = [f"{one}{_WEIGHT}" for one in names if selects_matrix(one, data)]
    modules = [one for one in names if not selects_matrix(one, data)]
    found = [*stacks, *parameters]
    return {"target_modules": modules, **({_FIELD: found or None} if data.get(_FIELD) else {})}


def _ordered(parameters: set[str], pairs: Sequence[Mapping[str, str]], tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return, for each pair of factors, the parameter that it changes: the stack of gate and up, or the stack of down.

    The two are told apart by shape: gate and up have twice as many outputs as down has inputs.
    """
    if len(pairs) == 1:
        return [*parameters]
    outputs, inputs = tensors[pairs[0]["B"]].shape[:1], tensors[pairs[1]["A"]].shape[-1:]
    is_first = [2 * size for size in inputs] == [*outputs]
    return [FIRST, _LAST] if is_first else [_LAST, FIRST]


def _stack(
    module: str,
    parameter: str,
    pair: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    settings: AdapterConfig,
    name: str,
) -> ExpertStack:
    a, b = tensors[pair["A"]].shape, tensors[pair["B"]].shape
    rank = settings.rank_of(f"{module}.{parameter}")
    parts = len(_PARTS[parameter])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0] or a[0] % rank or b[0] % parts:
        raise _misfit(f"{module}.{parameter}", tensors, [*pair.values()], name, f", for the rank {rank}")
    return ExpertStack(module, parameter, pair["A"], pair["B"], a[0] // rank, rank, a[1], b[0])


def _misfit(
    module: str, tensors: Mapping[str, TensorInfo], keys: Sequence[str], name: str, more: str = ""
) -> FormatError:
    given = ", ".join(f"{escape(key)} {shape_text(tensors[key].shape)}" for key in keys)
    return FormatError(
        f"the factors of {escape(module)} of {escape(name)} do not fit stacked experts{more}: {given}.",
        hint="Put the adapter_config.json that was saved with these weights into their folder.",
        rule="rank",
    )


def _alike(stacks: Sequence[ExpertStack]) -> Iterator[tuple[ExpertStack, str]]:
    """Yield (stack, pattern of its module), one pair for all stacks whose keys differ only in numbers.

    If such stacks have different sizes, each of them is yielded, with '' in place of the pattern.
    """
    groups: dict[tuple[str, str], list[ExpertStack]] = {}
    for stack in stacks:
        groups.setdefault((numberless(stack.a), stack.parameter), []).append(stack)
    for alike in groups.values():
        if len({(one.experts, one.rank, one.inputs, one.outputs) for one in alike}) == 1:
            yield alike[0], numberless(alike[0].module)
            continue
        for stack in alike:
            yield stack, ""


def _rows(stack: ExpertStack, pattern: str, *, is_mixtral: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the operations that make the factors of single experts.

    ``pattern`` matches the modules of all stacks like ``stack``; '' if the operations are only for ``stack``.
    """
    a, b = (numberless(key) if pattern else quoted(key) for key in (stack.a, stack.b))
    module = pattern or quoted(stack.module)
    names = [_single(f"{module}.{{i}}.{part}", is_mixtral=is_mixtral) for part in stack.parts]
    whole = names[0] if len(names) == 1 else f"{module}.{{i}}.{stack.parameter}"
    yield {"reshape": a, "shape": [stack.experts, stack.rank, stack.inputs]}
    yield {"unstack": a, "into": f"{whole}.lora_A.weight"}
    yield {"reshape": b, "shape": [stack.outputs, stack.rank, stack.experts]}
    yield {"unstack": b, "dim": 2, "into": f"{whole}.lora_B.weight"}
    if len(names) > 1:
        yield {"copy": f"{whole}.lora_A.weight", "into": [f"{one}.lora_A.weight" for one in names]}
        yield {"split": f"{whole}.lora_B.weight", "into": [f"{one}.lora_B.weight" for one in names]}


def _of_routers(tensors: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the operations that rename the factors of Mixtral's routers to their names in transformers' files."""
    for key in dict.fromkeys(numberless(key) for key in tensors if f".{_ROUTER}.lora_" in key):
        yield {"copy": key, "into": [key.replace(f".{_ROUTER}.", f".{_ROUTER_OF_MIXTRAL}.")]}


def _single(name: str, *, is_mixtral: bool) -> str:
    """Return the name that the files of transformers have for ``name``, a matrix of a single expert."""
    module, dot, part = name.rpartition(".")
    if not is_mixtral:
        return name
    return f"{module.replace(_MODULE, _MODULE_OF_MIXTRAL)}{dot}{_OF_MIXTRAL[part]}"


def _config(
    data: Mapping[str, Any], stacks: Sequence[ExpertStack], settings: AdapterConfig, *, is_mixtral: bool
) -> dict[str, Any]:
    """Return the configuration of the LoRA of single experts, which keeps the scales of the stacks.

    ``data`` is the configuration for stacked experts.
    """
    given = {stack: settings.alphas.of(f"{stack.module}.{stack.parameter}", settings.alpha) for stack in stacks}
    ranks = _by_pattern({stack: stack.rank for stack in stacks}, is_mixtral=is_mixtral)
    alphas = _by_pattern(given, is_mixtral=is_mixtral)
    layers = with_layers_only(data)
    targets = layers["target_modules"]
    last = dict.fromkeys(_OF_MIXTRAL[part] if is_mixtral else part for stack in stacks for part in stack.parts)
    return {
        **layers,
        "target_modules": [*targets, *last] if isinstance(targets, list) else targets,
        "rank_pattern": {**ranks, **_patterns(layers.get("rank_pattern") or {}, is_mixtral=is_mixtral)},
        "alpha_pattern": {**alphas, **_patterns(layers.get("alpha_pattern") or {}, is_mixtral=is_mixtral)},
    }


def _patterns(given: Mapping[str, Any], *, is_mixtral: bool) -> dict[str, Any]:
    """Return patterns of a configuration without those of stacks, with the names of Mixtral's routers in its files."""
    return {
        _ROUTER_NAME.sub(rf"{_ROUTER_OF_MIXTRAL}", name) if is_mixtral else name: value
        for name, value in given.items()
        if not _STACK_NAME.search(name)
    }


def _by_pattern(values: Mapping[ExpertStack, float], *, is_mixtral: bool) -> dict[str, float]:
    """Return {regular expression of the names of single matrices: value}, with few expressions if values are equal."""
    found: dict[str, float] = {}
    for parameter, parts in _PARTS.items():
        own = {stack.module: value for stack, value in values.items() if stack.parameter == parameter}
        ends = "|".join(_OF_MIXTRAL[part] if is_mixtral else part for part in parts)
        modules = [r".*\.experts"] if len({*own.values()}) == 1 else [*own]
        if len({*own.values()}) > 1:
            modules = [re.escape(_single(f"{one}.{_LAST}", is_mixtral=is_mixtral).rpartition(".")[0]) for one in own]
        found |= {rf"{one}\.[0-9]+\.({ends})": value for one, value in zip(modules, own.values(), strict=False)}
    return found
