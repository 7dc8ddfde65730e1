"""One recognition session: timeline, replay buffer, engine, hub."""
