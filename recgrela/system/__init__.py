"""What a run needs of the machine: devices, memory, files, signals, progress; and the errors it reports."""
