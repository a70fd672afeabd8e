"""Assembly of a configuration file and flags into a configuration that the engine can serve."""
