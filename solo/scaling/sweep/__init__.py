"""Sweeps: from one file to a table of runs, to the runs, to the results that `solo fit` reads."""
