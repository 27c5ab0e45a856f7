"""From what a user calls a model to a directory on this machine: embedded, local, cached, or downloaded."""
