"""``refractium capture``: a command that shows the sessions in a live capture or in a file.

`sources` opens files, stdin and connections. `intake` turns the bytes of a source into packets, and copies
the bytes to the target of ``--write``. `sessions` turns packets into sessions, and `displays` shows the
sessions. `watch` connects these parts, and `command` is the command line.
"""
