"""The guard around the code of plugins: faults, the plugins that cause them, and plugins that block."""
