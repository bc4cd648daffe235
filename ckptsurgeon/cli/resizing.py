"""The options of ``ckpt resize``, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from .new_tokens import NewTokenOptions
from .options import Root, SetMetadata
from .writing import metadata_of

__all__ = ["NetworkOptions", "SizeOptions", "VocabularyOptions"]


@dataclass(frozen=True)
class SizeOptions:
    """The group of options of ``ckpt resize`` for the fields that change, and for the way in which weights change."""

    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Give a field of config.json this value, such as num_hidden_layers=48. Repeatable.",
        ),
    ] = None
    as_type: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="MODEL_TYPE",
            help="Write a model of this type, such as mixtral: a dense network becomes one with experts, each a copy "
            "of the feed-forward layer; with --expert, one with experts becomes dense.",
        ),
    ] = None
    expert: Annotated[
        int | None,
        typer.Option(
            "--expert",
            metavar="N",
            min=0,
            help="With --as and a dense type: use this expert of each layer, counted from 0, as the feed-forward "
            "layer.",
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="LIST|repeat|interleave|identity|first|evenly|influential",
            help="Use these layers of the source, as in 0..23,8..31. For more layers: repeat (all in order), "
            "interleave (each several times) or identity (new layers pass their input on). For fewer: first, "
            "evenly or influential (those that change their input most, with --by).",
        ),
    ] = None
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="FIELD=LIST",
            help="Keep these heads, channels or experts, as in num_local_experts=0..3,6, instead of those with the "
            "largest weights. Repeatable.",
        ),
    ] = None
    new_channels: Annotated[
        str | None,
        typer.Option(
            "--new-channels",
            metavar="init|copy",
            help="Initialise new channels, which contribute nothing at first, or copy others. [default: init]",
        ),
    ] = None
    new_width: Annotated[
        str | None,
        typer.Option(
            "--new-width",
            metavar="copy|init",
            help="With a larger width: repeat the old dimensions, or add dimensions that are 0 at first and scale "
            "the norms. [default: copy; init if the width is not a multiple of the old one]",
        ),
    ] = None
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise",
            metavar="SHARE",
            help="Add random noise to the weights that read copies (of a width, heads or channels), up to this share "
            "of each weight, so that copies can learn different things; the sum of these weights stays the same.",
        ),
    ] = None
    merge_experts: Annotated[
        str | None,
        typer.Option(
            "--merge-experts",
            metavar="similar|GROUPS",
            help="Merge experts in groups instead of leaving some out: similar merges each into the kept expert with "
            "the most similar row of the router; 0+4,1+5 lists the groups. With --by, experts that are used "
            "more often count more.",
        ),
    ] = None
    align_experts: Annotated[
        bool,
        typer.Option(
            "--align-experts",
            help="With --merge-experts: first reorder the channels of the experts of a group, so that similar channels "
            "are averaged.",
        ),
    ] = False
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="STATS",
            help="Keep what contributes most, according to this file of statistics from ckpt stats.",
        ),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments of the Python function ``resize``."""
        given = vars(self).copy()
        return {"set": given.pop("set") or [], "model_type": given.pop("as_type"), **given}


@dataclass(frozen=True)
class VocabularyOptions:
    """The group of options of ``ckpt resize`` that give a model another vocabulary."""

    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR|FILE",
            help="Give the model this tokeniser: tokens that the old tokeniser also has keep their rows, even if "
            "their ids change.",
        ),
    ] = None
    trim: Annotated[
        list[str] | None,
        typer.Option(
            "--trim",
            metavar="FILE",
            help="Keep only the tokens that this text uses, and the shorter tokens that they are merged from. "
            "Repeatable.",
        ),
    ] = None
    keep_special: Annotated[
        bool,
        typer.Option(
            "--keep-special/--no-keep-special",
            help="With --trim: keep all special and added tokens, or only those that the text uses or a "
            "configuration file names.",
        ),
    ] = True
    pad_to: Annotated[
        int,
        typer.Option("--pad-to", metavar="N", help="Add rows to the embedding until their number is a multiple of N."),
    ] = 1
    rows: NewTokenOptions = field(default_factory=NewTokenOptions)

    @property
    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments of the Python function ``resize``."""
        given = vars(self).copy()
        return {**vars(given.pop("rows")), **given, "trim": self.trim or ()}


@dataclass(frozen=True)
class NetworkOptions:
    """The group of options of ``ckpt resize`` for other inputs, and for dtype, seed and metadata of the output."""

    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Use this config.json if there is none next to the weights; or a YAML file with model: (_target_ or "
            "name).",
        ),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="FILE",
            help="Resize the state of an optimizer instead of the weights, and write it to a .pth file. FILE has the "
            "state of the optimizer that trained the weights: torch.save of its state_dict(), a training's checkpoint, "
            "or a folder of transformers' Trainer.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="keep|DTYPE", help="Cast all floats to this dtype. [default: the source's]"),
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed the initialisers and the noise with this number.")
    ] = 0
    set_metadata: SetMetadata = None
    root: Root = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments of the Python function ``resize``."""
        given = vars(self).copy()
        return {"metadata": metadata_of(given.pop("set_metadata")), **given}
