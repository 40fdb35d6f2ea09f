"""What steering along a feature's direction by more and less does."""

from dataclasses import dataclass

SIZES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Lengths of a steering curve, in the direction's own."""


@dataclass(frozen=True)
class Curve:
    """What steering by more and less does."""

    sizes: tuple[float, ...]
    """In lengths of the direction from label 0 to 1."""
    on: tuple[float, ...]
    """Movement of the target, as a correlation."""
    off: tuple[float, ...]
    """What moves beside it."""
