"""Scores of benchmarks: answers that survive a kill, intervals, what the images contribute, and a page."""
