"""Artifacts: what verbs make and read: tables, shards, checkpoints, and the workspace that they lie in. No Ray.

An artifact is a folder; it is complete if and only if its manifest is there, which names its parents and its files.
"""

from medray.artifacts.checkpoint import Checkpoint
from medray.artifacts.manifest import Manifest, read_manifest, verify_files, write_manifest
from medray.artifacts.shards import Shards
from medray.artifacts.table import Table
from medray.artifacts.workspace import Workspace, digest_of

__all__ = [
    "Checkpoint",
    "Manifest",
    "Shards",
    "Table",
    "Workspace",
    "digest_of",
    "read_manifest",
    "verify_files",
    "write_manifest",
]
