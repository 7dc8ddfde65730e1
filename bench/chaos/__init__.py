"""What breaks, on purpose: connections, servers, engines and Redis; see `bench.chaos.__main__`."""
