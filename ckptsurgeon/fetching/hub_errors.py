"""What the hub's client raises, as errors of ours: what is missing, where, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..engine import output_error
from ..errors import CheckpointError, ConfigError, SourceError
from ..sources import without_queries
from ..text import escape
from .config import FetchConfig
from .origin import Origin

__all__ = ["failed", "is_offline"]


def is_offline(config: FetchConfig) -> bool:
    """Whether the hub must not be asked: by the settings of a call, or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return not config.allow_network or constants.is_offline_mode()


def failed(origin: Origin, config: FetchConfig, error: Exception) -> CheckpointError:
    """Return the error that says what went wrong, in our words where the client has a class for it."""
    from huggingface_hub import errors

    say: tuple[tuple[type[Exception], Callable[..., SourceError | ConfigError]], ...] = (
        (errors.GatedRepoError, _gated),
        (errors.RepositoryNotFoundError, _no_repository),
        (errors.RevisionNotFoundError, _no_revision),
        (errors.LocalEntryNotFoundError, _not_here),
        (errors.RevisionResolutionError, _not_here),
        (errors.OfflineModeIsEnabled, _not_here),
        (errors.EntryNotFoundError, _no_file),
        (errors.LocalTokenNotFoundError, _no_token),
    )
    for kind, saying in say:
        if isinstance(error, kind):
            return saying(origin, config)
    if (
        isinstance(error, OSError) and error.errno is not None
    ):  # of this machine; the network's errors are none of these
        return output_error(os.fsdecode(error.filename or "the cache"), error)
    why = without_queries(str(error).strip() or type(error).__name__)
    return SourceError(f"{escape(origin.shown)} cannot be had from the hub: {escape(why, 400)}")


def _gated(origin: Origin, config: FetchConfig) -> SourceError:
    login = "Use FetchConfig(token=True) after hf auth login." if config.token is False else (
        "Accept its terms on its page, and run hf auth login."
    )  # fmt: skip
    return SourceError(f"the {_repository(origin)} asks for a login.", hint=login)


def _no_repository(origin: Origin, config: FetchConfig) -> SourceError:
    if config.token is None:
        return SourceError(f"there is no {_repository(origin)}.", hint="A private one needs hf auth login.")
    private = "" if config.token else " A private one needs FetchConfig(token=True)."
    return SourceError(f"there is no {_repository(origin)}, and no folder {escape(origin.source)} here.{private}")


def _no_revision(origin: Origin, config: FetchConfig) -> SourceError:
    return SourceError(f"the {_repository(origin)} has no revision {escape(origin.revision)}.")


def _not_here(origin: Origin, config: FetchConfig) -> SourceError:
    what = f"{escape(origin.file)} of the {_at(origin)}" if origin.file else f"the whole of the {_at(origin)}"
    if not config.allow_network:
        return SourceError(f"{what} is not in the cache, and allow_network is False.")
    if is_offline(config):
        return SourceError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set.")
    return SourceError(f"the hub cannot be reached for {escape(origin.shown)}, and the cache does not have it.")


def _no_file(origin: Origin, config: FetchConfig) -> SourceError:
    return SourceError(f"the {_at(origin)} has no file {escape(origin.file)}.")


def _no_token(origin: Origin, config: FetchConfig) -> ConfigError:
    return ConfigError("FetchConfig(token=True), and no token is stored.", hint="Run hf auth login.")


def _repository(origin: Origin) -> str:
    return f"hub repository {escape(origin.source)}"


def _at(origin: Origin) -> str:
    return f"{_repository(origin)} at {escape(origin.revision)}" if origin.revision else _repository(origin)
