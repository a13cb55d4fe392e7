"""Does the learning coefficient count what a model has memorised? See ``__main__``."""
