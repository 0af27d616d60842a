"""Windows that are fetched when they are looked at, so that a long video needs no more memory than a short one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worldline.align.observation import Observation


class StreamedWindows(Sequence[Observation]):
    """Observations that `fetch` reads (from a disk) each time; nothing is kept. `solve` reads each a few times."""

    def __init__(self, fetch: Callable[[int], Observation], count: int) -> None:
        """Take the function from the number of a window to the window, and how many there are."""
        self._fetch, self._count = fetch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Observation:  # type: ignore[override]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._fetch(index % self._count)
