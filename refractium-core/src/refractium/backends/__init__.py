"""The backends of routes: their states, their health checks and their addresses."""
