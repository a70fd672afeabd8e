"""The tools under the data path: the epoll, timeouts, bound sockets, descriptors, pipes and names.

- `reactor`: one epoll for all data sockets, and the handlers of its events.
- `watching`: the watching of a bound socket, with pauses after faults.
- `deadlines`: timeouts that cost almost no time until they expire.
- `bind`: bound sockets for a host and a port.
- `closing`: the close of a TCP socket, as an orderly end or as a reset.
- `bulk`: the socket options for bulk.
- `pipes`: pipes through which the kernel moves bytes between sockets.
- `pktinfo`: the local address of a datagram.
- `descriptors`: the number of descriptors left for clients.
- `names`: host names, looked up by a bounded number of threads.
"""
