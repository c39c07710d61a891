"""What can be proved of a network? This room is still empty."""
