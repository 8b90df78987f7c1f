"""Scaling laws: from the results of a sweep to a prediction with an interval."""
