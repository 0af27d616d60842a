"""Weight-free dense flow: OpenCV's dense inverse search; `Flow` is the interface that any flow method has."""

from __future__ import annotations

from threading import local
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

SMALL_PIXELS = 24_000
"""Pictures with fewer pixels are doubled for DIS, which halves its noise."""


@runtime_checkable
class Flow(Protocol):
    """Dense flow between two pictures; must be callable from several threads at once."""

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Flow [H, W, 2] float32 in pixels from `source` to `target`, both [H, W, 3] RGB or [H, W] grey, uint8."""
        ...


@runtime_checkable
class SureFlow(Flow, Protocol):
    """A flow that also knows how far off it is."""

    def with_error(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flow [H, W, 2] and the expected length [H, W] of its error, both float32 in pixels."""
        ...


def grey(picture: UInt8[np.ndarray, "H W ..."]) -> UInt8[np.ndarray, "H W"]:
    """Luma of an RGB picture; a grey one as it is."""
    import cv2

    return np.ascontiguousarray(picture) if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


class DisFlow:
    """OpenCV's dense inverse search (Kroeger et al., ECCV 2016), preset MEDIUM, down to the finest scale."""

    def __init__(self, patch_stride: int = 4) -> None:
        self._stride = patch_stride
        self._thread = local()  # a DIS object keeps buffers: one per thread

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Flow [H, W, 2] float32 in pixels from `source` to `target`, both [H, W, 3] RGB or [H, W] grey, uint8."""
        if not hasattr(self._thread, "dis"):
            self._thread.dis = self._create()
        return self._thread.dis.calc(grey(source), grey(target), None)

    def _create(self) -> Any:
        import cv2

        dis = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
            cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
        )
        dis.setFinestScale(0)
        dis.setPatchStride(self._stride)
        return dis


def doubled(flow: Flow) -> Flow:
    """The same flow computed at twice the resolution."""
    import cv2

    def larger(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        size = (source.shape[1], source.shape[0])
        images = [cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for image in (source, target)]
        return cv2.resize(flow(*images), size, interpolation=cv2.INTER_AREA) / 2

    return larger


def sized(flow: Flow, small_pixels: int = SMALL_PIXELS) -> Flow:
    """The same flow, computed at twice the resolution where pictures have fewer than `small_pixels` pixels."""
    larger = doubled(flow)

    def by_size(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return (larger if source.shape[0] * source.shape[1] < small_pixels else flow)(source, target)

    return by_size
