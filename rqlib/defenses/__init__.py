"""What makes a network harder to fool? This room is still empty."""
