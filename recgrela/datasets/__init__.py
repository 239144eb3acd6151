"""The commands of `python -m recgrela.data`: statistics of a data set, conversion, and known sets."""
