"""Structured pruning: what belongs together, what it is worth, what it costs in time, and taking it out."""
