"""Planned rows to batches.

document       a record in reading order: tokens and patches
reading_order  what each element of a row sees, and its position
assembly       documents to one row: two regions, shifted targets
loader         a host's batches, read ahead by threads or worker processes
"""
