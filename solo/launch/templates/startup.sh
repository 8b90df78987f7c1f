#!/bin/bash
# Written by `solo launch tpu-vm`; runs as root at every boot of every host of the slice.
set -uo pipefail
exec >> /var/log/solo.log 2>&1
mount=/mnt/solo
ended=$mount/@LAUNCH@/ended
metadata() {
  curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
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
mkdir -p $mount
mountpoint -q $mount || gcsfuse --implicit-dirs @BUCKET@ $mount || exit 1
if [[ -e $ended ]]; then
  echo "launch: the run has ended with $(cat "$ended")"
  exit 0
fi

gcloud auth configure-docker @REGISTRY@ --quiet
for try in 1 2 3 4 5; do
  docker pull @IMAGE@ && break
  sleep $((try * 20))
done
docker rm --force solo 2> /dev/null
# --init passes SIGTERM on to the supervisor, which passes it on to the run. The firewall of Cloud TPU opens this port.
docker run --name solo --init --privileged --net=host --shm-size=16g --stop-timeout=120 \
  --volume $mount:$mount --env JAX_COORDINATOR_PORT=8476 @IMAGE@ \
  python -m solo.launch.supervisor --run-folder=@RUN_FOLDER@ @RESTARTS@ -- solo train $mount/@LAUNCH@/config.yaml
status=$?
echo "launch: $(date --iso-8601=seconds) ended with $status"
# Tells `solo launch watch` to release the machines. After 42 or a signal they are gone, or start again.
if ((status != 42 && status < 127)) && [[ ! -e $ended ]]; then
  echo "$status" > "$ended"
fi
