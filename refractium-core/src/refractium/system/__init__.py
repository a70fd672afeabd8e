"""What the machine is asked for: files, users, rights, and who is killed when memory runs out."""
