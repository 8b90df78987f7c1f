"""Turns image files into patches: sizes (geometry, tiles), pixels (patches), surrounding text tokens (delimiters)."""
