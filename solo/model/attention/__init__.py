"""Interval attention: one function, one file per implementation."""
