"""Latency, throughput, memory, energy, the time until the first answer: always two against each other."""
