"""Shows an inspection: the most important facts first, on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.adapter_settings import AdapterSettings
from ..analysis.inspection import Inspection, TokenRows
from ..tensors.composition import leaves
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..util.text import count, escape, human_bytes, human_count, listing, shape_text
from .columns import Hanging
from .logical import logical_tensors
from .tree import build_tree, sorted_naturally
from .tree_table import TreeTable, fitting

__all__ = ["adapter_text", "inspection_view", "tensor_lines"]

# An adapter in one line: its kind, rank, alpha and targets.

SHOWN = 4
ALL = 1 << 30


def adapter_text(adapter: AdapterSettings, *, full: bool = False) -> str:
    """Return an adapter's settings in a line: ``LoRA, rank 8, alpha 16, 2 target modules (q, v), base org/model``."""
    shown, by_keys = ALL if full else SHOWN, adapter.modules is not None
    words = [f"{_kind(adapter)}{' (by its keys)' if by_keys else ''}"]
    if (adapter.peft_type == "LORA" and not by_keys) or adapter.rank is not None:
        words.append(f"rank {_number(adapter.rank)}{_others(adapter.ranks, shown)}")
    if (adapter.peft_type == "LORA" and not by_keys) or adapter.alpha is not None:
        words.append(f"alpha {_number(adapter.alpha)}{_others(adapter.alphas, shown)}{_rs(adapter)}")
    if adapter.modules is not None:
        words.append(count(adapter.modules, "module"))
    if adapter.target_modules:
        number = count(len(adapter.target_modules), "target module")
        words.append(f"{number} ({_listed(adapter.target_modules, shown)})")
    if adapter.base_model or not by_keys:
        words.append(f"base {escape(adapter.base_model)}" if adapter.base_model else "base not given")
    return ", ".join(words)


def _kind(adapter: AdapterSettings) -> str:
    if adapter.peft_type == "LORA" or adapter.modules is not None:  # LyCORIS has most of these kinds, too
        return adapter.kind
    return f"PEFT's {escape(adapter.peft_type, 40)}"


def _rs(adapter: AdapterSettings) -> str:
    return ", scaled by alpha / sqrt(rank)" if adapter.rslora else ""


def _number(value: float | None) -> str:
    return "not given" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _others(values: Mapping[str, float], shown: int) -> str:
    """Return the ``values`` of single modules in brackets, such as `` (q_proj: 4, v_proj: 16)``; '' if there are none.

    At most ``shown`` values are listed.
    """
    if not values:
        return ""
    return f" ({_listed([f'{key}: {_number(value)}' for key, value in values.items()], shown)})"


def _listed(items: Sequence[str], shown: int) -> str:
    return listing(items, shown, where=" (-v lists all)")


SHOWN_EXTRAS = 8
SHOWN_TIES = 4


def inspection_view(
    inspection: Inspection, *, depth: int | None = None, by_size: bool = False, full: bool = False
) -> RenderableType:
    """Return the view of an inspected checkpoint: the file, the tree of its modules, tied keys and totals.

    The tree shows each quantised tensor as the weight that it encodes. With ``full``, there is a line for each stored
    tensor instead of the tree, and nothing is shortened.
    """
    head = [_headline(inspection), *_remarks(inspection, full=full), Text("")]
    if full:
        lines = Text("\n".join(tensor_lines(inspection, by_size=by_size)), no_wrap=True, overflow="ignore")
        return Group(*head, *([lines] if inspection.tensors else []), _totals(inspection, 0))
    logical = logical_tensors(inspection, _ordered(inspection), inspection.bits_per_weight)
    tree = build_tree(
        logical.tensors,
        logical.tied,
        by_size=by_size,
        parameters=logical.parameters,
        is_counted=logical.is_counted,
        nbytes=logical.nbytes,
    )
    rows, folded = fitting(tree, depth)
    return Group(*head, TreeTable(rows), *_ties(inspection), _totals(inspection, folded))


def _ordered(inspection: Inspection) -> dict[str, TensorInfo]:
    """Return the tensors in the order of the file; for safetensors, ``layers.2`` comes before ``layers.10``.

    The order in a safetensors file has no meaning: the file is sorted by size and name.
    """
    tensors = inspection.tensors
    if "safetensors" in inspection.format:
        return {key: tensors[key] for key in sorted_naturally(tensors)}
    return dict(tensors)


