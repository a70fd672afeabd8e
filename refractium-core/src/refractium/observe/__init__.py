"""The views of a running engine: status, metrics, the control socket and the access log."""
