"""A sweep: from one file to a table of runs, to the runs, to results that `solo fit` reads."""
