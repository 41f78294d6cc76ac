# A real `hawser serve` for scripts that speak to one: embedded SQLite in a temporary folder, loopback only, gone when
# the script ends. How the program is started is written here and nowhere else.
# shellcheck shell=bash

# server_build: makes sure of the program, and leaves its path in $HAWSER_BIN.
server_build() {
  [ -z "${HAWSER_BIN:-}" ] || return 0
  (cd "$root" && cargo build --locked --bin hawser)
  HAWSER_BIN=$target/debug/hawser
}

# server_start OPTIONS…: starts it with these too, and sets HAWSER_ADDR, HAWSER_PORTAL and HAWSER_OPERATOR_KEY for whoever is to call it.
server_start() {
  server_build
  local pid
  temp_dir server
  HAWSER_OPERATOR_KEY=$("$HAWSER_BIN" keys generate)
  export HAWSER_ADDR HAWSER_PORTAL HAWSER_OPERATOR_KEY

  "${die_with_us[@]}" TERM "$HAWSER_BIN" serve --data "$temp/data" --listen 127.0.0.1:0 --admin-listen off --portal-listen 127.0.0.1:0 \
    --ready-file "$temp/ready" --allow-http --allow-net 127.0.0.0/8 --skip-ping "$@" >"$temp/log" 2>&1 &
  pid=$!
  for _ in {1..1500}; do
    if [ -s "$temp/ready" ]; then
      HAWSER_ADDR=$(sed -n 's/.*"grpc":"\([^"]*\)".*/\1/p' "$temp/ready")
      HAWSER_PORTAL=$(sed -n 's/.*"portal":"\([^"]*\)".*/\1/p' "$temp/ready")
      "$HAWSER_BIN" health --addr "http://$HAWSER_ADDR" >/dev/null || die "the server is not healthy"
      at_exit stop_process "$pid" TERM 30
      return 0
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.02
  done
  cat "$temp/log" >&2
  die "hawser serve did not become ready (its log is above)"
}
