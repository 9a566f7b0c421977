#!/usr/bin/env bash
# A real SLURM on this machine's loopback, for tests: munge, slurmctld and two slurmd nodes with fake GPUs. Root, no
# systemd, no cgroups, no accounting.
#
#   apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
#   tests/slurm/minislurm.sh start | stop | status | kill-node N | start-node N | kill-controller | start-controller
#
# MINISLURM names its folder, NODES, CPUS, MEM and GPUS say what there is (per node). /etc/slurm/slurm.conf becomes a
# link, since the executor's job steps look nowhere else; a configuration that is already there is not touched.
set -euo pipefail

FOLDER=${MINISLURM:-/tmp/minislurm-tests}
NODES=${NODES:-2}
CPUS=${CPUS:-64}
MEM=${MEM:-600000}
GPUS=${GPUS:-8}
PORT=${PORT:-27817}
HOST=$(hostname -s)
CONF=$FOLDER/etc/slurm.conf

die() {
    echo "minislurm: $*" >&2
    exit 1
}

# Waits up to $1 seconds for the rest to succeed.
wait_for() {
    local left=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || die "gave up on: $*; see $FOLDER/log"
        sleep 0.1
    done
}

nodes_are_up() {
    [ "$(sinfo --noheader --Node --states=idle,mixed,allocated --format=%N | sort -u | wc -l)" -ge "$NODES" ]
}

# Starts a daemon that stays in the foreground, and remembers it by name.
daemon() {
    local name=$1
    shift
    setsid "$@" >"$FOLDER/log/$name.out" 2>&1 </dev/null &
    echo $! >"$FOLDER/pids/$name"
}

write_configuration() {
    mkdir -p "$FOLDER"/{etc,log,run,pids,state,gpu}
    chmod -R go+rX "$FOLDER"
    if [ -e /etc/slurm/slurm.conf ] && [ "$(readlink /etc/slurm/slurm.conf)" != "$CONF" ]; then
        die "/etc/slurm/slurm.conf is there already: this machine has a SLURM of its own"
    fi
    [ -s "$FOLDER/etc/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/etc/munge.key")

    local number
    {
        cat <<CONFIGURATION
ClusterName=tests
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$FOLDER/run/munge.socket
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/state/%n
SlurmctldPidFile=$FOLDER/run/slurmctld.pid
SlurmdPidFile=$FOLDER/run/%n.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/%n.log
# no cgroups in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
# a job of the partition "urgent" takes the place of one of "main"
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a job that can never run is refused, or it would pend for ever
EnforcePartLimits=ALL
# squeue tells of a finished job for so long; the executor asks it, as there is no accounting
MinJobAge=600
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=5
CompleteWait=0
# more CPUs and memory than the machine has
SlurmdParameters=config_overrides
CONFIGURATION
        for ((number = 1; number <= NODES; number++)); do
            echo "NodeName=node$number NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + number)) CPUs=$CPUS" \
                "RealMemory=$MEM Gres=gpu:$GPUS State=UNKNOWN"
        done
        echo "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=7-0 DefaultTime=60 DefMemPerCPU=500"
        echo "PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=7-0 DefaultTime=60 DefMemPerCPU=500"
    } >"$CONF"

    # a GPU is a file, here an empty one; GPUs that are only counted make a node invalid
    for ((number = 0; number < GPUS; number++)); do
        : >"$FOLDER/gpu/$number"
    done
    echo "Name=gpu File=$FOLDER/gpu/[0-$((GPUS - 1))]" >"$FOLDER/etc/gres.conf"
    echo "CgroupPlugin=cgroup/v1" >"$FOLDER/etc/cgroup.conf"
    mkdir -p /etc/slurm
    for name in slurm.conf gres.conf cgroup.conf; do
        ln -sfn "$FOLDER/etc/$name" "/etc/slurm/$name"
    done
}

start_node() {
    mkdir -p "$FOLDER/state/node$1"
    daemon "node$1" slurmd -D -N "node$1"
}

start_controller() {
    daemon slurmctld slurmctld -D
    wait_for 20 scontrol ping
}

start() {
    [ "$(id -u)" = 0 ] || die "needs root"
    for program in slurmctld slurmd sbatch munged; do
        command -v "$program" >/dev/null || die "no $program; this script's head names the packages"
    done
    [ -z "$(ls "$FOLDER/pids" 2>/dev/null)" ] || die "is running already; stop it first"
    write_configuration
    # --force: it mistrusts folders that others may write to, such as /tmp
    daemon munged munged --foreground --force --key-file="$FOLDER/etc/munge.key" --socket="$FOLDER/run/munge.socket" \
        --pid-file="$FOLDER/run/munged.pid" --log-file="$FOLDER/log/munged.log" --seed-file="$FOLDER/run/munge.seed"
    wait_for 10 test -S "$FOLDER/run/munge.socket"
    start_controller
    local number
    for ((number = 1; number <= NODES; number++)); do
        start_node "$number"
    done
    wait_for 20 nodes_are_up
}

end_daemon() {
    local file=$FOLDER/pids/$1 left=100 pid
    [ -s "$file" ] || return 0
    pid=$(cat "$file")
    kill -"${2:-TERM}" "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && ((left-- > 0)); do
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
}

stop() {
    if [ -s "$FOLDER/pids/slurmctld" ]; then
        timeout 10 scancel --user=root --full 2>/dev/null || true
        sleep 1
    fi
    local number
    for ((number = 1; number <= NODES; number++)); do
        end_daemon "node$number"
    done
    end_daemon slurmctld
    end_daemon munged
    for name in slurm.conf gres.conf cgroup.conf; do
        if [ "$(readlink "/etc/slurm/$name")" = "$FOLDER/etc/$name" ]; then
            rm "/etc/slurm/$name"
        fi
    done
    rm -rf "$FOLDER/state" # jobs of another day
}

case ${1:-} in
start) start ;;
stop) stop ;;
status) sinfo --Node --format="%N %T %c %m %G" ;;
kill-node) end_daemon "node${2:?which}" KILL ;;
start-node) start_node "${2:?which}" ;;
kill-controller) end_daemon slurmctld KILL ;;
start-controller) start_controller ;;
*) die "say start, stop, status, kill-node N, start-node N, kill-controller or start-controller" ;;
esac
