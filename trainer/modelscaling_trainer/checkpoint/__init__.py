"""Checkpoints: saved by every process at once, loaded on any mesh."""
