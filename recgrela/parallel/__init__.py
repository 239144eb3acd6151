"""Several processes: item tables whose rows are divided over the ranks of a process group."""
