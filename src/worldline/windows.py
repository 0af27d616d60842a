"""Which frames go through a network together: overlapping windows over a video of any length."""

from __future__ import annotations


def plan(num_frames: int, window: int, overlap: int) -> list[range]:
    """Windows of `window` frames, neighbours sharing at least `overlap`; the last one is flush with the end.

    A video that is shorter than the window gives one shorter window. Every frame is covered, no window appears twice,
    and the last window overlaps more than asked for where the length does not divide.

    Raises:
        ValueError: no frames, an empty window, or an overlap that does not fit inside the window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"The overlap must be 0 to {window - 1} frames for windows of {window}, got {overlap}.")
    return plan_stride(num_frames, window, window - overlap)


def plan_stride(num_frames: int, window: int, stride: int) -> list[range]:
    """Windows of `window` frames starting every `stride` frames, the last one flush with the end.

    Geo4D uses window 16 and stride 4 (specs/geo4d.md 3.2; its scripts list the last window twice when it is already
    there, we do not).

    Raises:
        ValueError: no frames, an empty window, or a stride that would skip frames.
    """
    if num_frames < 1:
        raise ValueError("There are no frames to plan windows for.")
    if window < 1:
        raise ValueError(f"A window needs at least one frame, got {window}.")
    if not 1 <= stride <= window:
        raise ValueError(f"The stride must be 1 to {window} frames for windows of {window}, got {stride}.")
    last = max(num_frames - window, 0)
    starts = list(range(0, last + 1, stride))
    if starts[-1] != last:
        starts.append(last)
    return [range(start, min(start + window, num_frames)) for start in starts]
