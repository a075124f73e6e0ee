# shellcheck shell=sh
# Shared by the scripts in dev/: messages, packages, the ordinary user that
# builds and runs servers, and the private PostgreSQL installation inside the
# work directory.  Nothing outside the work directory is changed except by
# need_packages(), which says what it installs.
#
# Source it with TOP set to the root of the checkout.
#
# In the work directory:
#   src/   a copy of the checkout, built there: so the checkout stays as it is,
#          and the server user need not be able to read it
#   pg/    the private PostgreSQL installation with the extension
#   data/  the cluster of private-server.sh

PG_MAJOR=15
SYSTEM_PG=/usr/lib/postgresql/$PG_MAJOR
SYSTEM_SHARE=/usr/share/postgresql/$PG_MAJOR
SYSTEM_INCLUDE=/usr/include/postgresql

# What it takes to build and run the extension.
BUILD_PACKAGES="gcc make postgresql-$PG_MAJOR postgresql-server-dev-$PG_MAJOR
    libcurl4-openssl-dev libjansson-dev libseccomp-dev libssl-dev"

# A make that is called from here is not a part of the one that called us.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES || true

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
        die "Debian packages are missing, and neither root nor sudo is at hand. Have somebody run: apt-get install$missing"
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
    # shellcheck disable=SC2086 # a list of words
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

# as_server_user COMMAND...: runs it as that user, in the work directory.
as_server_user() (
    cd "$WORK"
    become_server_user "$@"
)

# become_server_user COMMAND...: the same here and in place of this process.
become_server_user() {
    if [ "$(id -u)" = 0 ]; then
        user=$(server_user)
        exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups env HOME="$WORK" "$@"
    else
        exec "$@"
    fi
}

# Sets WORK: build/ in the checkout, or a directory under /var/tmp when the
# server user cannot reach the checkout (a checkout in root's home).
choose_work_dir() {
    WORK=${LEASEHOLD_WORK:-$TOP/build}
    if [ -z "${LEASEHOLD_WORK:-}" ]; then
        if ! (become_server_user test -x "$TOP"); then
            WORK=/var/tmp/leasehold-$(printf %s "$TOP" | cksum | cut -d' ' -f1)
            say "the user $(server_user) cannot enter $TOP; working in $WORK"
        fi
    fi
    mkdir -p "$WORK"
    if [ -L "$WORK" ] || [ ! -d "$WORK" ]; then die "$WORK is not a directory"; fi
    case $(stat -c %U "$WORK") in
    "$(server_user)") ;;
    "$(id -un)") chown "$(server_user)" "$WORK" ;;
    *) die "$WORK belongs to $(stat -c %U "$WORK"); set LEASEHOLD_WORK to a directory of your own" ;;
    esac
    WORK=$(cd "$WORK" && pwd -P)
    export LEASEHOLD_WORK="$WORK"
    set_work_paths
}

# variant NAME: from here on everything is in a work directory within that one.
variant() {
    WORK=$WORK/$1
    mkdir -p "$WORK"
    if [ "$(id -u)" = 0 ]; then chown "$(server_user)" "$WORK"; fi
    set_work_paths
}

