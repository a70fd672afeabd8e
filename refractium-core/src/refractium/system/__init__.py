"""Services of the machine: files, users, privileges, and the kernel's choice when memory runs out."""
