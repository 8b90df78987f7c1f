"""Compiles the training step ahead of time for a machine, and forecasts memory, time and cost."""
