# The tools that a stage needs beyond Rust: Debian packages, and pinned downloads kept in $tools.
# shellcheck shell=bash

buf_version=1.75.0
cargo_deny_version=0.20.2
# The newer asks for reflection v1, the older knows only v1alpha, as many clients still do.
grpcurl_version=1.9.1
grpcurl_old_version=1.8.6

# --- Debian packages ---------------------------------------------------------------------------------------------

missing_packages=()

# want PACKAGE TEST…: notes PACKAGE as missing unless the command TEST succeeds.
want() { "${@:2}" >/dev/null 2>&1 || missing_packages+=("$1"); }

python_makes_venvs() { python3 -c 'import venv, ensurepip'; }

# Installs what was noted, or says in words what to install.
install_packages() {
  [ ${#missing_packages[@]} -gt 0 ] || return 0
  have apt-get || die "please install: ${missing_packages[*]} (Debian's names; there is no apt-get here to do it)"
  local as=()
  if [ "$(id -u)" != 0 ]; then
    if ! have sudo || ! sudo -n true 2>/dev/null; then
      die "please install what is missing, then run again: sudo apt-get install ${missing_packages[*]}"
    fi
    as=(sudo -n)
  fi
  say "installing ${missing_packages[*]}"
  (
    flock 8
    apt_log=$(mktemp)
    trap 'rm -f "$apt_log"' EXIT
    "${as[@]}" apt-get update --quiet=2
    # Of PostgreSQL only the programs are wanted: a server on the usual port would be a surprise.
    no_cluster=/etc/postgresql-common/createcluster.d/hawser.conf
    "${as[@]}" install -d "$(dirname "$no_cluster")"
    printf 'create_main_cluster = false\n' | "${as[@]}" tee "$no_cluster" >/dev/null
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends \
      -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "${missing_packages[@]}" >"$apt_log" 2>&1 ||
      { cat "$apt_log" >&2; die "apt-get install failed (its output is above)"; }
    "${as[@]}" rm "$no_cluster"
  ) 8>"${TMPDIR:-/tmp}/hawser-apt-$(id -u).lock"
  missing_packages=()
}

# --- Pinned downloads --------------------------------------------------------------------------------------------

# once NAME VERSION COMMAND…: runs COMMAND with the empty folder $tools/NAME as its last argument, unless that folder
# already holds VERSION. Runs in parallel wait for each other.
once() {
  local name=$1 version=$2 dir=$tools/$1
  shift 2
  mkdir -p "$tools"
  (
    flock 8
    [ "$(cat "$dir/.version" 2>/dev/null)" != "$version" ] || exit 0
    say "fetching $name ($version)"
    rm -rf "$dir"
    mkdir "$dir"
    "$@" "$dir" 8>&-
    printf '%s\n' "$version" >"$dir/.version"
  ) 8>"$tools/$name.lock"
}

make_venv() {
  local dir=${!#}
  python3 -m venv "$dir"
  "$dir/bin/pip" install --quiet --disable-pip-version-check "${@:1:$#-1}" >&2
}

need_python() { want python3-venv python_makes_venvs; install_packages; }

# Each need_… makes sure of one tool and leaves its path in a variable.

need_buf() {
  need_python
  once buf "$buf_version" make_venv "buf-bin==$buf_version"
  buf=$tools/buf/bin/buf
}

# A Python that has what tests/clients/python asks for.
need_client_python() {
  need_python
  local requirements=$root/tests/clients/python/requirements.txt
  once client-python "$(cksum <"$requirements")" make_venv --requirement "$requirements"
  client_python=$tools/client-python/bin/python
}

need_node() {
  want nodejs have node
  want npm have npm
  install_packages
}

need_node_verifier() {
  need_node
  local package=$root/tests/clients/standardwebhooks-node/package.json
  once standardwebhooks-node "$(cksum <"$package")" npm_install "$package"
  node_modules=$tools/standardwebhooks-node/node_modules
}

# Connect's client for browsers.
need_connect_web() {
  need_node
  local package=$root/tests/clients/connect-web/package.json
  once connect-web "$(cksum <"$package")" npm_install "$package"
  connect_web=$tools/connect-web/node_modules
}
npm_install() {
  cp "$1" "$2/package.json"
  (cd "$2" && npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts) >&2
}

need_grpcurl() {
  want golang-go have go
  install_packages
  once grpcurl "$grpcurl_version" go_install github.com/fullstorydev/grpcurl/cmd/grpcurl "$grpcurl_version"
  once grpcurl-old "$grpcurl_old_version" go_install github.com/fullstorydev/grpcurl/cmd/grpcurl "$grpcurl_old_version"
  grpcurl=$tools/grpcurl/grpcurl
  grpcurl_old=$tools/grpcurl-old/grpcurl
}
go_install() { (cd "$3" && GOBIN=$3 GOFLAGS=-modcacherw go install "$1@v$2") >&2; }

need_cargo_deny() {
  once cargo-deny "$cargo_deny_version" cargo_install cargo-deny "$cargo_deny_version"
  cargo_deny=$tools/cargo-deny/bin/cargo-deny
}
cargo_install() { (cd "$3" && env -u CARGO_TARGET_DIR cargo install --quiet --locked --root "$3" --version "$2" "$1") >&2; }
