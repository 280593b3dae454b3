"""The operator's side: status, why, health and metrics over HTTP."""
