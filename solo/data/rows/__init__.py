"""Planned rows to batches.

document       encodes a record in reading order: tokens and patches
reading_order  visibility and positions of the elements of a row
assembly       assembles documents to one row: two regions, shifted targets
loader         yields a host's batches, read ahead by threads or worker processes
"""
