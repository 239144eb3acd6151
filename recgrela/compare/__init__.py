"""`python -m recgrela.compare`: several models under one protocol and one list of seeds, in one table."""
