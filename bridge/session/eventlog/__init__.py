"""Where sessions leave what has to outlive a connection, a process or a machine."""
