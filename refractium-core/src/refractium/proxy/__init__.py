"""The data path: accept a client, connect it to a backend, and move bytes or datagrams between the two.

No module of this package knows a protocol by name.

- `listener`: a bound TCP socket that accepts clients.
- `limits`: the limits on connections and UDP sessions.
- `tcp`: the TCP service of an engine, with all of its listeners and connections.
- `connection`: a TCP connection from accept until a backend is connected.
- `dial`: the connection attempts to the backends of a pool, one after the other.
- `weld`: a weld, which joins the sockets of a client and a backend and moves bytes between them.
- `udp`: the UDP service of an engine, with all of its listeners and sessions.
- `udp_session`: the datagrams of one client, and the answers of its backend.
- `tapping`: the link from sessions to packet hooks.
- `snapshot`: the routes and timeouts that a connection keeps when the configuration is reloaded.
- `counters`: the counters of connections, sessions and bytes.
- `outcome`: the summary of a finished connection or session.
"""
