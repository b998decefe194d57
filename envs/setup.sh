#!/bin/sh
# Everything that the project needs on a machine with Python: a virtual environment, and as root on Debian a Slurm; for the
# tests strace, chromium and Charliecloud.
# With CI=true nothing may be left out.
set -eu
PATH=$PATH:/usr/sbin:/sbin  # where Debian keeps the daemons, and does not tell its users
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX  # a module's, or a site's: they would have pip look or write elsewhere
export PIP_USER=0
venv=$1

leave_out() {
    echo "set-up: left out: $1"
    if [ "${CI:-}" = true ]; then exit 1; fi
}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "set-up: $PYTHON is older than Python 3.11: make PYTHON=/path/to/python3.11" >&2
    exit 1
}

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null || ! command -v ip >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        # Its start scripts would look for a system Slurm and munge: the pocket cluster starts its own daemons.
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            slurmctld slurmd slurm-client munge iproute2 >/dev/null
    else
        leave_out "the pocket cluster (Slurm's packages need root on Debian); the demo runs in local mode"
    fi
fi

if ! command -v strace >/dev/null || ! command -v ch-run >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace charliecloud-runtime >/dev/null
    else
        leave_out "strace, charliecloud (their packages need root on Debian); tests that kill a save at each of its system \
calls, and that train in a container"
    fi
fi

if ! command -v chromium >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null  # 28 s
    else
        leave_out "chromium (its package needs root on Debian); the test that looks at a report in a browser"
    fi
fi

if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null  # Debian ships it apart
fi
[ -x "$venv/bin/pip" ] || "$PYTHON" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -q -c constraints.txt "$@"; }
# torch alone and first: another package's open range would take the newest CUDA build, gigabytes of it.
pip torch
# What the project needs, and not the project: it runs from its checkout. Installed, its modules would stand in the way of
# a user's that are called alike, and an editable install's import hook costs every start of Python 10 ms (measured).
"$venv/bin/python" - >"$venv/requirements.txt" <<'EOF'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *(need for extra in ("test", "dev") for need in project["optional-dependencies"][extra]), sep="\n")
EOF
pip -r "$venv/requirements.txt"
if ! [ -e /usr/include/libaio.h ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # For DeepSpeed's async_io, which is built when it is first used: offload to NVMe.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libaio-dev >/dev/null
fi
# Built here from its source, without its CUDA operators. Only its own engine needs it.
pip setuptools wheel ninja packaging
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip --no-build-isolation deepspeed || leave_out "deepspeed (its build failed); other engines work"
echo "set-up: done"
