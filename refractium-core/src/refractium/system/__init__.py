"""Services of the machine: files, users, privileges, signals, and the order of kills at a lack of memory."""
