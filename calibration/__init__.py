"""Streaming observers and range rules, and what calibration data must be. Pure: nothing here runs a model."""
