set -euo pipefail
cd -- "$folder"

# Whoever has the token runs code on this Ray; the environment is out of other users' sight.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -t x1 | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
# With ray[default] metrics would be served to everybody, token or not.
export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1
temporary=/tmp/vqsearch-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
steps=()
driver=
draining=
time_up=
interrupted=

say() {
    printf 'vqsearch: %s\n' "$*" >&2
}

# shellcheck disable=SC2317 # called by the traps
drain() {
    interrupted=yes
    if [ -n "$driver" ] && [ -z "$draining" ]; then
        draining=yes
        kill -TERM "$driver" 2>/dev/null || true
    fi
}
trap 'time_up=yes; drain' USR1 # the time is nearly up, see --signal above
trap drain TERM                # preempted, or cancelled

# shellcheck disable=SC2317
on() { # NODE COMMAND...: becomes a step with all that the job has on one node
    local node=$1
    shift
    exec srun --nodes=1 --ntasks=1 --overlap --mpi=none --export=ALL --nodelist="$node" --cpus-per-task="$cpus" "$@" \
        </dev/null
}

# shellcheck disable=SC2317
end() { # of the nodes
    trap '' USR1 TERM
    trap - EXIT
    [ "${#steps[@]}" -gt 0 ] || return 0
    kill "${steps[@]}" 2>/dev/null || true
    for _ in {1..100}; do # what is left then ends with the job
        [ -n "$(jobs -rp)" ] || break
        sleep 0.2
    done
    for node in "${nodes[@]}"; do
        (on "$node" rm -rf -- "$temporary") || true
    done
}
trap end EXIT

await_nodes() { # COUNT
    "${python[@]}" search.slurm_job wait "$ip:$port" "$1" &
    local waiting=$!
    while kill -0 "$waiting" 2>/dev/null; do
        sleep 0.2
        if [[ $'\n'$(jobs -rp)$'\n' != *$'\n'"${steps[0]}"$'\n'* ]]; then
            kill "$waiting" || true
            say "Ray's head did not start, see above"
            exit 1
        fi
    done
    wait "$waiting"
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r ip port client < <("${python[@]}" search.slurm_job ports)
ray=(ray.scripts.scripts start --block --disable-usage-stats --temp-dir="$temporary" --num-cpus="$cpus")
ray+=(--num-gpus="$gpus" --object-store-memory=134217728 --dashboard-agent-listen-port=0)
on "${nodes[0]}" "${python[@]}" "${ray[@]}" --head --node-ip-address="$ip" --port="$port" \
    ${client:+--ray-client-server-port="$client"} --include-dashboard=false >/dev/null &
steps+=("$!")
await_nodes 1
for node in "${nodes[@]:1}"; do
    on "$node" "${python[@]}" "${ray[@]}" --address="$ip:$port" >/dev/null &
    steps+=("$!")
done
await_nodes "${#nodes[@]}"

status=143
if [ -z "$interrupted" ]; then
    "${python[@]}" "${command[@]}" --address "$ip:$port" --wait-for-nodes &
    driver=$!
    while true; do # a signal that is handled here ends the waiting, not the driver
        interrupted=
        ended=0
        wait "$driver" || ended=$?
        [ "$ended" -eq 127 ] || status=$ended
        [ -n "$interrupted" ] || break
    done
fi
end
if [ -n "$time_up" ] && [ "$status" -gt 128 ]; then # drained, or told before it could drain
    say "the time of job $SLURM_JOB_ID is up; it goes back to the queue, and on from there"
    if scontrol requeue "$SLURM_JOB_ID"; then
        exit 0
    fi
    say "Slurm does not take it back; submitted again, this script goes on"
fi
exit "$status"
