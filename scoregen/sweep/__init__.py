"""Sweeps: many runs from one short file, and one table that compares them."""

from scoregen.sweep.plan import grid

__all__ = ["grid"]
