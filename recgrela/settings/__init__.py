"""Settings: typed, validated, merged from defaults, a preset, files and the command line."""
