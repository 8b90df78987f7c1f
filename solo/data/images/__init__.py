"""Image files to patches: sizes (geometry, tiles), pixels (patches), and the text tokens around them (delimiters)."""
