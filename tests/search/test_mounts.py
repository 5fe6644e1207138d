from pathlib import Path

import pytest

from search.mounts import shared

MOUNTS = """\
/dev/root / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/nvme0n1 /home/me/scratch xfs rw 0 0
10.0.0.1@tcp:/lustre /lustre lustre rw,flock 0 0
beegfs_nodev /mnt/beegfs beegfs rw 0 0
/dev/gpfs /gpfs gpfs rw 0 0
//server/share /mnt/with\\040space cifs rw 0 0
me@host:/data /mnt/ssh fuse.sshfs rw 0 0
/dev/sda1 /mnt/usb fuseblk rw 0 0
server:/old /srv/data nfs rw 0 0
/dev/sdb1 /srv/data ext4 rw 0 0
overlay /var/lib/docker overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/vqsearch.db", "nfs4"),
        ("/home/me/scratch/vqsearch.db", None),
        ("/home/me/scratched/vqsearch.db", "nfs4"),
        ("/lustre/a/b/c.db", "lustre"),
        ("/mnt/beegfs/a.db", "beegfs"),
        ("/gpfs/a.db", "gpfs"),
        ("/mnt/with space/a.db", "cifs"),
        ("/mnt/ssh/a.db", "fuse.sshfs"),
        ("/mnt/usb/a.db", None),
        ("/srv/data/a.db", None),
        ("/somewhere/else/a.db", None),
        ("/homes/a.db", None),
    ],
)
def test_a_path_lies_on_the_innermost_and_latest_mount(path, kind):
    assert shared(Path(path), MOUNTS) == kind


def test_a_link_counts_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("/lustre")
    assert shared(tmp_path / "link/a.db", MOUNTS) == "lustre"


def test_the_mounts_of_this_machine_are_read(tmp_path):
    assert shared(tmp_path / "a.db") is None
