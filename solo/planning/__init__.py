"""Compiles the step of a run ahead of time for a machine, and forecasts memory, time and cost."""
