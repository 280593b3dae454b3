"""Measures paths. Probes return samples, never opinions."""
