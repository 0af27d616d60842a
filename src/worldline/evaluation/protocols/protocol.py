"""What a protocol is: a name for a set of choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from worldline.evaluation.pair import Frames, Resize
from worldline.evaluation.parts import Part
from worldline.evaluation.report import Averaging


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """How a protocol uses one data set.

    Attributes:
        sequences: which ones, and which of their frames, in words: cutting them out is the adapter's work.
        parts: replaces the protocol's parts, where masks or clipping differ; None keeps them.
        frames: replaces the protocol's frames; None keeps them.
    """

    sequences: str
    parts: tuple[Part, ...] | None = None
    frames: Frames | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A published way to score a prediction.

    Attributes:
        name: what the command line calls it.
        parts: the numbers.
        frames: which frames of a clip are scored.
        resize: how predicted maps are brought to the truth's size.
        averaging: of sequences.
        datasets: by name; their `parts` and `frames` override these.
        source: where the definition was read.
        pitfall: what the number hides.
        failures: what the published script does with a sequence that fails; here it is always a failed row.
    """

    name: str
    parts: tuple[Part, ...]
    frames: Frames = Frames()
    resize: Resize = "nearest"
    averaging: Averaging = "sequences"
    datasets: Mapping[str, Dataset] = field(default_factory=lambda: MappingProxyType({}))
    source: str
    pitfall: str
    failures: str = "not said"

    def on(self, dataset: str | None) -> Protocol:
        """The protocol as used on a data set.

        Raises ValueError for a data set it does not know; None and "" keep the general settings.
        """
        if not dataset:
            return self
        if dataset not in self.datasets:
            known = ", ".join(self.datasets) or "none"
            raise ValueError(f"Protocol {self.name} has no settings for data set '{dataset}'; it knows: {known}.")
        use = self.datasets[dataset]
        return replace(self, parts=use.parts or self.parts, frames=use.frames or self.frames)
