#!/bin/sh
# A clean Debian root with systemd, below $1; made once; concurrent callers wait for the lock.
set -eu
home=$1
mkdir -p "$home"
exec 9>"$home/lock"
flock 9
[ -e "$home/done" ] && exit 0
rm -rf "$home/root"
# Documentation is not unpacked.
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2 bookworm "$home/root" \
  >"$home/log" 2>&1 9>&- || { tail -n 5 "$home/log" >&2; exit 1; }
rm -rf "$home/root/var/cache/apt/archives" "$home/root/var/lib/apt/lists"
mkdir -p "$home/root/var/cache/apt/archives/partial" "$home/root/var/lib/apt/lists/partial"
touch "$home/done"
