#!/bin/sh
# reshape_bare.sh NODE STATE VANISHING: the bare procedure, to compare with. Prints its seconds.
#
# Drain, write the two files, `scontrol update`, restart slurmd, wait until slurmctld shows the new
# Gres, resume. When a type vanishes under running jobs it takes two registrations: first with a line
# that still lists each such type, one device taken from those that are many.
set -eu
node=$1 state=$2 vanishing=$3
ours=/etc/slurm/slurm-mig
line=$(sed -n "s/^NodeName=$node .*Gres=//p" "$state-nodes.conf")
shown=$(cat "$state-shown")

now() { date +%s.%N; }
until_shown() {
    until scontrol show node -d -o "$node" | grep -q "$1"; do sleep 0.01; done
}
restart() {
    on-node "$node" restart-slurmd
}

start=$(now)
scontrol update "NodeName=$node" State=DRAIN "Reason=by hand"
cp "$state-gres.conf" $ours/gres.conf
cp "$state-nodes.conf" $ours/nodes.conf
if [ -n "$vanishing" ]; then
    bridge=$line
    for gres_type in $vanishing; do
        n=$(echo "$bridge" | sed 's/.*gpu:1g\.5gb:\([0-9]*\).*/\1/')
        bridge=$(echo "$bridge" |
            sed "s/gpu:1g\.5gb:$n/gpu:1g.5gb:$((n - 1))/; s/,gpu:$gres_type:0//"),gpu:$gres_type:1
    done
    scontrol update "NodeName=$node" "Gres=$bridge"
    restart
    until_shown INVALID_REG
fi
scontrol update "NodeName=$node" "Gres=$line"
restart
until scontrol show node -d -o "$node" | grep -v INVALID_REG | grep -qF " Gres=$shown "; do sleep 0.01; done
scontrol update "NodeName=$node" State=RESUME
now | awk -v start="$start" '{ printf "%.4f\n", $1 - start }'
