"""One SQLite file, and the one thread that works on it."""
