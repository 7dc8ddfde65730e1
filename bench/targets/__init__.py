"""What is put under load beside the bridge: the least a server can do, the way tutorials do it, and other projects."""
