"""Devices, memory, files, signals, progress, and the errors that commands report."""
