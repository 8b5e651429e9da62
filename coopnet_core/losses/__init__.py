"""Photometric error, smoothness, visibility, consistency."""
