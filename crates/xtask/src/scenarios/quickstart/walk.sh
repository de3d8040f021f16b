# What comes before the commands of a page. $WALK is the directory of the walk, $RUNTIME what is there before it begins.
set -eu
over /etc
over /usr/local/bin
in_place_of /var/lib
in_place_of /run
mkdir -p /run/lock /etc/systemd/system
# After /run, which a link there may lead to.
cp "$WALK/hosts" "$WALK/hosts-here"
mount --bind "$WALK/hosts-here" /etc/hosts
mount --bind "$WALK/systemctl" /usr/bin/systemctl
cp "$WALK/authority.pem" /etc/ssl/hub.pem
export SSL_CERT_FILE=/etc/ssl/hub.pem
# What is walked through does not depend on how full this machine's disk is.
export EAGLE_SEEDER__MIN_FREE=16MiB EAGLE_PROXY__MIN_FREE=16MiB
rm -rf /etc/docker /etc/containerd /etc/systemd/system/eagle-*
mkdir -p /etc/docker /etc/containerd
echo '{ "debug": false }' >/etc/docker/daemon.json
printf 'version = 2\n[plugins."io.containerd.internal.v1.opt"]\n  path = "/var/lib/containerd"\n' >/etc/containerd/config.toml
# But for the key that dockerd makes itself.
files() {
  find /etc/docker /etc/containerd -type f ! -name key.json -exec sha256sum {} + | sort
}
files >"$WALK/files-before"
systemctl start "$RUNTIME"
cd "$WALK/downloaded"
