"""Scaling laws: a table of runs, the fit, its uncertainty, its checks, and its predictions."""
