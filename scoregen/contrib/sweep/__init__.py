"""Sweeps: many runs from one short file, and one table that compares them."""

from scoregen.contrib.sweep.plan import grid

__all__ = ["grid"]
