"""What a source in ESPnet's form asks of keys: those under src_key, called dst_key then, less those of exclude_keys."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PatternError
from ...util.text import count, escape, listing
from ..keys.hints import unmatched
from ..keys.pattern import KeyPattern

__all__ = ["check_src_key", "excluded_by_prefix", "is_under", "moved"]


def check_src_key(src: str, keys: Sequence[str]) -> None:
    """Raise PatternError where no key lies under a src_key."""
    if not any(is_under(key, src) for key in keys):
        raise unmatched(f"src_key {src}", KeyPattern(_quoted(src)), keys, "source")


def excluded_by_prefix(prefix: str, keys: Sequence[str], *, of: str, notes: list[str]) -> dict[str, str]:
    """Return the keys that an exclude takes, plain text from the start with no dot needed, each with why.

    ``of`` names the source, ``notes`` gets what is to be said. Raises PatternError where it takes none.
    """
    hit = [key for key in keys if key.startswith(prefix)]
    if not hit:
        raise _unmatched_prefix(prefix, keys)
    module = prefix.rstrip(".")
    beyond = [key for key in hit if not is_under(key, module)]
    if beyond:
        others = list(dict.fromkeys(_module_at(key, prefix) for key in beyond))
        also, exact = (" too", f"--exclude {module}") if len(beyond) < len(hit) else ("", f"--exclude {others[0]}")
        notes.append(
            f"the exclude {prefix} of {of} takes {listing(others)}{also}, by prefix; {exact} is the exact form"
        )
    return dict.fromkeys(hit, f"exclude {prefix} of {of}")


def _unmatched_prefix(prefix: str, keys: Sequence[str]) -> PatternError:
    deeper = list(dict.fromkeys(_module_at(key, prefix, inside=True) for key in keys if f".{prefix}" in key))
    if deeper:
        return PatternError(
            f"exclude {prefix} matches none of the {count(len(keys), 'source key')}.",
            hint=f"Did you mean {' or '.join(map(escape, deeper[:3]))}?",
        )
    return unmatched(f"exclude {prefix}", KeyPattern(_quoted(prefix)), keys, "source")


def _quoted(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]{}" else char for char in text.strip(".")) or "\\*"


def _module_at(key: str, prefix: str, *, inside: bool = False) -> str:
    """Return the module or key that ends with the segment in which ``prefix`` ends."""
    start = key.find(f".{prefix}") + 1 if inside else 0
    end = key.find(".", start + len(prefix))
    return key if end < 0 else key[:end]


def is_under(key: str, module: str) -> bool:
    """Whether a key is a module's, or the module's name itself; every key is under ''."""
    return not module or key == module or key.startswith(f"{module}.")


def moved(key: str, src: str, dst: str) -> str:
    """Return the name that the src_key and dst_key of a spec give a key."""
    if not (src or dst) or not is_under(key, src):
        return key
    rest = key[len(src) :].lstrip(".") if src else key
    return f"{dst}.{rest}".strip(".") if dst else rest or key
