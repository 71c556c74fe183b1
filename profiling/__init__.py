"""Where the time and the memory of a training step, or of one operator, go."""
