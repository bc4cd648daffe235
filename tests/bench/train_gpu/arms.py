"""What is measured: works, the loops that do them, and the ratios that are wanted of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["ARMS", "RATIOS", "Arm", "Ratio", "arm_of"]


@dataclass(frozen=True)
class Arm:
    """One process of the benchmark.

    ``work`` is what is trained: ``pretrain`` (equal crops), ``ctc`` (equal clips) or ``lengths`` (CTC, clips of many
    lengths). ``loop`` is who trains it: ``ours``, ``published`` (as transformers does) or ``strong`` (as a good engineer
    would write it).
    """

    work: str
    loop: str
    precision: str
    settings: tuple[str, ...] = ()
    """Settings of ours beside those of the bench, such as ``compile=on``."""

    @property
    def name(self) -> str:
        """The name by which one process asks another for this arm."""
        return " ".join((self.work, self.loop, self.precision, *self.settings))


@dataclass(frozen=True)
class Ratio:
    """How many times more audio an arm trains on in a second than another, and what is aimed at."""

    arm: Arm
    other: Arm
    aim: float | None = None

    @property
    def what(self) -> str:
        """Both arms, as a row of the table names them."""
        return f"{self.arm.name} / {self.other.loop} {self.other.precision}"


_OURS, _PUBLISHED, _STRONG = "ours", "published", "strong"
_WORKS = ("pretrain", "ctc", "lengths")

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        *(Arm(work, loop, "bf16") for work in _WORKS for loop in (_OURS, _PUBLISHED, _STRONG)),
        *(Arm("pretrain", loop, "float32") for loop in (_OURS, _PUBLISHED)),
        *(Arm("pretrain", loop, "tf32") for loop in (_OURS, _STRONG)),
    )
}
"""In the order in which they run, the most important first: a run that is cut short has those."""

RATIOS = (
    *(
        Ratio(Arm(work, _OURS, "bf16"), Arm(work, other, "bf16"), aim)
        for work in _WORKS
        for other, aim in ((_PUBLISHED, 1.5), (_STRONG, 1.1))
    ),
    Ratio(Arm("pretrain", _OURS, "float32"), Arm("pretrain", _PUBLISHED, "float32")),
    Ratio(Arm("pretrain", _OURS, "bf16"), Arm("pretrain", _PUBLISHED, "float32")),
    Ratio(Arm("pretrain", _OURS, "tf32"), Arm("pretrain", _STRONG, "tf32"), 1.1),
)
"""In the order in which the arms run, too: each is printed as soon as both of its arms have run."""


def arm_of(name: str) -> Arm:
    """The arm of a name: one of ``ARMS``, or one of ours with settings behind its name; raises ValueError."""
    plain, settings = " ".join(name.split()[:3]), tuple(name.split()[3:])
    if plain not in ARMS or (settings and ARMS[plain].loop != _OURS) or any("=" not in one for one in settings):
        raise ValueError(f"there is no arm {name!r}: {', '.join(ARMS)}; those of ours with settings NAME=VALUE behind")
    return replace(ARMS[plain], settings=settings)
