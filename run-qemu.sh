#!/usr/bin/env bash
# The short way to `cargo xtask run`: see `./run-qemu.sh --help`. On a machine without Rust it gets Debian's first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    [ "$(id -u)" = 0 ] || apt=(sudo -n "${apt[@]}")
    command -v apt-get >/dev/null || return 1
    "${apt[@]}" install --no-install-recommends "$@" || { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; }
}

# Where rustup puts it, for a shell that is older than that.
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
if ! command -v cargo >/dev/null; then
    echo "run-qemu.sh: no cargo here; installing cargo-web and rustc-web …" >&2
    if ! apt_install cargo-web rustc-web >&2; then
        echo "run-qemu.sh: install Rust 1.88 or later, one of:" >&2
        echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
        echo "  Debian: apt-get install --no-install-recommends cargo-web rustc-web" >&2
        exit 2
    fi
fi
exec cargo run --quiet --manifest-path "$root/Cargo.toml" --package xtask -- run "$@"
