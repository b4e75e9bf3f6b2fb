"""Everything needed to go on exactly, in S3: blobs by their hash, and a manifest that is written last."""

from ratchet.checkpoints.errors import CheckpointsUnreadable, StorageDenied, StorageUnavailable, Superseded
from ratchet.checkpoints.manifest import Blob, Lineage, Manifest
from ratchet.checkpoints.store import CheckpointStore, Loaded, Stored, connect

__all__ = [
    "Blob",
    "CheckpointStore",
    "CheckpointsUnreadable",
    "Lineage",
    "Loaded",
    "Manifest",
    "StorageDenied",
    "StorageUnavailable",
    "Stored",
    "Superseded",
    "connect",
]
