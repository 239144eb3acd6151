#!/usr/bin/env bash
# Trains in processes on two hosts, which are two network namespaces of this machine joined by a veth pair.
# Processes of one namespace reach those of the other only through the virtual cable, as on two machines.
# Usage (as root): tools/two_hosts.sh [PROCESSES_PER_HOST] [options of recgrela.train]
set -euo pipefail
per_host=${1:-1}
shift || true
python=${PYTHON:-python}
pair=rg$$
for host in a b; do ip netns add "$pair$host"; done
trap 'for host in a b; do ip netns del "$pair$host"; done' EXIT
ip link add "${pair}va" type veth peer name "${pair}vb"
number=1
for host in a b; do
  ip link set "${pair}v$host" netns "$pair$host"
  ip -n "$pair$host" addr add "10.99.0.$number/24" dev "${pair}v$host"
  ip -n "$pair$host" link set "${pair}v$host" up
  ip -n "$pair$host" link set lo up
  number=$((number + 1))
done

# Runs torchrun in a namespace; the first host serves the rendezvous.
on_host() {
  local host=$1 address=$2 serves=$3
  shift 3
  ip netns exec "$pair$host" env GLOO_SOCKET_IFNAME="${pair}v$host" OMP_NUM_THREADS=1 \
    "$python" -m torch.distributed.run --nnodes 2 --nproc-per-node "$per_host" --rdzv-backend c10d \
    --rdzv-id "$pair" --rdzv-endpoint 10.99.0.1:29400 --rdzv-conf "is_host=$serves" --local-addr "$address" -m recgrela.train "$@" 2>&1 |
    sed "s/^/[host $host] /"
}

sent() { ip -n "${pair}a" -s -j link show "${pair}va" | "$python" -c "
import json, sys
stats = json.load(sys.stdin)[0]['stats64']
print(f\"sent {stats['tx']['bytes']:,} bytes, received {stats['rx']['bytes']:,} bytes\")"; }

on_host a 10.99.0.1 true "$@" &
first=$!
code=0
on_host b 10.99.0.2 false "$@" || code=$?
wait "$first" || code=$?
echo "over the cable, seen from host a: $(sent)"
exit "$code"
