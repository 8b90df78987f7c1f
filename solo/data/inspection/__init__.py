"""The page of `solo inspect`: what a run will read, as the model will see it."""
