# One private PostgreSQL cluster: an unprivileged process in a private temporary folder, on a free port of
# 127.0.0.1, behind a random password, gone when the script ends. It keeps its promises to disk (fsync is on),
# because tests kill servers and benchmarks measure commits. The password is asked for as it is: to answer SCRAM a client
# hashes 4,096 times for each connection, which was a good part of a debug build's work in the tests.
# shellcheck shell=bash

postgres_url=
postgres_pid=

# postgres_start [NAME=VALUE…]: starts the cluster with extra settings and leaves its address in $postgres_url.
# shellcheck disable=SC2120 # settings are optional
postgres_start() {
  [ -z "$postgres_url" ] || return 0
  local bin as=() dir data password port
  bin=$(postgres_bin) || die "PostgreSQL 15 or newer is needed: initdb and postgres were not found. Debian: apt-get install postgresql"

  temp_dir postgres
  dir=$temp data=$temp/data
  password=$(od -An -N18 -tx1 /dev/urandom | tr -d ' \n')
  printf '%s\n' "$password" >"$dir/password"
  # The server refuses to run as root, and rightly.
  if [ "$(id -u)" = 0 ]; then
    local user=nobody
    ! id postgres >/dev/null 2>&1 || user=postgres
    as=(--reuid "$user" --regid "$(id -g "$user")" --clear-groups)
    chown -R "$user" "$dir"
  fi

  (cd "$dir" && setpriv "${as[@]}" --no-new-privs env -i PATH="$bin:$PATH" LC_ALL=C \
    "$bin/initdb" --pgdata="$data" --username=postgres --auth=password --pwfile="$dir/password" \
    --encoding=UTF8 --locale=C --no-instructions --no-sync) >"$dir/initdb.log" 2>&1 ||
    { cat "$dir/initdb.log" >&2; die "initdb failed (its output is above)"; }
  rm "$dir/password"

  # Nobody can reserve a port, so one below the ephemeral range is tried until the server gets it.
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    postgres_try "$bin" "$dir" "$port" "$@" || continue
    postgres_url=postgres://postgres:$password@127.0.0.1:$port/postgres
    return 0
  done
  die "no free port for PostgreSQL on 127.0.0.1 in 50 tries"
}

# One attempt on one port: 0 when it answers, 1 when the port was taken; ends the script on anything else.
postgres_try() {
  local bin=$1 dir=$2 port=$3 pid settings=(
    listen_addresses=127.0.0.1 port="$3" unix_socket_directories= max_connections=500 fsync=on synchronous_commit=on
    shared_buffers=256MB max_wal_size=4GB max_locks_per_transaction=256 log_min_messages=warning "${@:4}"
  )
  # The server itself is our child, not pg_ctl's: so it ends with us even when we are killed.
  (cd "$dir" && exec "${die_with_us[@]}" INT "${as[@]}" --no-new-privs env -i PATH="$bin:$PATH" LC_ALL=C TZ=UTC \
    "$bin/postgres" -D "$dir/data" "${settings[@]/#/--}") >"$dir/log" 2>&1 &
  pid=$!
  for _ in {1..1500}; do
    if [ "$(sed -n 8p "$dir/data/postmaster.pid" 2>/dev/null)" = "ready   " ]; then
      # Before the folder is removed (cleanups run last first), and at once: the data is thrown away.
      postgres_pid=$pid
      at_exit stop_process "$pid" QUIT 10
      return 0
    fi
    if ! kill -0 "$pid" 2>/dev/null; then
      wait "$pid" || true
      grep -q 'could not bind IPv4 address' "$dir/log" && return 1
      cat "$dir/log" >&2
      die "PostgreSQL did not start (its log is above)"
    fi
    sleep 0.02
  done
  cat "$dir/log" >&2
  stop_process "$pid" QUIT 5
  die "PostgreSQL was not ready after 30 s (its log is above)"
}

# The folder of a server that is new enough. Debian keeps the server's programs out of PATH.
postgres_bin() {
  local dir version
  for dir in "$(dirname "$(readlink -f "$(command -v initdb || echo /)")")" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
    [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] || continue
    version=$("$dir/postgres" --version | grep -oE '[0-9]+' | head -n 1)
    [ "$version" -ge 15 ] || continue
    printf '%s\n' "$dir"
    return 0
  done
  return 1
}

# postgres_template HAWSER URL: leaves in $postgres_template the name of a database beside that of the URL with the schema
# and nothing else, from which the tests make theirs; empty where there is no psql to make it.
postgres_template=
postgres_template() {
  local psql
  psql=$(postgres_bin)/psql || return 0
  [ -x "$psql" ] || return 0
  temp_dir template
  postgres_template=it_template_$$
  "$psql" -qX "$2" -c "CREATE DATABASE $postgres_template"
  at_exit "$psql" -qX "$2" -c "DROP DATABASE IF EXISTS $postgres_template WITH (FORCE)"
  "$1" migrate --data "$temp" --store "${2%/*}/$postgres_template"
  # Which database it is, and of whose keys, each that is made of it finds out for itself.
  "$psql" -qX "${2%/*}/$postgres_template" -c "DELETE FROM store_meta"
}
