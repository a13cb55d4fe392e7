"""Results over the checkpoints of a training run: curves, stages, how structure was built."""
