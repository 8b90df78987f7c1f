"""Scores of benchmarks: resumable answers, confidence intervals, the contribution of images, and an HTML page."""