def tensor_lines(inspection: Inspection, *, by_size: bool = False) -> Iterator[str]:
    """Yield one line for each tensor: key, shape, dtype, bytes, shard, and the key it is tied to."""
    tensors = _ordered(inspection)
    if by_size:
        tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].nbytes))
    rows = [
        (escape(key, ALL), shape_text(info.meant_shape), info.dtype, human_bytes(info.nbytes), _about(inspection, key))
        for key, info in tensors.items()
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for key, shape, dtype, size, about in rows:
        cells = [key.ljust(widths[0]), shape.ljust(widths[1]), dtype.ljust(widths[2]), size.rjust(widths[3]), about]
        yield f"  {'  '.join(cells)}".rstrip()


def _about(inspection: Inspection, key: str) -> str:
    info, owner = inspection.tensors[key], inspection.ties.get(key)
    words = [escape(name) for name in dict.fromkeys(one.storage.file for one in leaves(info) if one.storage) if name]
    words += [f"tied to {escape(owner, ALL)}"] if owner else []
    return "  ".join([*words, *([f"[{escape(info.opaque)}]"] if info.opaque else [])])


def _headline(inspection: Inspection) -> RenderableType:
    line = Text(escape(inspection.path), style="bold")
    line.append(f"  {inspection.format}  {human_bytes(inspection.nbytes_files)}", style="default not bold")
    if inspection.root:
        line.append(f"  root {escape(inspection.root)}", style="default not bold")
    return Hanging(Text(""), line)


def _remarks(inspection: Inspection, *, full: bool) -> Iterator[RenderableType]:
    for label, text in _said(inspection, ALL if full else SHOWN_EXTRAS, full=full):
        yield Hanging(Text(f"{label}  ", "dim"), Text(text, "dim"))


def _said(inspection: Inspection, shown: int, *, full: bool) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each fact about the whole file, such as its adapter, metadata or recipe."""
    if inspection.model is not None:
        yield "model", str(inspection.model)
    if inspection.adapter is not None:
        yield "adapter", adapter_text(inspection.adapter, full=full)
    extras = [_extra_text(extra.key, extra.type, extra.value, full=full) for extra in inspection.extras]
    if extras:
        more = f", and {len(extras) - shown} more" if len(extras) > shown else ""
        yield "also here", ", ".join(extras[:shown]) + more
    if inspection.passed:
        others = ", ".join(escape(path or ".") for path in inspection.passed)
        yield "other state dicts", f"{others}  (choose with --root)"
    methods = inspection.codes.methods()
    if methods:
        named = "; ".join(f"{count(number, 'tensor')} {escape(one)}" for one, number in methods.items())
        basis = f"; in another basis (transform_config: {escape(inspection.basis)})" if inspection.basis else ""
        yield "quantised", f"{named}{basis}"
    if inspection.tokens is not None:
        yield "tokens", _tokens_text(inspection.tokens)
    if inspection.stripped:
        yield "stripped", f"{', '.join(inspection.stripped)}  from every key"
    if inspection.metadata:
        limit = ALL if full else 60
        yield "metadata", ", ".join(f"{escape(k)} = {escape(v, limit)}" for k, v in inspection.metadata.items())
    if inspection.made_by_us:
        yield "recipe", "in the file; ckpt verify checks the file against it"


def _tokens_text(tokens: TokenRows) -> str:
    spare = tokens.rows - tokens.tokens
    lack = "" if spare <= 0 else f", {spare:,} of them without a token"
    return f"{tokens.tokens:,} in {escape(tokens.file)}, {tokens.rows:,} rows in {escape(tokens.key)}{lack}"


def _extra_text(key: str, kind: str, value: object, *, full: bool) -> str:
    name = escape(key, ALL if full else 60)
    if value is not None and not isinstance(value, (list, dict)):
        return f"{name} = {escape(str(value), ALL if full else 40)}"
    return f"{name} ({escape(kind, 60)})"


def _ties(inspection: Inspection) -> Iterator[RenderableType]:
    ties = list(inspection.ties.items())
    for key, owner in ties[:SHOWN_TIES]:
        yield Hanging(Text("  tied  ", "dim"), Text(f"{escape(key)} = {escape(owner)}", "dim"))
    if len(ties) > SHOWN_TIES:
        yield Text(f"  tied  and {len(ties) - SHOWN_TIES} more  (-v lists all)", style="dim")


def _bits(inspection: Inspection) -> Iterator[str]:
    """Yield the mean number of bits per parameter, if any tensor has a type of GGUF that stores codes with scales."""
    in_blocks = any(DTYPES[info.dtype].block for info in inspection.tensors.values())
    if in_blocks and inspection.parameters:
        yield f"{8 * inspection.nbytes / inspection.parameters:.2f} bits per weight"


def _totals(inspection: Inspection, folded: int) -> Text:
    parts = [
        count(len(inspection.tensors), "tensor"),
        f"{'' if inspection.parameters is not None else 'at least '}"
        f"{human_count(inspection.parameters_at_least)} parameters",
        human_bytes(inspection.nbytes),
        *_bits(inspection),
    ]
    line = Text(f"  {'  '.join(parts)}", style="bold")
    if folded:
        line.append("  (--depth shows more, -v all)", style="dim not bold")
    return line
