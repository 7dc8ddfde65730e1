"""Who may connect, and how much of anything one may use."""
