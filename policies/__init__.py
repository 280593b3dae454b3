"""Decides which path a request takes. Pure: no I/O, no clock, no randomness of its own."""
