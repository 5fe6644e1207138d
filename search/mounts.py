"""Which file system a path lies on: SQLite loses writes on those that several machines share."""

from __future__ import annotations

import re
from pathlib import Path

SHARED = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "davfs"}
    | {"lustre", "beegfs", "gpfs", "ceph", "glusterfs", "panfs", "pvfs2", "orangefs", "wekafs", "ocfs2", "gfs2"}
    | {"fuse.sshfs", "fuse.smbnetfs", "fuse.davfs", "fuse.hdfs", "fuse.juicefs", "fuse.moosefs", "fuse.seaweedfs"}
    | {"fuse.ceph", "fuse.ceph-fuse", "fuse.cephfs", "fuse.glusterfs", "fuse.beegfs", "fuse.lizardfs"}
    | {"fuse.s3fs", "fuse.goofys", "fuse.mountpoint-s3", "fuse.gcsfuse", "fuse.rclone", "fuse.blobfuse"}
)
"""Types of file systems that several machines may have mounted at once, as /proc/mounts spells them."""


def shared(path: Path, mounts: str | None = None) -> str | None:
    """The type of the shared file system on which a path lies; None for one of this machine alone.

    Args:
        path, mounts: as in `kind`.
    """
    found = kind(path, mounts)
    return found if found.lower() in SHARED else None


def kind(path: Path, mounts: str | None = None) -> str:
    """The type of the file system on which a path lies; "" where that is not known.

    Args:
        path: of a file or folder, which need not exist.
        mounts: lines as in /proc/mounts; by default those of this process, none where the system has no such list.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text(errors="surrogateescape") if table.exists() else ""
    place = path.resolve()
    length, found = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1]))
        # A later mount on the same folder hides the earlier one.
        if place.is_relative_to(point) and len(point.parts) >= length:
            length, found = len(point.parts), fields[2]
    return found
