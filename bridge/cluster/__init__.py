"""Redis, as everything that several servers share asks it."""
