"""The engines. Each imports backends.base and its SDK, never the bridge."""
