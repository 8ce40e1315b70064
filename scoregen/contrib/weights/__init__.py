"""Weights in and out: the networks of other libraries, array by array."""
