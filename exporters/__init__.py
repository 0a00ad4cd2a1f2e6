"""Targets: write an artefact, lint it, speak its dialect, open it as a session that runs."""