set_work_paths() {
    BIN=$WORK/pg$SYSTEM_PG/bin
    # a socket's whole path can have 107 bytes
    SOCKET_DIR=$WORK
    if [ ${#WORK} -gt 85 ]; then
        SOCKET_DIR=/tmp/leasehold-$(printf %s "$WORK" | cksum | cut -d' ' -f1)
    fi
    export WORK BIN SOCKET_DIR
}

# Brings WORK/src up to date with the checkout.  Only files whose contents
# differ are written, so that make builds what changed.
copy_sources() {
    (
        cd "$TOP"
        find . \( -samefile "$WORK" -o -path ./build -o -path ./.git -o -name node_modules -o -name __pycache__ \
                  -o -name tmp_check \) -prune -o \
            ! -type d ! -name '*.o' ! -name '*.so' ! -name '*.bc' ! -path './extension/leasehold--*.sql' \
            ! -path ./sandbox/leasehold_sandbox -print |
            LC_ALL=C sort | tar -cf - -T -
    ) | as_server_user sh -eu -c '
        rm -rf src.new
        mkdir -p src src.new
        tar -C src.new -xf -
        (cd src.new && find . ! -type d | LC_ALL=C sort) >src.files.new
        if [ -f src.files ]; then
            LC_ALL=C comm -23 src.files src.files.new | (cd src && xargs -r -d "\n" rm -f)
        fi
        mv src.files.new src.files
        while IFS= read -r file; do
            cmp -s "src.new/$file" "src/$file" && continue
            mkdir -p "src/${file%/*}"
            cp -P "src.new/$file" "src/$file"
        done <src.files
        rm -rf src.new'
}

# Builds the private installation: copies of the server's programs, which find
# their libraries and shared files relative to themselves, beside links to the
# system's own.  What `make install` puts there is seen by no other server.
#
# With SANITIZE set, its postgres is a script that starts the real one with the
# sanitizers' library and has their reports written to WORK/reports.
make_private_pg() {
    made_from="5 ${SANITIZE:-plain} $("$SYSTEM_PG/bin/postgres" --version)"
    if [ "$(cat "$WORK/pg/.from" 2>/dev/null)" != "$made_from" ]; then rm -rf "$WORK/pg"; fi

    as_server_user sh -eu -c '
        made_from=$1 system_pg=$2 system_share=$3 system_include=$4 sanitize=$5
        bin=pg$system_pg/bin lib=pg$system_pg/lib share=pg$system_share
        # a package that was installed meanwhile shows up
        link_all() {
            for file in "$1"/*; do
                [ -e "$2/${file##*/}" ] || [ "${file##*/}" = "${3:-}" ] || ln -sf "$file" "$2/"
            done
        }
        mkdir -p "$bin" "$lib" "$share/extension" "$(dirname "pg$system_include")"
        link_all "$system_pg/lib" "$lib"
        link_all "$system_share" "$share" extension
        link_all "$system_share/extension" "$share/extension"
        [ ! -e pg/.from ] || exit 0

        cp "$system_pg"/bin/* "$bin/"
        [ -e "$bin/pg_config" ] || cp /usr/bin/pg_config "$bin/"
        ln -s "$system_include" "pg$system_include"
        if [ -n "$sanitize" ]; then
            gcc -shared -fPIC -fno-builtin -Wl,-z,initfirst "-DREPORTS=\"$PWD/reports/report\"" \
                -o pg/sanitize.so "$6"
            mv "$bin/postgres" "$bin/postgres.real"
            cat >"$bin/postgres"
            chmod +x "$bin/postgres"
        fi
        printf "%s\n" "$made_from" >pg/.from
        ' sh "$made_from" "$SYSTEM_PG" "$SYSTEM_SHARE" "$SYSTEM_INCLUDE" "${SANITIZE:-}" "$WORK/src/dev/sanitize.c" <<SCRIPT
#!/bin/bash
# under its own name, which \`pg_ctl restart\` will want to start
export LD_PRELOAD='$WORK/pg/sanitize.so $(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)'\${LD_PRELOAD:+ \$LD_PRELOAD}
exec -a "\$0" '$BIN/postgres.real' "\$@"
SCRIPT
}

# install_private: builds the extension and installs it there.
install_private() {
    copy_sources
    make_private_pg
    as_server_user sh -c '"$@" >build.log 2>&1 || { cat build.log >&2; false; }' sh \
        "${MAKE:-make}" -s -j2 -C "$WORK/src" all install with_llvm=no PG_CONFIG="$BIN/pg_config" \
        ${SANITIZE:+"SANITIZE=$SANITIZE"} || die "the build failed"
}
