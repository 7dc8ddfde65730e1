"""The engine `relay`: another server that speaks the native protocol does the work."""
