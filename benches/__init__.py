"""Measures and judges: accuracy, latency, memory, size; verdicts and reports."""
