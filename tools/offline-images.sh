#!/usr/bin/env bash
# Stand-in container images for machines that reach a Debian mirror and a Python package index but no container registry.
#
# Builds, from Debian packages, local images under the names that compose.yaml and the Dockerfile use, so that
# `docker compose build` and `docker compose up` run unchanged:
#   python:3.11-slim-bookworm     Debian 12 + Python 3.11 + pip, trusting the certificates this machine trusts
#   quay.io/coreos/etcd:v3.5.16   Debian 13's etcd-server and etcd-client in /usr/local/bin
#   prom/prometheus:v2.53.3       Debian 13's prometheus in /bin
# An image that is there already, pulled or built, is left alone. They are for development and tests: deploy the real ones.
#
# Also installs and starts the Docker Engine and the compose plugin where they are missing (needs root, Debian 12).
# Idempotent; about two minutes the first time. Usage: tools/offline-images.sh [--engine-only]
set -euo pipefail

suite_main=bookworm
suite_new=trixie
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=/etc/apt/sources.list.d/debian.sources
mirror=$(sed -n 's/^URIs: *//p' "$sources" 2>/dev/null | grep -v security | head -1 || true)
mirror=${mirror:-http://deb.debian.org/debian}

say() { printf '==> %s\n' "$*" >&2; }

apt_new() { # apt-get against Debian 13's lists, kept apart from the machine's own
    mkdir -p "$work/lists/partial"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite_new" >"$work/new.list"
    apt-get -oDir::Etc::SourceList="$work/new.list" -oDir::Etc::SourceParts=/dev/null \
        -oDir::State::Lists="$work/lists" -oAPT::Sandbox::User=root "$@"
}

fetch_new() { # fetch_new PACKAGE: unpacks a Debian 13 package into $work/x/PACKAGE
    [ -e "$work/new.list" ] || apt_new -qq update
    (cd "$work" && apt_new -qq download "$1" && mkdir -p "x/$1" && dpkg -x "$1"_*.deb "x/$1")
}

start_engine() {
    if ! command -v dockerd >/dev/null; then
        say "installing the Docker Engine"
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y docker.io debootstrap iptables tini >/dev/null
    fi
    if ! docker info >/dev/null 2>&1; then
        say "starting dockerd (its log: /var/log/dockerd.log)"
        setsid nohup dockerd >/var/log/dockerd.log 2>&1 </dev/null &
        for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
        docker info >/dev/null
    fi
    if ! docker compose version >/dev/null 2>&1; then
        say "installing the compose plugin"
        fetch_new docker-compose
        install -D -m 755 "$work/x/docker-compose/usr/libexec/docker/cli-plugins/docker-compose" \
            /usr/local/lib/docker/cli-plugins/docker-compose
    fi
}

have() { docker image inspect "$1" >/dev/null 2>&1; }

python_image() {
    local name=python:3.11-slim-bookworm root="$work/py"
    have "$name" && return
    say "building $name"
    command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -qq install -y debootstrap >/dev/null
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,libpython3.11,ca-certificates \
        "$suite_main" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 || { tail -20 "$work/debootstrap.log" >&2; return 1; }
    # Like the real image: an interpreter of its own, into which pip may install.
    rm -f "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
    ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
    ln -sf /usr/bin/python3 "$root/usr/local/bin/python3"
    # A machine behind a mirror may trust a certificate authority of its own; the builds in the image go the same way.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
    if [ -e "$sources" ]; then cp "$sources" "$root/etc/apt/sources.list.d/" && : >"$root/etc/apt/sources.list"; fi
    tar -C "$root" -c . | docker import -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin' \
        -c 'ENV LANG=C.UTF-8' -c 'CMD ["python3"]' - "$name" >/dev/null
}

etcd_image() {
    local name=quay.io/coreos/etcd:v3.5.16
    have "$name" && return
    say "building $name"
    fetch_new etcd-server; fetch_new etcd-client
    mkdir -p "$work/etcd" && cp "$work"/x/etcd-server/usr/bin/etcd "$work"/x/etcd-client/usr/bin/etcdctl "$work/etcd/"
    printf 'FROM python:3.11-slim-bookworm\nCOPY etcd etcdctl /usr/local/bin/\nEXPOSE 2379 2380\nCMD ["/usr/local/bin/etcd"]\n' >"$work/etcd/Dockerfile"
    docker build -q -t "$name" "$work/etcd" >/dev/null
}

prometheus_image() {
    local name=prom/prometheus:v2.53.3
    have "$name" && return
    say "building $name"
    fetch_new prometheus
    mkdir -p "$work/prom" && cp "$work/x/prometheus/usr/bin/prometheus" "$work/prom/"
    printf 'FROM python:3.11-slim-bookworm\nCOPY prometheus /bin/\nEXPOSE 9090\nENTRYPOINT ["/bin/prometheus"]\nCMD ["--config.file=/etc/prometheus/prometheus.yml"]\n' >"$work/prom/Dockerfile"
    docker build -q -t "$name" "$work/prom" >/dev/null
}

start_engine
[ "${1:-}" = --engine-only ] && exit 0
python_image
etcd_image
prometheus_image
docker images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep -E '^(python|quay.io/coreos/etcd|prom/prometheus):' >&2
