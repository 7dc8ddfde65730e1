"""Several processes that serve one port, for more cores than one: a small parent, and children that are the servers."""
