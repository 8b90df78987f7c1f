"""Records -> plan -> rows -> batch. Numpy only: nothing here imports jax."""
