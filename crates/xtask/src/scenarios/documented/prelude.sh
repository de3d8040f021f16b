# What comes before the commands. $WALK is the directory of the walk; `at` says which block of a page is being typed.
set -euo pipefail
at=start
trap 'code=$?; [ "$code" = 0 ] || echo "$at: exit code $code" >&2' EXIT
over /etc
over /usr/local
in_place_of /var/lib
in_place_of /run
mkdir -p /run/lock
# After /run, which a link there may lead to.
cp "$WALK/hosts" "$WALK/hosts-here"
mount --bind "$WALK/hosts-here" /etc/hosts
cp "$WALK/authority.pem" /etc/ssl/hub.pem
export SSL_CERT_FILE=/etc/ssl/hub.pem
# What is typed does not depend on how full this machine's disk is.
export EAGLE_SEEDER__MIN_FREE=16MiB EAGLE_PROXY__MIN_FREE=16MiB
export PATH="$WALK/bin:$PATH"
# An answer of 400 and above is a failure.
export CURL_HOME="$WALK"
printf 'fail\nshow-error\n' >"$WALK/.curlrc"
# As a fresh machine has them.
rm -rf /etc/docker /etc/containerd /etc/eagle /etc/containers
mkdir -p /etc/eagle /etc/containers/registries.conf.d
# podman without systemd, and with what it unpacks kept in the plainest way, which works on every file system. No signatures are wanted.
cat >/etc/containers/containers.conf <<'CONFIGURATION'
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
CONFIGURATION
cat >/etc/containers/storage.conf <<'CONFIGURATION'
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
CONFIGURATION
echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' >/etc/containers/policy.json
# The machine's own authorities take the tool that collects them a few seconds.
: >/etc/ca-certificates.conf

# start MACHINE COMMAND: what runs on a machine from here on; returns once it says that it is ready.
start() {
  # Of one that ran before it may say so too.
  : >"$WALK/$1.log"
  sh -c "exec $2" </dev/null >>"$WALK/$1.log" 2>&1 &
  echo $! >"$WALK/$1.pid"
  tries=0
  until grep -q '"message":"ready"' "$WALK/$1.log"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$(cat "$WALK/$1.pid")"; then
      echo "$2 is not ready" >&2
      exit 1
    fi
    sleep 0.1
  done
}

stop() {
  kill "$(cat "$WALK/$1.pid")"
  wait "$(cat "$WALK/$1.pid")"
}

mkdir "$WALK/here"
cd "$WALK/here"
printf '# of the release\ndebian:12\n' >images.txt
cat >proxy.yaml <<'CONFIGURATION'
cluster:
  key_file: /etc/eagle/cluster.key
proxy:
  trackers: ["http://tracker:6969"]
  seeders: ["http://seeder:55008"]
CONFIGURATION
