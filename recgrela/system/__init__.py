"""The machine of a run: device, memory, files, signals, progress; and the errors that commands report."""
