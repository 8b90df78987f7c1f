#!/bin/bash
# Written by `solo launch tpu-vm`; runs as root at every boot of every host of the slice.
set -uo pipefail
exec >> /var/log/solo.log 2>&1
bucket=@BUCKET@
launch=@LAUNCH@
image=@IMAGE@
mount=/mnt/solo
metadata() {
  curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
# Tells `solo launch watch` to release the machines.
give_up() {
  echo "launch: giving up: $1"
  echo 1 | gcloud storage cp - "gs://$bucket/$launch/ended"
  exit 1
}
echo "launch: $(date --iso-8601=seconds) host $(metadata agent-worker-number) starts"

if ! command -v gcsfuse > /dev/null; then
  repository="gcsfuse-$(lsb_release -c -s)"
  curl -sf https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt $repository main" \
    > /etc/apt/sources.list.d/gcsfuse.list
  # Waits for the lock if another boot job holds it.
  apt-get -o DPkg::Lock::Timeout=600 update -q && apt-get -o DPkg::Lock::Timeout=600 install -y -q gcsfuse
fi
mkdir -p "$mount"
mountpoint -q "$mount" || gcsfuse --implicit-dirs "$bucket" "$mount" || give_up "cannot mount gs://$bucket"
ended=$mount/$launch/ended
if [[ -e $ended ]]; then
  echo "launch: the run has ended with $(cat "$ended")"
  exit 0
fi

gcloud auth configure-docker @REGISTRY@ --quiet
for try in 1 2 3 4 5; do
  docker pull "$image" && break
  sleep $((try * 20))
done
docker rm --force solo 2> /dev/null

# Values of secrets stay in memory: they are neither arguments nor files, and Docker does not keep them.
read_secret() {
  for try in 1 2 3 4 5; do
    gcloud secrets versions access "$@" && return
    sleep $((try * 5))
  done
  return 1
}
@SECRETS@

# --init passes SIGTERM on to the supervisor, which passes it on to the run. The firewall of Cloud TPU opens this port.
# Copies of data in buckets outlive the container.
docker run --name solo --init --interactive --privileged --net=host --shm-size=16g --stop-timeout=120 \
  --volume "$mount:$mount" --volume /var/cache/solo:/root/.cache/solo --env JAX_COORDINATOR_PORT=8476 @VARIABLES@ "$image" \
  python -m solo.launch.supervisor @OPTIONS@ -- solo train "$mount/$launch/config.yaml"@STDIN@
status=$?
echo "launch: $(date --iso-8601=seconds) ended with $status"
# Tells `solo launch watch` to release the machines. After 42 or a signal they are gone, or start again.
if ((status != 42 && status < 127)) && [[ ! -e $ended ]]; then
  echo "$status" > "$ended"
fi
