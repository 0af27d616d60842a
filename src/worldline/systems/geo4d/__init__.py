"""Geo4D: point, disparity and ray maps of a video by diffusion, fused over sliding windows."""
