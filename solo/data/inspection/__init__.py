"""The page of `solo inspect`: the data of a run, as the model will see it."""
