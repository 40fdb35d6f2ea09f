"""A control asked of one feature after another: what cannot be asked of one is a note on the others, not their end."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from controls.outcomes import Outcome
from toolkit.errors import UserError

T = TypeVar("T")
NAMED = 3
"""Features that cannot be asked, told with their reasons; of the others the number is told."""


def each(asked: Iterable[tuple[str, T]], ask: Callable[[T], list[Outcome]], left: Mapping[str, str]) -> list[Outcome]:
    """Outcomes of every feature that can be asked, with a note of those that cannot.

    Args:
        asked: features, and what `ask` takes for each.
        left: features that were left out before, and why.

    Raises:
        UserError: none can be asked.
    """
    found, why = list[Outcome](), dict(left)
    for feature, one in asked:
        try:
            found += ask(one)
        except UserError as error:
            why[feature] = str(error)
    return noted(found, why)


def noted(found: list[Outcome], left: Mapping[str, str]) -> list[Outcome]:
    """Outcomes with a note of the features left out.

    Raises:
        UserError: there is no outcome; it says why, for the first feature.
    """
    if not found:
        first = next(iter(left.values()), "no feature is there")
        raise UserError(first + (f" (nor can {len(left) - 1} other features be asked)" if len(left) > 1 else ""))
    if not left:
        return found
    told = [_short(feature, why) for feature, why in list(left.items())[:NAMED]]
    told += [f"{len(left) - NAMED} more"] if len(left) > NAMED else []
    return [replace(one, note=joined(one.note, f"not asked: {', '.join(told)}")) for one in found]


def _short(feature: str, why: str) -> str:
    """What is wrong, without what to do about it."""
    said = why.split(": ")[0]
    return said if repr(feature) in said else f"feature {feature!r}, {said}"


def joined(*notes: str) -> str:
    """Notes that say something, in one."""
    return "; ".join(note for note in notes if note)


def floor_of(draws: int) -> str:
    """A note on the smallest p that so many draws allow, where it is above .001."""
    return "" if draws >= 999 else f"{draws} draws: p cannot be below {1 / (draws + 1):.3g}"
