"""Peak memory and time of a run, from tracing its very step on tensors without data."""
