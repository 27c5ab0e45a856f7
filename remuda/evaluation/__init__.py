"""Held-out accuracy of the demo model's skills: problem generators, scoring, and a runner for any server or model.

The generators are the training data's too (see training/ in the repository): a hash of each problem's instance keeps
the two sides apart.
"""
