"""`python -m recgrela.compare`: several models under one protocol and the same seeds, in one table."""
