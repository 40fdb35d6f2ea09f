"""What an experiment on directions is about: a model, text, hooks, an SAE, and how much of each."""

from dataclasses import dataclass

from experiments.network import subjects
from toolkit.errors import check_types, require, unknown
from toolkit.sae import PROCESSING


@dataclass(frozen=True)
class Subject:
    """What such an experiment is about; its settings begin with these."""

    model: str = ""
    """tiny-gpt2, a folder or a hub name; empty: tiny-gpt2, on text that it says itself where no corpus is named."""
    corpus: str = ""
    """Text: a file, a folder, nltk:NAME."""
    hook: str = ""
    """Where activations are moved, with commas between many; empty: after `layers` evenly spaced blocks."""
    sae: str = ""
    """A folder in sae-lens's format or release:id; empty: one is trained here at each hook."""
    layers: int = 3
    """How many blocks, where no hook is named; the last one is left out: nothing but the unembedding follows it."""
    width: int = 512
    """Latents of an SAE that is trained here."""
    k: int = 16
    """Of these, on in each row."""
    steps: int = 600
    """Of its training."""
    rows: int = 20_000
    """Rows of activations in all."""
    places: int = 128
    """Of them, those that are moved at most."""
    position: int = 0
    """The only position of a sequence, counted from 0, whose rows are moved; 0: any but the first. What is learned
    (covariances, SAEs) is of all positions but the first."""
    processing: tuple[str, ...] = ()
    """Done to the weights of every network, by names of `load_model`'s options; empty: what the SAE says of its own."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("layers", "width", "k", "steps", "rows", "places"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.k <= self.width, f"k={self.k} is more than width={self.width}, the number of latents there are")
        require(self.position >= 0, f"position must not be negative, got {self.position}: positions count from 0")
        names = [part.strip() for part in self.hook.split(",")] if self.hook else []
        require(
            all(name and not name.isdigit() for name in names) and len(set(names)) == len(names),
            f"hook {self.hook!r}: expected different names with commas between, such as blocks.0.hook_resid_post",
        )
        require(not self.sae or len(names) < 2, f"one SAE stands at one hook, got {self.hook}: name one --hook")
        for name in self.processing:
            if name not in PROCESSING.values():
                raise unknown("processing", name, PROCESSING.values())

    @property
    def read_with(self) -> tuple[str, ...]:
        """Labels that the text has to have, which decide what a row is; none: every token is one."""
        return ()

    @property
    def at(self) -> list[str]:
        """The hooks as cells name them: names, or the number of a block among `layers`.

        Raises:
            UserError: neither is a hook named nor does the SAE that is named say which is its own.
        """
        if self.hook:
            return [part.strip() for part in self.hook.split(",")]
        return [subjects.own_hook(self.sae)] if self.sae else [str(number) for number in range(self.layers)]
