"""How bytes move: sockets, one epoll of our own, and nothing that knows a protocol.

reactor
    the epoll and whom its events go to.
deadlines
    timeouts that cost next to nothing while nothing times out.
listener
    bound sockets that accept.
limits
    how many connections there may be.
tcp
    a connection from accept until its backend is reached.
weld
    a connection from then on.
resolver
    addresses of backends that are configured by name.
"""
