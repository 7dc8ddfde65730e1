"""One sans-I/O codec per wire protocol."""
