#!/bin/bash
# Runs megatron-lst training in Docker on one of several hosts: start it on each, the same but for NODE_RANK.
#
#   IMAGE=megatron-lst NODES=2 NODE_RANK=0 ADDRESS=node-a RUNS=/shared/runs DATA=/shared/data CONFIGS=$PWD/configs \
#     launchers/docker/train.sh configs/lst-1b.yaml training.steps=1000
#
# ADDRESS is host 0 as the others reach it; PORT must be free there and open between the hosts alone. RUNS is a folder
# that all hosts share: checkpoints of all ranks go there. The container uses the host's network, as NCCL and
# InfiniBand want it. `docker stop` lets the ranks save: it waits GRACE seconds for them.
set -euo pipefail

IMAGE=${IMAGE:-megatron-lst}
NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
ADDRESS=${ADDRESS:-}
PORT=${PORT:-29400}
PROCESSES=${PROCESSES:-}
GPUS=${GPUS:-all}
SHM=${SHM:-16g}
GRACE=${GRACE:-600}
RUNS=${RUNS:-$PWD/runs}
DATA=${DATA:-$PWD/data}
CONFIGS=${CONFIGS:-$PWD/configs}
RUN_DIR=${RUN_DIR:-}  # a run folder outside RUNS: an absolute path, the same in the container
NAME=${NAME:-megatron-lst-$NODE_RANK}

[ $# -ge 1 ] || { echo "usage: $0 CONFIG [key=value ...], with NODES, NODE_RANK, ADDRESS, ... in the environment" >&2; exit 2; }
if [ "$NODES" -gt 1 ] && [ -z "$ADDRESS" ]; then
  echo "ADDRESS: several hosts need the name or address of host 0" >&2
  exit 2
fi

options=(
  --rm --init --name "$NAME"
  --network host --ipc host --shm-size "$SHM"
  --ulimit memlock=-1 --ulimit stack=67108864 --ulimit nofile=1048576 --ulimit core=0
  --stop-signal SIGTERM --stop-timeout "$GRACE"
  --security-opt no-new-privileges
  --user "$(id -u):$(id -g)" --env HOME=/tmp --env USER="$(id -un || true)"  # the image's passwd does not know this user
  --volume "$RUNS:/lst/runs" --volume "$DATA:/lst/data:ro" --volume "$CONFIGS:/lst/configs:ro" --workdir /lst
  --entrypoint python
)
if [ -n "$RUN_DIR" ]; then
  mkdir -p "$RUN_DIR"
  options+=(--volume "$RUN_DIR:$RUN_DIR")
fi
if [ "$GPUS" != none ]; then
  options+=(--gpus "$GPUS")
  if [ -z "$PROCESSES" ]; then  # one rank for each GPU that the container gets
    case "$GPUS" in
      all) PROCESSES=$(nvidia-smi --list-gpus | wc -l) ;;
      *[!0-9]*) echo "PROCESSES: say how many GPUs GPUS=$GPUS are" >&2; exit 2 ;;
      *) PROCESSES=$GPUS ;;
    esac
  fi
fi
for device in /dev/infiniband/*; do  # RDMA, where the host has it
  [ -e "$device" ] && options+=(--device "$device")
done
while IFS= read -r name; do  # what is set for NCCL and gloo on the host holds in the container
  options+=(--env "$name")
done < <(compgen -e | grep -E '^(NCCL|GLOO|UCX)_' || true)

network=()
[ "$NODES" -gt 1 ] && network=(--nodes "$NODES" --node-rank "$NODE_RANK" --address "$ADDRESS" --port "$PORT")
exec docker run "${options[@]}" "$IMAGE" -m megatron_lst.launching.agent \
  --processes "${PROCESSES:-1}" "${network[@]}" -- train "$@"
