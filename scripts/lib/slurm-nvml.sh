# shellcheck shell=bash
# SchedMD's own gpu/nvml plugin, which the tests run against the simulated NVML: an independent
# reader of it. Debian has it in contrib, apart from Slurm; it is fetched once into the cache and not
# installed anywhere. Sourced by scripts/test.

# Prints nothing; leaves $SLURM_MIG_CACHE/simulator/gpu_nvml.so for the Slurm of this filesystem.
slurm_nvml_ensure() {
    local root=$1 store=$SLURM_MIG_CACHE/simulator version work mirror
    version=$(chroot "$root" slurmctld -V | awk '{print $2}')
    [ ! -e "$store/gpu_nvml-$version.so" ] || return 0
    say "Fetching Slurm's nvml plugin $version (once)."
    mapfile -t mirror < <(debian_mirror)
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$store"
    for suite in "$SLURM_MIG_SUITE" sid; do
        echo "deb ${mirror[0]:-http://deb.debian.org/debian} $suite contrib"
    done >"$work/sources.list"
    local options=(-qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o Acquire::Check-Valid-Until=false)
    (
        cd "$work"
        apt-get "${options[@]}" update
        apt-get "${options[@]}" download "slurm-wlm-nvml-plugin=$version*"
        dpkg-deb -x ./*.deb files
    ) >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; fail "the nvml plugin could not be fetched"; }
    find "$work/files" -name gpu_nvml.so -exec cp {} "$store/gpu_nvml-$version.so" \;
    rm -rf "$work"
}
