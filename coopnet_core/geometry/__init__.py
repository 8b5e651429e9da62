"""Cameras, rigid motions, warps."""
