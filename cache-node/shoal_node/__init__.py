"""The cache node: one process that publishes its memory."""
