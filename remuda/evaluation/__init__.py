"""Held-out accuracy of the demo model's skills, or of one's own problems: client, scoring and report for any server.

The embedded problems are made by `training/problems/` in the repository, whose other side the model was trained on.
"""
