"""What the command stt-bridge does, one file per subcommand."""
