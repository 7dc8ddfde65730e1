"""Durable work: jobs that are accepted, kept, worked off and told of, each exactly once."""
