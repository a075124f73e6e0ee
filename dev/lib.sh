# Shared by the scripts in dev/: messages, packages, the ordinary user that
# runs servers, and the private PostgreSQL installation inside the work
# directory.  Nothing outside the work directory is changed except by
# need_packages(), which says what it installs.
#
# Source it with TOP set to the root of the checkout.

PG_MAJOR=15
SYSTEM_PG=/usr/lib/postgresql/$PG_MAJOR
SYSTEM_SHARE=/usr/share/postgresql/$PG_MAJOR

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGE...: installs those that dpkg does not know as
# installed, as root or through sudo.
need_packages() {
    missing=
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0

    if [ "$(id -u)" = 0 ]; then root=; else root=sudo; fi
    if [ -n "$root" ] && ! command -v sudo >/dev/null; then
        die "these Debian packages are missing, and neither root nor sudo is at hand:$missing"
    fi
    say "installing Debian packages:$missing"
    $root apt-get update -qq || say "the package lists could not be refreshed; going on with the present ones"
    for package in $missing; do
        apt-cache show "$package" >/dev/null 2>&1 ||
            die "this system does not offer the package $package; Leasehold supports PostgreSQL $PG_MAJOR, as in Debian 12 (elsewhere: https://wiki.postgresql.org/wiki/Apt)"
    done
    # A fresh server package would create and start a cluster that nobody
    # here needs: keep it from doing so, for the length of this call.
    guard=/etc/postgresql-common/createcluster.d/leasehold-no-cluster.conf
    case " $missing " in
    *" postgresql-$PG_MAJOR "*)
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql-common >/dev/null
        $root mkdir -p "$(dirname "$guard")"
        printf 'create_main_cluster = false\n' | $root tee "$guard" >/dev/null
        ;;
    *) guard= ;;
    esac
    status=0
    # policy: a web server that tests start themselves need not run as a service
    $root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null || status=$?
    [ -z "$guard" ] || $root rm -f "$guard"
    [ "$status" = 0 ] || die "apt-get could not install:$missing"
}

# The ordinary user that servers run as: oneself, or when started by root the
# user behind sudo, else Debian's postgres.
server_user() {
    if [ "$(id -u)" != 0 ]; then id -un
    elif [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then echo "$SUDO_USER"
    else echo postgres
    fi
}

# as_server_user COMMAND...: runs it as that user, from a directory it may read.
as_server_user() {
    if [ "$(id -u)" = 0 ]; then
        runuser -u "$(server_user)" -- env HOME="$WORK" "$@"
    else
        "$@"
    fi
}

# Sets WORK: build/ in the checkout, or a directory under /var/tmp when the
# server user cannot reach the checkout (a checkout in root's home).
choose_work_dir() {
    if [ -n "${LEASEHOLD_WORK:-}" ]; then
        WORK=$LEASEHOLD_WORK
    else
        WORK=$TOP/build
        if [ "$(id -u)" = 0 ] && ! runuser -u "$(server_user)" -- test -x "$TOP" 2>/dev/null; then
            WORK=/var/tmp/leasehold-$(printf %s "$TOP" | cksum | cut -d' ' -f1)
            say "the user $(server_user) cannot enter $TOP; working in $WORK"
        fi
    fi
    mkdir -p "$WORK"
    if [ "$(id -u)" = 0 ]; then chown "$(server_user)" "$WORK"; fi
    BIN=$WORK/pg$SYSTEM_PG/bin
    export WORK BIN
}

# Builds the private installation: copies of the server's programs, which find
# their libraries and shared files relative to themselves, beside links to the
# system's own.  What `make install` puts there is seen by no other server.
make_private_pg() {
    private_lib=$WORK/pg$SYSTEM_PG/lib
    private_share=$WORK/pg$SYSTEM_SHARE
    stamp=$WORK/pg/.from
    version=$("$SYSTEM_PG/bin/postgres" --version)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$version" ]; then
        rm -rf "$WORK/pg"
        mkdir -p "$BIN" "$private_lib" "$private_share/extension"
        cp "$SYSTEM_PG"/bin/* "$BIN"/
        [ -e "$BIN/pg_config" ] || cp /usr/bin/pg_config "$BIN"/
        for file in "$SYSTEM_PG"/lib/*; do ln -s "$file" "$private_lib"/; done
        for file in "$SYSTEM_SHARE"/*; do
            [ "$(basename "$file")" = extension ] || ln -s "$file" "$private_share"/
        done
        for file in "$SYSTEM_SHARE"/extension/*; do ln -s "$file" "$private_share/extension"/; done
        printf '%s\n' "$version" >"$stamp"
    fi
}

# install_private: builds the extension and installs it there.
install_private() {
    make_private_pg
    ${MAKE:-make} -s -C "$TOP" all install with_llvm=no PG_CONFIG="$BIN/pg_config" \
        ${SANITIZE:+SANITIZE=$SANITIZE} >"$WORK/build.log" 2>&1 ||
        { cat "$WORK/build.log" >&2; die "the build failed"; }
}
