#!/bin/sh
# Stands in for systemd's systemctl on the walk through the quickstarts: it starts, tells and stops what they name, as the units
# say, and nothing else. $WALK is the directory of the walk.
set -eu

fail() {
  echo "systemctl: $*" >&2
  exit 1
}

# The last value of a key in a unit.
value() {
  sed -n "s/^$2=//p" "/etc/systemd/system/$1" | tail -n 1
}

# Waits until a command succeeds.
await() {
  what=$1
  shift
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || fail "$what does not answer: $(tail -n 20 "$WALK/$what.log")"
    sleep 0.1
  done
}

launch() {
  name=$1
  shift
  "$@" </dev/null >>"$WALK/$name.log" 2>&1 &
  echo $! >"$WALK/$name.pid"
}

start() {
  case "$1" in
  docker)
    # A pull needs no bridge and no rules, and the namespace may allow neither.
    launch docker dockerd --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
    await docker docker version
    ;;
  containerd)
    launch containerd containerd
    await containerd ctr version
    ;;
  eagle-*.service)
    [ -f "/etc/systemd/system/$1" ] || fail "there is no unit $1"
    user=$(value "$1" User)
    for state in $(value "$1" StateDirectory); do
      mkdir -p "/var/lib/$state"
      chmod 700 "/var/lib/$state"
      chown "$user:$user" "/var/lib/$state"
    done
    # Unquoted: the words of the command.
    launch "$1" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs $(value "$1" ExecStart)
    await "$1" grep -q '"message":"ready"' "$WALK/$1.log"
    ;;
  *) fail "$1 is not known here" ;;
  esac
}

stop() {
  pid=$(cat "$WALK/$1.pid")
  kill "$pid"
  # One that has ended may wait to be collected.
  while [ -e "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"; do
    sleep 0.1
  done
  rm "$WALK/$1.pid"
}

case "$*" in
"daemon-reload") systemd-analyze verify /etc/systemd/system/eagle-*.service ;;
"start "*) start "$2" ;;
"enable --now "*) start "$3" ;;
"disable --now "*) stop "$3" ;;
"reload docker") kill -HUP "$(cat "$WALK/docker.pid")" ;;
"restart containerd")
  stop containerd
  start containerd
  ;;
*) fail "$* is not known here" ;;
esac
