"""Circuit hypotheses: how they are guessed, and how they are put on trial."""
