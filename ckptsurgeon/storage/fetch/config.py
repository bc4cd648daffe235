"""How files are fetched: ``FetchConfig`` and ``LocalStrategy``, SpeechBrain's objects or what stands for them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr

__all__ = ["STRATEGIES", "FetchConfig", "fetch_config_of", "strategy_of"]

STRATEGIES = ("symlink", "copy", "copy_skip_cache", "no_link")


@dataclass(frozen=True)
class FetchConfig:
    """How files are fetched, field by field as ``speechbrain.utils.fetching.FetchConfig`` 1.1.2.

    ``overwrite`` replaces what lies there whatever it is; ``allow_updates`` asks the hub for a newer revision;
    ``allow_network`` False forbids any request; ``token`` True sends the token that ``hf auth login`` stored (a text is
    a token itself, None the stored one if there is one); ``revision`` is a branch, tag or commit of the hub.
    """

    overwrite: bool = False
    allow_updates: bool = False
    allow_network: bool = True
    token: bool | str | None = False
    revision: str | None = None
    huggingface_cache_dir: str | None = None

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "token"}
        return f"FetchConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def fetch_config_of(given: Any) -> FetchConfig:
    """Return a FetchConfig, ours or SpeechBrain's, as ours; raises ConfigError where it is neither."""
    if given is None:
        return FetchConfig()
    if isinstance(given, FetchConfig):
        return given
    names = [field.name for field in fields(FetchConfig)]
    if not all(hasattr(given, name) for name in names):
        raise ConfigError(
            f"fetch_config is {brief_repr(given)}, no FetchConfig.", hint="Use ckptsurgeon.FetchConfig(overwrite=True)."
        )
    return FetchConfig(**{name: getattr(given, name) for name in names})


def strategy_of(given: Any) -> str:
    """Return the name of a strategy, given as a text or as SpeechBrain's ``LocalStrategy``."""
    name = getattr(given, "name", given)
    if not isinstance(name, str) or name.lower() not in STRATEGIES:
        raise ConfigError(
            f"local_strategy {brief_repr(given)} is unknown.", hint=f"Use one of {', '.join(STRATEGIES)}."
        )
    return name.lower()
