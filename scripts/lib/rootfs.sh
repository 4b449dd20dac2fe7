# shellcheck shell=bash
# Makes and enters the root filesystem that tests, demo and testbed run in. Sourced by scripts/*.
#
# A Debian with Slurm, munge, Python and everything the project needs is made once by mmdebstrap and
# kept under $SLURM_MIG_CACHE (default /var/cache/slurm-mig). It is entered read-only, in private
# namespaces, under an overlay in memory: nothing of the host is touched, nothing is left behind.

SLURM_MIG_CACHE=${SLURM_MIG_CACHE:-/var/cache/slurm-mig}
SLURM_MIG_SUITE=${SLURM_MIG_SUITE:-forky}
SLURM_EXPECTED=26.05
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

packages=(
    slurmctld slurmd slurm-client slurm-wlm-basic-plugins libslurm-dev munge
    slurmdbd mariadb-server openssh-server openssh-client
    python3-venv python3-dev gcc libc6-dev make iproute2 procps util-linux ca-certificates
    # What judges the exports, the metrics and the report: the real tools.
    podman crun docker-compose libvirt-clients prometheus chromium-headless-shell fonts-dejavu-core
    mandoc golang-tags.cncf-container-device-interface-dev
)

say() { printf '%s\n' "$*" >&2; }
fail() { say "slurm-mig: $*"; exit 1; }

# The part of setup.cfg that says what is installed.
requirements() { sed -n '/^install_requires/,/^$/p; /^controller =/,/^$/p; /^dev =/,/^$/p; /^bench =/,/^$/p' "$project/setup.cfg"; }

# The recipe's fingerprint names the filesystem: another recipe makes another one.
rootfs_path() {
    local hash
    hash=$(cat "$project/scripts/lib/rootfs.sh" "$project/scripts/build-pyslurm" \
        "$project/scripts/lib/pyslurm-compat.h" |
        { cat; echo "$SLURM_MIG_SUITE"; requirements; } | sha256sum | cut -c1-12)
    echo "$SLURM_MIG_CACHE/rootfs-$hash"
}

# Runs a step quietly; shows the end of its log when it fails.
logged() {
    "$@" >>"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "that step failed; the whole log is $log"; }
}

# Prints the path of the root filesystem, making it first if need be.
rootfs_ensure() {
    local target lock
    [ "$(id -u)" = 0 ] || fail "this needs root (namespaces and mounts); nothing was changed"
    target=$(rootfs_path)
    if [ ! -e "$target/.complete" ]; then
        mkdir -p "$SLURM_MIG_CACHE"
        exec {lock}>"$SLURM_MIG_CACHE/lock"
        flock "$lock"
        [ -e "$target/.complete" ] || rootfs_make "$target" >&2
        exec {lock}>&-
    fi
    echo "$target"
}

rootfs_make() {
    local target=$1 new log found mirror
    new=$SLURM_MIG_CACHE/new.$$
    log=$SLURM_MIG_CACHE/build.log
    : >"$log"
    say "Making a root filesystem in $SLURM_MIG_CACHE (once; 3 to 5 minutes on two cores)."
    rm -rf "$SLURM_MIG_CACHE"/new.*
    say "[1/4] mmdebstrap on this machine"
    if ! command -v mmdebstrap >/dev/null; then
        logged apt-get update
        logged env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap
    fi
    say "[2/4] Debian $SLURM_MIG_SUITE with Slurm, munge and Python"
    mapfile -t mirror < <(debian_mirror)
    # A mirror frozen at a date has release files past their validity.
    logged mmdebstrap --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        --include="$(IFS=,; echo "${packages[*]}")" "$SLURM_MIG_SUITE" "$new" "${mirror[@]}"
    found=$(chroot "$new" slurmctld -V | awk '{print $2}')
    case $found in
        "$SLURM_EXPECTED"*) say "      Slurm $found" ;;
        *) say "      Slurm $found: not the expected $SLURM_EXPECTED; used if pyslurm builds for it" ;;
    esac
    rootfs_users "$new"
    say "[3/4] Python packages"
    install_hosts_settings "$new"
    mkdir -p "$new/opt/slurm-mig/src"
    logged in_new "$new" python3 -m venv /opt/slurm-mig/venv
    logged in_new "$new" /opt/slurm-mig/venv/bin/python /opt/slurm-mig/src/scripts/lib/requirements.py \
        /opt/slurm-mig/src/setup.cfg /tmp/requirements.txt
    logged in_new "$new" /opt/slurm-mig/venv/bin/pip install -q -r /tmp/requirements.txt
    say "[4/4] pyslurm for Slurm $found (about 2 minutes)"
    logged in_new "$new" /opt/slurm-mig/src/scripts/build-pyslurm /opt/slurm-mig/venv
    rootfs_commands "$new"
    touch "$new/.complete"
    rootfs_remove_others
    mv "$new" "$target"
    say "Done."
}

