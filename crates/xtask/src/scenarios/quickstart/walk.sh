# What comes before the commands of a page: directories that the page may change, laid over the machine's own in a mount namespace
# that ends with the walk. $QUICKSTART is the directory of the walk, $RUNTIME what is there before it begins.
set -eu
over() {
  mkdir -p "$QUICKSTART/over$1" "$QUICKSTART/work$1"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$QUICKSTART/over$1,workdir=$QUICKSTART/work$1" "$1"
}
in_place_of() {
  mkdir -p "$QUICKSTART/place$1"
  mount --bind "$QUICKSTART/place$1" "$1"
}
over /etc
over /usr/local/bin
in_place_of /var/lib
in_place_of /run
mkdir -p /run/lock /etc/systemd/system
# After /run, which a link there may lead to.
cp "$QUICKSTART/hosts" "$QUICKSTART/hosts-here"
mount --bind "$QUICKSTART/hosts-here" /etc/hosts
mount --bind "$QUICKSTART/systemctl" /usr/bin/systemctl
cp "$QUICKSTART/authority.pem" /etc/ssl/hub.pem
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
files >"$QUICKSTART/files-before"
systemctl start "$RUNTIME"
cd "$QUICKSTART/downloaded"
