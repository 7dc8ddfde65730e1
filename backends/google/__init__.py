"""Google Cloud Speech-to-Text, v1 and v2: one asynchronous driver, one for threads, and what both share."""
