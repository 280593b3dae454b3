"""The relay: flows that outlive their line (docs/relay.md)."""
