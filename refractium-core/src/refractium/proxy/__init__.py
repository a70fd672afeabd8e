"""The data path: accept a client, connect a backend, and move bytes or datagrams between client and backend.

No module of this package knows a protocol by name.

- `listener`: a bound TCP socket that accepts clients.
- `limiter`: the limits on the numbers of connections and UDP sessions.
- `tcp`: the TCP service of an engine, with all of its listeners and connections.
- `connection`: a TCP connection from accept to its end.
- `dial`: the connection attempts to the backends of a pool, one after the other.
- `weld`: a weld, which joins the sockets of a client and a backend and moves bytes between these sockets.
- `udp`: the UDP service of an engine, with all of its listeners and sessions.
- `udp_session`: a UDP session, with the datagrams of one client and the answers of a backend.
- `tapping`: the link from sessions to packet hooks.
- `snapshot`: the routes and timeouts that a connection keeps when the configuration is reloaded.
- `counters`: the counters of connections, sessions and bytes.
- `summary`: the summary of a finished connection or session.
"""
