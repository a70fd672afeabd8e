"""What an engine is doing: status, metrics, the control socket and the access log."""
