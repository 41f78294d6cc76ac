# A real `hawser serve` for scripts that speak to one: embedded SQLite in a temporary folder, loopback only, gone when
# the script ends. How the program is started is written here and nowhere else.
# shellcheck shell=bash

# server_start: starts it and sets HAWSER_ADDR and HAWSER_OPERATOR_KEY for whoever is to call it.
server_start() {
  if [ -z "${HAWSER_BIN:-}" ]; then
    (cd "$root" && cargo build --locked --bin hawser)
    HAWSER_BIN=$target/debug/hawser
  fi
  local pid port
  temp_dir server
  HAWSER_OPERATOR_KEY=hwk_$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  export HAWSER_ADDR HAWSER_OPERATOR_KEY

  # Nobody can reserve a port, so one below the ephemeral range is tried until the server gets it.
  for _ in {1..20}; do
    port=$((20000 + RANDOM % 12000))
    HAWSER_ADDR=127.0.0.1:$port
    "${die_with_us[@]}" TERM "$HAWSER_BIN" serve --data-dir "$temp/data" --grpc-listen "$HAWSER_ADDR" \
      --allow-http --allow-net 127.0.0.0/8 >"$temp/log" 2>&1 &
    pid=$!
    for _ in {1..500}; do
      kill -0 "$pid" 2>/dev/null || break
      if "$HAWSER_BIN" health --address "http://$HAWSER_ADDR" >/dev/null 2>&1 && kill -0 "$pid" 2>/dev/null; then
        at_exit stop_process "$pid" TERM 30
        return 0
      fi
      sleep 0.02
    done
    if kill -0 "$pid" 2>/dev/null; then
      stop_process "$pid" KILL 5
      break
    fi
    wait "$pid" || true
    grep -qi 'in use' "$temp/log" || break
  done
  cat "$temp/log" >&2
  die "hawser serve did not become ready (its log is above)"
}
