"""Physical tests of clips: do cameras, depth, motion and images of a clip agree with each other?"""

from __future__ import annotations

from worldline.data.check.physics import CheckConfig, ClipCheck, Frames, Outcome, check_clip, check_scene

__all__ = ["CheckConfig", "ClipCheck", "Frames", "Outcome", "check_clip", "check_scene"]
