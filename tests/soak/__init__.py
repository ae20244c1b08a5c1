"""Three nodes under 64 readers for minutes: nothing fails, every byte is right, and nothing grows."""
