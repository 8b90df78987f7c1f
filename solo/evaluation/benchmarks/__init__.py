"""Benchmarks: questions with images, answers that a rule can judge, and the metrics that papers report."""
