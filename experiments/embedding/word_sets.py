"""Sets and pairs of tokens that are known by their texts."""

from collections.abc import Sequence

from experiments.embedding.planted import DAYS, MONTHS

SETS = ("days", "months", "digits")
_WORDS = {"days": DAYS, "months": MONTHS, "digits": tuple(str(digit) for digit in range(10))}


def members(texts: Sequence[str], name: str) -> list[int]:
    """The tokens of a set in its order, in the first form that all its words have; none where no form is whole.

    The forms are " Monday", "Monday", " monday" and "monday".
    """
    where = {text: at for at, text in enumerate(texts)}
    for form in (" {}", "{}"):
        for change in (str, str.lower):
            words = [form.format(change(word)) for word in _WORDS[name]]
            if all(word in where for word in words):
                return [where[word] for word in words]
    return []


def alike(texts: Sequence[str], chosen: Sequence[int]) -> list[int]:
    """Other tokens of letters only, at least three, with a leading space if and only if those chosen have one."""
    left_out, spaced = set(chosen), texts[chosen[0]].startswith(" ")
    return [
        at
        for at, text in enumerate(texts)
        if at not in left_out and text.startswith(" ") == spaced and text.strip().isalpha() and len(text.strip()) >= 3
    ]


def pairs(texts: Sequence[str], relation: str) -> list[tuple[int, int]]:
    """Tokens of one word: " word" and "word" for the relation "space", " word" and " Word" for "capital"."""
    where = {text: at for at, text in enumerate(texts)}
    found = []
    for at, text in enumerate(texts):
        word = text.strip()
        if text == f" {word}" and len(word) >= 2 and word.isalpha() and word.islower():
            other = word if relation == "space" else f" {word.capitalize()}"
            if other in where:
                found.append((at, where[other]))
    return found
