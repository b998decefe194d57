#!/bin/sh
# In a container that is being built: what the project needs, into /opt/env; torch from the index that is named.
set -eu
cd /opt/outlast

apt-get update -qq
# For what torch.compile and DeepSpeed compile when they are first used.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ libc6-dev libaio-dev procps
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/env
pip() { /opt/env/bin/python -m pip --disable-pip-version-check install -q --no-cache-dir -c constraints.txt "$@"; }
# torch alone and first: another package's open range would take another build.
pip -i "$1" torch
/opt/env/bin/python - >requirements.txt <<'END'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["lora"], sep="\n")
END
pip -r requirements.txt
pip setuptools wheel ninja packaging
DS_BUILD_OPS=0 pip --no-build-isolation deepspeed
