"""Network addresses: their text forms, networks, and the addresses of this machine."""
