# What ops/up and ops/test share: a machine that has what the build needs, and one target folder outside of the clone.
# shellcheck shell=bash

# Services and `env -i` have no HOME.
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Whether a file is the library that bindgen loads. Machines have others of nearly its name: libclang-cpp is clang's C++ interface
# (it comes with llvm), libclang_rt are the sanitizers, libclangAST.a and its like are parts.
is_libclang() {
    case "${1##*/}" in
        libclang-cpp* | *-cpp.*) return 1 ;;
        libclang.so | libclang.so.* | libclang-*.so | libclang-*.so.*) [ -e "$1" ] ;;
        *) return 1 ;;
    esac
}

# RocksDB is C++, and its bindings are generated with libclang, which needs the compiler's own headers (stddef.h and the like) too:
# the library alone comes with programs that don't. Where bindgen looks, so do we: in LIBCLANG_PATH alone if that is set, otherwise
# in the folders below. The argument is the root of the file system: empty, but in tests.
have_libclang() {
    local root="$1" file found=no
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        for file in "$root$LIBCLANG_PATH" "$root$LIBCLANG_PATH"/libclang*; do
            if is_libclang "$file" && [ ! -d "$file" ]; then return 0; fi
        done
        return 1
    fi
    for file in "$root"/usr/lib/llvm-*/lib/libclang* "$root"/usr/local/llvm*/lib*/libclang* "$root"/usr/lib/libclang* \
        "$root"/usr/lib/*/libclang* "$root"/usr/lib64/libclang* "$root"/usr/lib64/*/libclang* "$root"/usr/local/lib*/libclang*; do
        if is_libclang "$file"; then found=yes; fi
    done
    [ "$found" = yes ] || return 1
    for file in "$root"/usr/lib/llvm-*/lib/clang/*/include/stddef.h "$root"/usr/local/llvm*/lib*/clang/*/include/stddef.h \
        "$root"/usr/lib/clang/*/include/stddef.h "$root"/usr/lib64/clang/*/include/stddef.h "$root"/usr/local/lib*/clang/*/include/stddef.h; do
        if [ -e "$file" ]; then return 0; fi
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root: $*"
    fi
}

apt_install() {
    if ! command -v apt-get >/dev/null; then
        die "this machine lacks $*; there is no apt-get here, so install them (or what they are called here) and run this again"
    fi
    say "installing what this machine lacks: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

install_packages() {
    local missing=()
    command -v c++ >/dev/null || missing+=(g++)
    # jemalloc is built by its own Makefile.
    command -v make >/dev/null || missing+=(make)
    # The linker needs the C library's headers and start files as well.
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    if ! have_libclang ""; then
        if [ -n "${LIBCLANG_PATH:-}" ]; then
            die "LIBCLANG_PATH is $LIBCLANG_PATH, and there is no libclang.so in it; unset it, or set it to the folder that has one"
        fi
        missing+=(libclang-dev)
    fi
    command -v curl >/dev/null || missing+=(curl ca-certificates)
    if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi
}

install_rust() {
    local wanted found
    wanted="$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")"
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        # Where there is none, the candidate is `(none)`.
        if [[ "$(apt-cache policy rustup 2>/dev/null)" =~ Candidate:\ [^\(] ]]; then
            apt_install rustup
        else
            say "installing Rust's own installer, rustup, since this distribution has no package of it"
            if ! curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal --default-toolchain none >&2; then
                die "rustup could not be installed; install Rust $wanted in another way (https://rustup.rs), then run this again"
            fi
            export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        fi
    fi
    if command -v rustup >/dev/null; then
        if ! [[ "$(rustup toolchain list 2>/dev/null)" == *"$wanted-"* ]]; then
            say "installing Rust $wanted, as rust-toolchain.toml says"
            if ! rustup toolchain install "$wanted" --profile minimal --component clippy --component rustfmt >&2; then
                die "Rust $wanted could not be installed; when the network lets it, run this again, or: rustup toolchain install $wanted"
            fi
        fi
        return
    fi
    found="$(cargo --version | awk '{ print $2 }')"
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        die "cargo is $found, and $wanted is needed; install rustup, which reads rust-toolchain.toml"
    fi
}

# A folder that outlives the clone: RocksDB is compiled once, however often the repository is cloned anew.
use_target() {
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/flotilla/target}"
    mkdir -p "$CARGO_TARGET_DIR"
    CARGO_TARGET_DIR="$(cd "$CARGO_TARGET_DIR" && pwd)"
    local link="$ROOT/target"
    if [ ! -e "$link" ] && [ ! -L "$link" ]; then
        # A convenience; the clone may be somebody else's.
        ln -s "$CARGO_TARGET_DIR" "$link" 2>/dev/null || say "target/ could not be made; the build is in $CARGO_TARGET_DIR"
    elif [ ! "$link" -ef "$CARGO_TARGET_DIR" ]; then
        say "target/ is not $CARGO_TARGET_DIR, where this builds; left as it is"
    fi
    if [ ! -e "$CARGO_TARGET_DIR/release/flotilla" ]; then
        say "the first build takes up to half an hour on two cores, because of RocksDB; later ones don't"
    fi
}

prepare() {
    install_packages
    install_rust
    use_target
}
