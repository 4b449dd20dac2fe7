# enter ROOTFS COMMAND...: runs the command as root in private mount, pid, uts and network
# namespaces, in the root filesystem under an overlay in memory. Everything in there ends with it.
# Sourced by scripts/*; takes $project and $SLURM_MIG_CACHE from rootfs.sh.

enter() {
    local root=$1
    shift
    mkdir -p "$SLURM_MIG_CACHE/mnt"
    set -- "$root" "$project" "$SLURM_MIG_CACHE" "$@"
    if [ -n "${enter_pid_file:-}" ]; then
        enter_namespaces "$@" &
        echo $! >"$enter_pid_file"
        wait $!
    else
        enter_namespaces "$@"
    fi
}

enter_namespaces() {
    exec_or_run=
    [ -z "${enter_pid_file:-}" ] || exec_or_run=exec
    # When this shell dies, by whatever signal, everything in there does.
    $exec_or_run setpriv --pdeathsig KILL unshare -mpnu --fork --kill-child --propagation private bash -euc '
        root=$1; project=$2; cache=$3; shift 3
        work=$cache/mnt
        mount -t tmpfs -o mode=755 tmpfs "$work"
        mkdir "$work/upper" "$work/work" "$work/root"
        new=$work/root
        mount -t overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" overlay "$new"
        mount -t proc proc "$new/proc"
        mount --rbind /sys "$new/sys"
        mount --bind "$project" "$new/opt/slurm-mig/src"
        mkdir -p "$cache/simulator" "$new/opt/slurm-mig/simulator"
        mount --bind "$cache/simulator" "$new/opt/slurm-mig/simulator"
        mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
        mount -t tmpfs -o mode=755 tmpfs "$new/run"
        mount -t tmpfs -o mode=755 tmpfs "$new/dev"
        for n in "null 3 666" "zero 5 666" "full 7 666" "random 8 666" "urandom 9 666"; do
            IFS=" " read -r name minor mode <<<"$n"
            mknod -m "$mode" "$new/dev/$name" c 1 "$minor"
        done
        mknod -m 666 "$new/dev/tty" c 5 0
        mkdir "$new/dev/pts" "$new/dev/shm"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
        ln -s pts/ptmx "$new/dev/ptmx"
        ln -s /proc/self/fd "$new/dev/fd"
        mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
        ip link set lo up
        hostname testbed
        # Not just chroot: whoever enters a mount namespace lands on its own root.
        mkdir "$new/old"
        cd "$new"
        pivot_root . old
        umount -l /old
        rmdir /old
        # The simulated driver: compiled once for each state of its sources.
        /opt/slurm-mig/src/scripts/lib/install-simulator
        exec env -i PATH=/opt/slurm-mig/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" COLUMNS="${COLUMNS:-100}" CI="${CI:-}" \
            PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 "$@"
    ' enter "$@"
}
