"""The step of a run compiled ahead of time for its machine: does it fit, how fast is it, what does it cost."""
