"""What a model wrote, read for its structure: tool calls."""
