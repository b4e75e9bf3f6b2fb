"""What policy servers decided and what became of it: rows, Parquet schema, and the reader that joins them.

Shared by the server, which writes, and by offline training and off-policy evaluation, which read. The reader
is in `ratchet.decisions.reading`; importing this package does not import pyarrow.
"""

from ratchet.decisions.records import Decision, Numbers, Reward

__all__ = ["Decision", "Numbers", "Reward"]
