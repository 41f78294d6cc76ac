# What every script here needs: where things are, how to speak, how to leave nothing behind.
# Sourced, never run. The caller has set -euo pipefail.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
# Downloaded tools live beside the build, so that `cargo clean` is the way to be rid of them.
tools=$target/tools

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Prints the comment block at the head of a script: its help is written once, where it is read.
head_comment() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$1"; }

# at_exit CMD…: runs CMD when the script ends for whatever reason, the last registered first.
cleanups=()
at_exit() {
  local quoted
  printf -v quoted '%q ' "$@"
  cleanups+=("$quoted")
  trap run_cleanups EXIT
}
run_cleanups() {
  local status=$? index
  trap - EXIT
  set +e
  for ((index = ${#cleanups[@]} - 1; index >= 0; index--)); do eval "${cleanups[index]}"; done
  exit "$status"
}
# bash runs the EXIT trap on SIGHUP, SIGINT and SIGTERM too. On SIGKILL nothing can; see die_with_us.

# temp_dir NAME: makes a private folder that is removed at exit and leaves its path in $temp.
temp_dir() {
  temp=$(mktemp -d "${TMPDIR:-/tmp}/hawser-$1.XXXXXX")
  at_exit rm -rf "$temp"
}

# Where tests keep their data: in memory where it has room. Nothing of theirs has to outlive the machine, and a disk's
# file system spends more on making and removing hundreds of databases than the tests do on using them.
memory_or_disk() {
  local room free
  room=$(df --output=avail -B1M /dev/shm 2>/dev/null | tail -n 1) || true
  free=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
  if [ -w /dev/shm ] && [ "${room:-0}" -ge 4096 ] && [ "${free:-0}" -ge 6144 ]; then
    printf '/dev/shm\n'
  else
    printf '%s\n' "${TMPDIR:-/tmp}"
  fi
}

# Prefix of a background command: the kernel signals it when this script dies, even by SIGKILL.
die_with_us=(setpriv --pdeathsig)

# stop_process PID SIGNAL SECONDS: signals a child of ours, waits for its end, and kills it when that takes too long.
stop_process() {
  local pid=$1 signal=$2 deadline=$((SECONDS + $3))
  kill "-$signal" "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS > deadline)); then
      say "process $pid did not end within $3 s of SIG$signal; killing it"
      kill -KILL "$pid" 2>/dev/null || true
      break
    fi
    sleep 0.02
  done
  wait "$pid" 2>/dev/null || true
}
