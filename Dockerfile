# One image for training and inference: the base with CANN, the worker programs' pinned packages in
# a virtual environment, jobs/. Nothing of the launcher is in it.
#
#     docker build -t REGISTRY/jobs:TAG .                                     # Ascend: MindSpore 2.5.0
#     docker build -t jobs:cpu --build-arg FRAMEWORK=cpu --build-arg BASE_IMAGE=python:3.11-slim .
#
# A base is Debian or Ubuntu with Python 3.11 and its venv module, for amd64 or arm64. To get the same
# base next year, name it by digest: --build-arg BASE_IMAGE=quay.io/ascend/cann@sha256:...
ARG BASE_IMAGE=quay.io/ascend/cann:8.0.0-910b-ubuntu22.04-py3.11
FROM ${BASE_IMAGE}

# iproute2: msrun finds out by `ip -j addr` whether it is on the master's node; libgomp1: MindSpore.
# Not pinned: the base says which versions there are.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iproute2 libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# The driver's device files belong to uid and gid 1000 of the node. A base may have that user.
RUN { getent group 1000 || groupadd --gid 1000 jobs; } \
    && { getent passwd 1000 || useradd --uid 1000 --gid 1000 --no-create-home --home-dir /home/jobs jobs; } \
    && install -d -o 1000 -g 1000 -m 2775 /home/jobs /scratch

# ascend: MindSpore for NPUs, CANN's own te and hccl, and sympy, which te needs. cpu: the extra.
ARG FRAMEWORK=ascend
ARG MINDSPORE_VERSION=2.5.0
# A mirror of packages for pip, which reads it from here. The image's history shows it: no credentials.
ARG PIP_INDEX_URL
# Where the wheel is, if not at MindSpore's own place of release; with #sha256=... at its end, pip checks it.
ARG MINDSPORE_WHEEL=

# The packages come before the code: a change of jobs/ costs seconds. The virtual environment sees
# the base's packages (CANN's tools need some) and brings `python` wherever the base's own is.
# Of the project's dependencies boto3 and pydantic are the jobs', the others are the launcher's.
WORKDIR /opt/build
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv --system-site-packages /opt/venv \
    && case "${FRAMEWORK}" in \
        ascend) \
            release=https://ms-release.obs.cn-north-4.myhuaweicloud.com/${MINDSPORE_VERSION}/MindSpore/unified/$(uname -m); \
            wheel=mindspore-${MINDSPORE_VERSION}-cp311-cp311-linux_$(uname -m).whl; \
            cann=/usr/local/Ascend/ascend-toolkit/latest/lib64; \
            extras="jobs"; \
            set -- "${MINDSPORE_WHEEL:-${release}/${wheel}}" "${cann}"/te-*.whl "${cann}"/hccl-*.whl \
                sympy==1.14.0 mpmath==1.3.0;; \
        cpu) extras="jobs cpu"; set --;; \
        *) echo "FRAMEWORK is '${FRAMEWORK}': it must be ascend or cpu" >&2; exit 1;; \
    esac \
    && /opt/venv/bin/python -c "import re, sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
rows = [row for row in project['dependencies'] if re.match('(boto3|pydantic)[^a-z]', row)]; \
rows += [row for extra in sys.argv[1].split() for row in project['optional-dependencies'][extra]]; \
print(*rows, sep='\n')" "${extras}" > requirements.txt \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt "$@"

# A path file, not PYTHONPATH: a manifest's `env` may replace the latter. The files' modes are the
# builder's, whose umask may keep them from others.
COPY jobs /opt/app/jobs
RUN /opt/venv/bin/python -c "import pathlib, sysconfig; \
pathlib.Path(sysconfig.get_path('purelib'), 'jobs.pth').write_text('/opt/app\n')" \
    && /opt/venv/bin/python -m compileall -q /opt/app \
    && chmod -R a+rX /opt/app

# The base points ASDOPS_LOG_PATH at /root, and CANN's set_env.sh at the home folder.
# An image for CPU computes there, whatever device a manifest names.
ENV PATH=/opt/venv/bin:${PATH} \
    JOB_FRAMEWORK=${FRAMEWORK} \
    HOME=/home/jobs \
    ASDOPS_LOG_PATH=/home/jobs \
    PYTHONUNBUFFERED=1
WORKDIR /scratch
USER 1000:1000

# The base's entrypoint stays: it sources CANN's set_env.sh and runs what it is given.
CMD ["python3", "-m", "jobs.runtime"]

ARG BASE_IMAGE
ARG REVISION=
LABEL org.opencontainers.image.title="ascend-diffusion-jobs" \
      org.opencontainers.image.description="Fine-tune and sample Stable Diffusion XL on Ascend NPUs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
