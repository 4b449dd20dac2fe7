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
    # The mirror that the filesystem was made from.
    mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' "$root/etc/apt/sources.list" | head -n 1)
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$store"
    for suite in "$SLURM_MIG_SUITE" sid; do
        echo "deb $mirror $suite contrib"
    done >"$work/sources.list"
    local options=(-qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o Acquire::Check-Valid-Until=false)
    (
        cd "$work"
        apt-get "${options[@]}" update
        apt-get "${options[@]}" download "slurm-wlm-nvml-plugin=$version*"
        dpkg-deb -x ./*.deb files
    ) >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        say "It could not be fetched: tests/cluster/test_foreign_readers.py will fail."
        rm -rf "$work"
        return 0
    }
    find "$work/files" -name gpu_nvml.so -exec cp {} "$store/gpu_nvml-$version.so" \;
    rm -rf "$work"
}
