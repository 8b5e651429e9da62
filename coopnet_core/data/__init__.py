"""Frames, clips, bags, rendered scenes, batches."""
