#!/usr/bin/env bash
# The short way to `cargo xtask run`: see `./run-qemu.sh --help`. On a machine without Rust it gets Debian's first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
oldest=88 # of Rust 1, as Cargo.toml's rust-version

# Also from where rustup puts it, for a shell that is older than that.
PATH=$PATH:$HOME/.cargo/bin

has_rust() {
    command -v cargo >/dev/null || return 1
    local version
    version=$(cd "$root" && rustc --version) || return 1
    version=${version#rustc 1.}
    [ "${version%%.*}" -ge "$oldest" ]
}

apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    [ "$(id -u)" = 0 ] || apt=(sudo -n "${apt[@]}")
    command -v apt-get >/dev/null || return 1
    # Old lists name versions that are too old.
    "${apt[@]}" update || true
    "${apt[@]}" install --no-install-recommends "$@"
}

if ! has_rust; then
    echo "run-qemu.sh: no Rust 1.$oldest here; installing cargo-web and rustc-web …" >&2
    if ! apt_install cargo-web rustc-web >&2 || ! has_rust; then
        echo "run-qemu.sh: install Rust 1.$oldest or later, one of:" >&2
        echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
        echo "  Debian: apt-get install --no-install-recommends cargo-web rustc-web" >&2
        exit 2
    fi
fi
exec cargo run --quiet --manifest-path "$root/Cargo.toml" --package xtask -- run "$@"
