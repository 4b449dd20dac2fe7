# shellcheck shell=bash disable=SC2154
# enter ROOTFS COMMAND...: runs the command as root in private mount, pid, uts and network
# namespaces, in the root filesystem under an overlay in memory. Everything in there ends with it.
# Sourced by scripts/*; takes $project and $SLURM_MIG_CACHE from rootfs.sh.

enter() {
    local root=$1 lock run=$BASHPID rc=0
    shift
    mkdir -p "$SLURM_MIG_CACHE/mnt"
    # Held while anything runs in it: rootfs_make leaves a filesystem in use alone.
    exec {lock}<"$root"
    flock --shared "$lock"
    sweep_cgroups
    set -- "$root" "$project" "$SLURM_MIG_CACHE" "$run" "$@"
    if [ -n "${enter_pid_file:-}" ]; then
        enter_namespaces "$@" &
        echo $! >"$enter_pid_file"
        wait $! || rc=$?
    else
        (enter_namespaces "$@") || rc=$?
    fi
    remove_cgroups "$run"
    exec {lock}<&-
    return "$rc"
}

# A cluster's control groups bear the pid of the shell that entered (SLURM_MIG_RUN). A cluster that
# was killed could not remove them: its shell does, or, killed too, the next one to enter.
# Never a group with a process in it, nor another's: the name must be ours, its shell dead.
sweep_cgroups() {
    local group run
    for group in /sys/fs/cgroup/slurm-mig-*-* /sys/fs/cgroup/*/slurm-mig-*-*; do
        [[ $group =~ /slurm-mig-([0-9]+)-[0-9a-f]{8}$ ]] || continue
        run=${BASH_REMATCH[1]}
        [ ! -e "/proc/$run" ] || continue
        [ -n "$(processes_of "$run")" ] || remove_cgroups "$run"
    done
}

processes_of() {
    find /sys/fs/cgroup/slurm-mig-"$1"-* /sys/fs/cgroup/*/slurm-mig-"$1"-* \
        -name cgroup.procs -exec cat {} + 2>/dev/null
}

remove_cgroups() {
    local group try state
    [[ $1 =~ ^[0-9]+$ ]] || return 0
    for group in /sys/fs/cgroup/slurm-mig-"$1"-* /sys/fs/cgroup/*/slurm-mig-"$1"-*; do
        # Killed processes take a moment to leave their group; a frozen one leaves it when thawed.
        for try in 1 2 3 4 5 6 7 8 9 10; do
            [ -d "$group" ] || break
            find "$group" -name freezer.state 2>/dev/null | while read -r state; do
                echo THAWED 2>/dev/null >"$state" || true
            done
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
            [ "$try" = 10 ] || sleep 0.1
        done
    done
}

# Replaces the shell that it runs in. Ends when the shell that entered does, however that ends:
# unshare blocks SIGTERM, and the first process of a pid namespace ignores it.
enter_namespaces() {
    # shellcheck disable=SC2016
    exec setpriv --pdeathsig KILL unshare -mpnu --fork --kill-child --propagation private bash -euc '
        root=$1; project=$2; cache=$3; run=$4; shift 4
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
            SLURM_MIG_RUN="$run" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 "$@"
    ' enter "$@"
}
