"""Services of the machine: files, users and privileges, and whom the kernel kills when memory runs out."""
