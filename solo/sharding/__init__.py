"""The device mesh, and sharded implementations of the model's operations."""
