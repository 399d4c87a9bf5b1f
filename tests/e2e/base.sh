#!/usr/bin/env bash
# base.sh IMAGE: makes a stand-in for the CANN image in buildah's storage: Debian with Python 3.11,
# and of CANN what our image relies on: two set_env.sh, the entrypoint that sources them, version.cfg,
# ASDOPS_LOG_PATH pointing into /root, no user 1000, no `python`, no `ip`. Needs root, debootstrap.
set -euo pipefail
image=${1:?IMAGE}
root=$(mktemp -d)
container=
trap '[ -z "$container" ] || buildah rm "$container" >/dev/null; rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3-venv bookworm "$root" >&2
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

ascend=$root/usr/local/Ascend
mkdir -p "$ascend"/ascend-toolkit/latest/{bin,lib64,python/site-packages} "$ascend"/nnal/atb/latest
echo 'runtime_running_version=[7.6.0.1.220:8.0.0]' >"$ascend/ascend-toolkit/latest/version.cfg"
cat >"$ascend/ascend-toolkit/set_env.sh" <<'SH'
export ASCEND_TOOLKIT_HOME=/usr/local/Ascend/ascend-toolkit/latest
export LD_LIBRARY_PATH=$ASCEND_TOOLKIT_HOME/lib64:$LD_LIBRARY_PATH
export PYTHONPATH=$ASCEND_TOOLKIT_HOME/python/site-packages:$PYTHONPATH
export PATH=$ASCEND_TOOLKIT_HOME/bin:$PATH
SH
cat >"$ascend/nnal/atb/set_env.sh" <<'SH'
export ATB_HOME_PATH=/usr/local/Ascend/nnal/atb/latest
export ASDOPS_LOG_PATH=~
SH

container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >&2
driver=/usr/local/Ascend/driver/lib64
buildah config \
    --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --env LD_LIBRARY_PATH=$driver/common/:$driver/driver/: \
    --env ASDOPS_LOG_PATH=/root --env ASDOPS_LOG_TO_FILE=1 \
    --entrypoint '["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && source /usr/local/Ascend/nnal/atb/set_env.sh && exec \"$@\"", "--"]' \
    "$container"
buildah commit --quiet "$container" "$image" >&2
