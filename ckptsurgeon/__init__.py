"""ckptsurgeon: put the weights of one network into another, and know exactly what happened.

    import ckptsurgeon as cs

    plan = cs.transplant("src.pth", "dst.yaml", exclude=["decoder"])
    cs.apply(plan, "init.safetensors")

Importing ckptsurgeon loads neither torch nor numpy: each public name is imported at its first use, from the module that
``__init__.pyi`` lists for it.
"""

from __future__ import annotations

from .util.lazy import public_names
from .util.notebook import shown_by
from .util.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .util.notebook import Views

__all__, __getattr__ = public_names(__name__, __file__)


def _views() -> Views:
    from .render import html as notebook

    return notebook


shown_by(_views)


def __dir__() -> list[str]:
    """Return the public names and the dunder names, so that completion does not offer subpackages and helpers."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__") and name.endswith("__"))})
