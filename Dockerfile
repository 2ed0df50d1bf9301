# syntax=docker/dockerfile:1
#
#   docker build --target operator -t modelscaling-operator:dev .
#   docker build --target trainer  -t modelscaling-trainer:dev .
#
# Python packages are pinned by their hashes in uv.lock. Pin the base as well where a build has to
# be repeatable; the digest is what `docker buildx imagetools inspect python:3.11-slim-bookworm`
# prints:
#
#   docker build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:… --target operator .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.9
ENV UV_LINK_MODE=copy \
    UV_PYTHON=/usr/local/bin/python \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
COPY . .

FROM build AS build-operator
RUN --mount=type=cache,target=/root/.cache/uv \
    images/install.sh --into /opt/modelscaling/venv operator

FROM build AS build-trainer
RUN --mount=type=cache,target=/root/.cache/uv \
    images/install.sh --into /opt/modelscaling/venv --corpus /opt/modelscaling/corpus trainer

# What both images have: a user that is not root, with an entry in /etc/passwd (getpass.getuser()
# fails without one), and the environment first on PATH.
FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 65532 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin \
    modelscaling
ENV PATH=/opt/modelscaling/venv/bin:$PATH \
    HOME=/tmp \
    USER=modelscaling \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 65532:65532

FROM runtime AS operator
COPY --from=build-operator /opt/modelscaling /opt/modelscaling
ENTRYPOINT ["modelscaling-operator"]

FROM runtime AS trainer
# torch.compile turns the model into C++ (CPU) or into a launcher in C (GPU) when a run starts.
USER 0
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ && \
    rm -rf /var/lib/apt/lists/*
USER 65532:65532
COPY --from=build-trainer /opt/modelscaling /opt/modelscaling
ENTRYPOINT ["modelscaling-agent"]
