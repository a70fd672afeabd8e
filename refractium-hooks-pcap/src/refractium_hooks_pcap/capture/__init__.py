"""``refractium capture``: the sessions in a capture, as they come or from a file.

`sources` opens what there is to be read, `intake` makes packets of its bytes and passes them on, `sessions`
makes sessions of the packets, and `displays` shows these. `command` puts them together.
"""
