"""Trees of a few words in CoNLL-U, for audits that need no treebank: verbs, and nouns in the plural, in documents."""

import gzip

import numpy as np

NOUNS = ("dog", "cat", "king", "house", "friend", "school", "river", "letter")
VERBS = ("sees", "takes", "finds", "likes", "calls")
OTHERS = (("the", "DET"), ("a", "DET"), ("old", "ADJ"), ("new", "ADJ"), (".", "PUNCT"))


def write_trees(file, documents=60, sentences=4, *, seed=0):
    """A treebank; returns its path as text."""
    rng, lines = np.random.default_rng(seed), list[str]()
    for document in range(documents):
        lines.append(f"# newdoc id = {document}")
        for sentence in range(sentences):
            words = _sentence(rng)
            lines += [f"# sent_id = {document}-{sentence}", f"# text = {' '.join(word for word, *_ in words)}"]
            for number, (word, kind, features) in enumerate(words, 1):
                head = 0 if number == 1 else 1
                lines.append(f"{number}\t{word}\t{word}\t{kind}\t{kind}\t{features}\t{head}\tdep\t_\t_")
            lines.append("")
    with gzip.open(file, "wt") as out:
        out.write("\n".join(lines) + "\n")
    return str(file)


def _sentence(rng):
    def noun():
        word, plural = str(rng.choice(NOUNS)), bool(rng.integers(2))
        return word + "s" * plural, "NOUN", "Number=Plur" if plural else "Number=Sing"

    (det, kind), (adjective, other) = OTHERS[rng.integers(2)], OTHERS[2 + rng.integers(2)]
    verb = (str(rng.choice(VERBS)), "VERB", "_")
    said = [(adjective, other, "_")] * int(rng.integers(3))  # else every document would have the same labels in order
    return [(det, kind, "_"), *said, noun(), verb, (det, kind, "_"), noun(), (".", "PUNCT", "_")]
