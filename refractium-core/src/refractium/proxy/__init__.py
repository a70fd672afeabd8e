"""How bytes move: sockets, one epoll of our own, and nothing that knows a protocol.

reactor
    the epoll and whom its events go to.
deadlines
    timeouts that cost next to nothing while nothing times out.
bind
    from host and port to bound sockets.
listener
    a bound socket that accepts.
limits
    how many connections there may be.
tcp
    a connection from accept until its backend is reached.
dial
    the connecting itself, one backend after the other.
weld
    a connection from then on.
udp
    sessions of datagrams.
report
    what is told of either when it has ended.
names
    host names, looked up by a bounded number of threads.
resolver
    addresses of backends that are configured by name.
"""
