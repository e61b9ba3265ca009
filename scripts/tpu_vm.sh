#!/usr/bin/env bash
# One command for all workers of a Cloud TPU VM. Prints what it would do; RUN=1 does it.
#
#   scripts/tpu_vm.sh create  NAME ZONE TYPE          # TYPE: v5litepod-16, v5p-128, v6e-64, ...
#   scripts/tpu_vm.sh install NAME ZONE               # this checkout, on every worker
#   scripts/tpu_vm.sh run     NAME ZONE ARGUMENTS...  # of bmx.main; the same line resumes
#   scripts/tpu_vm.sh delete  NAME ZONE
set -euo pipefail

verb=${1:-} name=${2:-} zone=${3:-}
if [[ -z $verb || -z $name || -z $zone ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
shift 3
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # of the VM's image; see `gcloud compute tpus tpu-vm versions list`
port=9871

do_it() {
  if [[ ${RUN:-} == 1 ]]; then
    "$@"
  else
    printf '%q ' "$@"
    printf '\n'
  fi
}

everywhere() { do_it gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

case $verb in
  create)
    do_it gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
      --accelerator-type="${1:?TYPE is missing}" --version="$runtime"
    ;;
  install)
    do_it gcloud compute tpus tpu-vm scp --recurse . "$name:bmx" --zone="$zone" --worker=all
    everywhere "cd bmx && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
    ;;
  run)
    # Each worker knows its number and all addresses from the machine's metadata.
    # shellcheck disable=SC2016
    everywhere 'cd bmx
at() { curl -sf -H Metadata-Flavor:Google "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
hosts=$(at worker-network-endpoints | tr "," "\n" | sed "s/.*://")
.venv/bin/python -m bmx.main --processes=$(echo "$hosts" | wc -l) --process=$(at agent-worker-number) \
  --coordinator=$(echo "$hosts" | head -1):'"$port$(printf ' %q' "$@")"
    ;;
  delete)
    do_it gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
    ;;
  *)
    echo "unknown verb '$verb': create, install, run or delete" >&2
    exit 2
    ;;
esac
