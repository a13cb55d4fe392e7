"""Model families against torch hooks on untouched copies."""
