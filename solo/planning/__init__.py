"""The step of a run compiled ahead of time for the machine it is meant for: does it fit, how fast, what does it cost."""
