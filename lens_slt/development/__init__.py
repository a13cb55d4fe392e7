"""How structure forms over training: stages, transitions and critical checkpoints of curves."""
