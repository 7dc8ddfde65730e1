"""Voice activity detection: which stretches of a stream are speech."""
