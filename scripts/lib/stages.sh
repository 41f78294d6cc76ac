# Named stages that are announced, timed and tabled. A stage is a function stage_NAME; the first that fails ends the
# script, and there is no way for one to be passed over in silence.
# shellcheck shell=bash

stage_now=
stage_table=()

# run_stage NAME
run_stage() {
  stage_now=$1 stage_began=$EPOCHREALTIME
  say ""
  say "==> $1"
  "stage_$1"
  finish_stage ok
}

# finish_stage RESULT: says how long the stage took, and keeps it for the table.
finish_stage() {
  local micros=$((${EPOCHREALTIME/./} - ${stage_began/./})) row
  printf -v row '%-10s %6d.%d s   %s' "$stage_now" $((micros / 1000000)) $((micros % 1000000 / 100000)) "$1"
  stage_table+=("$row")
  say "<== $row"
  stage_now=
}

# Printed at the end, however it comes.
print_stages() {
  [ -z "$stage_now" ] || finish_stage FAILED
  [ ${#stage_table[@]} -gt 0 ] || return 0
  say ""
  printf '%s\n' "${stage_table[@]}" >&2
  printf '%-10s %6d s\n' total "$SECONDS" >&2
}
