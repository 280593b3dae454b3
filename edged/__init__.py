"""Moves bytes over the best path and owns the daemon's lifecycle."""
