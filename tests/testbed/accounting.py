"""slurmdbd over a private MariaDB, for a cluster that keeps accounts.

Two users, alice and bob, in the account `lab`; QOS `normal` without limits, `limited` with one on a
typed gpu. Everything lies in the cluster's namespaces and ends with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.testbed.cluster import Cluster

TYPES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb", "1g.6gb", "2g.12gb", "4g.24gb")

SLURM_LINES = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.77.0.1
AccountingStorageTRES=gres/gpu,{",".join(f"gres/gpu:{t}" for t in TYPES)}
AccountingStorageEnforce=associations,limits,qos
PriorityWeightAge=1000
PriorityWeightFairshare=1000
PriorityWeightTRES=CPU=10
JobAcctGatherType=jobacct_gather/none
PartitionName=DEFAULT TRESBillingWeights={",".join(f"GRES/gpu:{t}={t[0]}" for t in TYPES)}
"""
"""A job is billed for compute slices: by type, as gres/gpu counts fillers and slices alike."""

_SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=head
DbdAddr=10.77.0.1
SlurmUser=slurm
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""

_DATABASE = """
mkdir -p /run/mysqld /var/lib/mysql
mount -t tmpfs -o mode=755 tmpfs /var/lib/mysql

chown mysql:mysql /run/mysqld /var/lib/mysql
mariadb-install-db --user=mysql --datadir=/var/lib/mysql --skip-test-db >/dev/null 2>&1
setsid -f mariadbd --no-defaults --user=mysql --datadir=/var/lib/mysql --skip-networking \
    --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --skip-name-resolve \
    >/var/log/mariadb.log 2>&1 </dev/null
"""

_ACCOUNTS = """
sacctmgr -i add account lab
sacctmgr -i add qos limited
sacctmgr -i modify qos limited set GrpTRES=gres/gpu:3g.20gb=1
sacctmgr -i add user alice,bob Account=lab QOS=normal,limited
"""


def start(cluster: Cluster) -> None:
    """Bring up the database and slurmdbd; slurmctld comes after."""
    cluster.sh(_DATABASE)
    cluster.wait_for(
        lambda: not cluster.run("mariadb-admin", "ping", check=False).returncode, 30, "MariaDB"
    )
    # slurmdbd would make the database itself, but libmariadb 11.8.9 then refuses its next query.
    cluster.run(
        "mariadb", "-e", "CREATE DATABASE slurm_acct_db; CREATE USER slurm@localhost IDENTIFIED "
        "VIA unix_socket; GRANT ALL ON slurm_acct_db.* TO slurm@localhost")  # fmt: skip
    cluster.write("/etc/slurm/slurmdbd.conf", _SLURMDBD_CONF, mode="600")
    cluster.sh("chown slurm:slurm /etc/slurm/slurmdbd.conf")
    cluster.run("slurmdbd", user="slurm")
    cluster.wait_for(
        lambda: not cluster.run("sacctmgr", "-n", "show", "cluster", check=False).returncode,
        30, "slurmdbd")  # fmt: skip
    cluster.run("sacctmgr", "-i", "add", "cluster", "testbed")


def fill(cluster: Cluster) -> None:
    """Make the accounts, once slurmctld has said which typed gpus are counted."""
    cluster.wait_for(
        lambda: "gpu:3g.20gb" in cluster.run("sacctmgr", "-n", "show", "tres").stdout,
        30, "slurmdbd to know the typed gpus")  # fmt: skip
    cluster.sh(_ACCOUNTS)
