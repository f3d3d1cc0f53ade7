# Functions that the scripts share. Source this file.

heading() {
  printf '\n== %s ==\n' "$*"
}

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

has() {
  command -v "$1" >/dev/null 2>&1
}

has_venv() {
  has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null
}

NODE_VERSION_MIN=18

has_node() {
  has node && has npm && (($(node --print 'parseInt(process.versions.node)') >= NODE_VERSION_MIN))
}

has_redis() {
  has redis-server && has redis-cli
}

has_nginx() {
  has nginx || [[ -x /usr/sbin/nginx ]]
}

# install_with_apt WHAT PACKAGE...: WHAT is the name in messages.
install_with_apt() {
  local what=$1
  shift
  has apt-get || fail "$what is missing, and there is no apt-get here to install it: please install $what"
  local sudo=()
  if [[ $(id -u) != 0 ]]; then
    has sudo || fail "$what is missing: please install it as root with: apt-get install $*"
    sudo=(sudo)
  fi
  heading "Installing $what"
  "${sudo[@]}" apt-get update
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}

# need CHECK WHAT PACKAGE...
need() {
  local check=$1 what=$2
  shift 2
  "$check" && return
  install_with_apt "$what" "$@"
  "$check" || fail "the packages of this system have no $what: please install it by other means"
}

need_node() {
  need has_node "Node $NODE_VERSION_MIN or later with npm" nodejs npm
}

need_redis() {
  need has_redis Redis redis-server
}

# Builds pusherd, unless PUSHERD_BIN names a binary.
build() {
  [[ -z ${PUSHERD_BIN:-} ]] || return 0
  has cargo || fail 'cargo is missing: please install a Rust toolchain'
  heading 'Building pusherd'
  cargo build --locked
}

npm_ci() {
  heading "npm ci in $1"
  (cd "$1" && npm ci)
}

# list_failed LOG: prints the names of the tests that failed, from the output of nextest, cargo test, node and unittest.
list_failed() {
  sed --regexp-extended 's/\x1b\[[0-9;]*m//g' "$1" \
    | grep --extended-regexp '^ *(FAIL|SIGABRT|SIGSEGV|TIMEOUT|LEAK-FAIL) +\[|^test .* \.\.\. FAILED$|^ *✖ |^(FAIL|ERROR): ' \
    | grep --invert-match 'failing tests:' \
    | sed 's/^ */  /' \
    | sort --unique \
    || echo "  no test: see $1"
}