# Older filesystems go, except one that something still runs in (enter holds a lock on it).
rootfs_remove_others() {
    local other
    for other in "$SLURM_MIG_CACHE"/rootfs-*; do
        [ -d "$other" ] || continue
        flock --exclusive --nonblock "$other" rm -rf "$other" ||
            say "      $(basename "$other") is in use: left for the next time"
    done
}

# The Debian mirror that this machine uses; nothing when it has none of Debian's own.
debian_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 2>/dev/null |
        grep -v security | head -n 1
}

rootfs_users() {
    chroot "$1" useradd --create-home --uid 2001 --shell /bin/bash alice
    chroot "$1" useradd --create-home --uid 2002 --shell /bin/bash bob
}

# pip's and TLS's settings of this machine, so that an install inside reaches what one outside does.
install_hosts_settings() {
    local bundle=/etc/ssl/certs/ca-certificates.crt
    [ ! -e "$bundle" ] || cp -L "$bundle" "$1$bundle"
    pip_config >"$1/etc/pip.conf"
}

# Index settings only: caches and the like stay the host's own.
pip_config() {
    local key value
    echo "[global]"
    command -v pip >/dev/null || return 0
    pip config list 2>/dev/null | while IFS='=' read -r key value; do
        case ${key##*.} in
            index-url | extra-index-url | find-links | trusted-host) echo "${key##*.} = ${value//\'/}" ;;
        esac
    done | sort -u
}

# Folders of this machine that its pip settings name; not what the new filesystem has itself.
local_indexes() {
    local dir
    [ -r "$1/etc/pip.conf" ] || return 0
    sed -n 's/^[a-z-]* = //p' "$1/etc/pip.conf" | tr ' ' '\n' | sed 's,^file://,,' |
        sed -n 's,^\(/[^/]*/[^/]*\).*,\1,p' | sort -u | while read -r dir; do
            [ ! -d "$dir" ] || [ -n "$(ls -A "$1$dir" 2>/dev/null)" ] || echo "$dir"
        done
}

# Runs a command in a filesystem under construction, with the network and the checkout.
in_new() {
    local root=$1
    shift
    # shellcheck disable=SC2016
    unshare -m --propagation private bash -euc '
        root=$1; project=$2; indexes=$3; shift 3
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount --bind "$project" "$root/opt/slurm-mig/src"
        for dir in $indexes; do
            mkdir -p "$root$dir"
            mount --bind "$dir" "$root$dir"
        done
        cp /etc/resolv.conf "$root/etc/resolv.conf"
        exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 "$@"
    ' in_new "$root" "$project" "$(local_indexes "$root")" "$@"
}

# slurm-mig runs from the bind-mounted checkout.
rootfs_commands() {
    echo /opt/slurm-mig/src >"$(echo "$1"/opt/slurm-mig/venv/lib/python3*/site-packages)/slurm-mig.pth"
    cat >"$1/usr/local/bin/slurm-mig" <<'EOF'
#!/bin/sh
exec /opt/slurm-mig/venv/bin/python -m slurm_mig.cli "$@"
EOF
    chmod 755 "$1/usr/local/bin/slurm-mig"
}
