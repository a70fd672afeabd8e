"""Services of the machine: files, users, privileges, and the order in which the kernel kills processes."""
