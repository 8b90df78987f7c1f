"""Compares several runs on one page: their curves, config differences, and metrics."""
