"""Training: the loop, its steps and its losses."""
