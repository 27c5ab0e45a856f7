"""What a model wrote, read for its structure: tool calls, and reasoning before the answer."""
