"""Turns planned rows into batches.

document       encodes a record in reading order: tokens and patches
reading_order  attention masks and positions of the elements of a row
assembly       packs documents into one row: two regions, shifted targets
loader         yields a host's batches, prefetched by threads or worker processes
"""
