"""What makes the testbed's hosts out of namespaces: shell scripts that run as root in them."""

from __future__ import annotations

import shlex

from tests.testbed.namespaces import ENVIRONMENT

ENV_WORDS = " ".join(shlex.quote(f"{k}={v}") for k, v in ENVIRONMENT.items())

PREPARE = f"""
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /etc/slurm
mount -t tmpfs -o mode=755 tmpfs /var/spool
mount -t tmpfs -o mode=755 tmpfs /var/log
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /var/lib/slurm-mig /var/lib/slurm /proc/driver /run/nodes /run/lock
mount -t tmpfs -o mode=755 tmpfs /var/lib/slurm-mig
mount -t tmpfs -o mode=755 tmpfs /var/lib/slurm
mkdir -p /run/slurm /run/munge /run/nodes /run/slurm-mig/ctld /tmp/jobs
echo 1 > /run/nodes/head.pid
mkdir -p /var/lib/slurm/ctld /var/log/slurm /var/log/munge
chmod 1777 /tmp/jobs
chown munge:munge /run/munge /var/log/munge
chown slurm:slurm /run/slurm /run/slurm-mig/ctld /var/lib/slurm/ctld /var/log/slurm
hostname head
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
cat > /run/on-node <<'EOF'
#!/bin/sh
# on-node NODE COMMAND...: runs it on a node; the testbed's stand-in for ssh.
name=$1; shift
exec nsenter -t "$(cat /run/nodes/$name.pid)" -m -n -u -- env -i {ENV_WORDS} "$@"
EOF
cat > /run/start-slurmd <<'EOF'
#!/bin/sh
exec slurmd -N "$1" $(cat /run/nodes/$1.options 2>/dev/null)
EOF
cat > /run/restart-slurmd <<'EOF'
#!/bin/sh
# What `systemctl restart slurmd` is elsewhere: stops it with a deadline, starts it again.
name=$(hostname)
pid=$(cat /run/slurm/slurmd-$name.pid 2>/dev/null)
if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then
    n=0
    while kill -0 "$pid" 2>/dev/null; do
        n=$((n + 1)); [ $n -lt 2000 ] || kill -KILL "$pid"
        sleep 0.01
    done
fi
exec start-slurmd "$name"
EOF
chmod 755 /run/on-node /run/restart-slurmd /run/start-slurmd
# All clusters share these directories, and several may start at once.
for command in bin/on-node bin/start-slurmd sbin/restart-slurmd; do
    new=$(mktemp -p /usr/local/bin)
    cp "/run/$(basename $command)" "$new"
    chmod 755 "$new"
    mv -f "$new" "/usr/local/$command"
done
"""
"""On the head: folders, the bridge, and the commands that stand for ssh and systemd."""

SECOND_HEAD = """
name=$1
hostname "$name"
mkdir -p "/run/slurm-$name"
chown slurm:slurm "/run/slurm-$name"
mount --bind "/run/slurm-$name" /run/slurm
echo $$ > "/run/nodes/$name.pid"
while :; do sleep 3600 & wait; done
"""
"""The host of a second slurmctld."""

HOST = """
name=$1
hostname "$name"
mount -t tmpfs -o mode=755 tmpfs /dev
for n in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
    set -- $n; mknod -m 666 /dev/$1 c 1 $2
done
mknod -m 666 /dev/tty c 5 0
mkdir /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /run/slurm-mig /run/nvml-sim
mount -t tmpfs -o mode=755 tmpfs /run/slurm-mig
mount -t tmpfs -o mode=755 tmpfs /run/nvml-sim
mount -t tmpfs -o mode=755 tmpfs /var/lib/slurm-mig
mount -t tmpfs -o mode=755 tmpfs /proc/driver
major=511
while grep -q "^ *$major " /proc/devices; do major=$((major - 1)); done
{ echo "Character devices:"; echo "195 nvidia"; echo "$major nvidia-caps"
  sed -n '/^Character/,$p' /proc/devices | tail -n +2; } > /run/nvml-sim/devices
mount --bind /run/nvml-sim/devices /proc/devices
echo $$ > "/run/nodes/$name.pid"
while :; do sleep 3600 & wait; done
"""
"""A GPU node: a /dev of its own, a driver's folder in /proc, its number for nvidia-caps."""
