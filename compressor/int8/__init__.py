"""INT8: calibration, recovery, which layers run in it, training in it; other quantizers."""
