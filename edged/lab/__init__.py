"""Emulated lines and an LLM-like origin on loopback; needs no root."""
