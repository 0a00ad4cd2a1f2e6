"""Quantized graphs: which nodes are INT8, in which dialect the file says so, and what the runtimes make of it."""
