"""What the server remembers of its answers: the decision log, and the rewards that come later.

Nothing is imported here: `log` loads pyarrow (0.4 s, 40 MB), which a server without a log does not need.
"""
