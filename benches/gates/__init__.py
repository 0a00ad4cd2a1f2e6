"""Limits and verdicts: of a run, against the last release, for a CI."""
