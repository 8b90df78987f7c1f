"""Several runs on one page: curves, differences of their configs, and their figures."""
