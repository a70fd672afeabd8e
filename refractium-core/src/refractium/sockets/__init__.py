"""The tools underneath: the epoll, timeouts, bound sockets, descriptors, pipes and names."""
