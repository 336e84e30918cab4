# glmtune with the page, the server and everything that trains. See docs/containers.md.
#
#   docker build -t glmtune .                                                                   # NVIDIA GPUs from Turing on
#   docker build -t glmtune --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .    # Pascal and Volta too
#   docker build -t glmtune:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .  # no GPU
#
# torch brings CUDA's libraries itself; the machine needs NVIDIA's driver and container toolkit.
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
# A mirror for everything but torch: --build-arg PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple
ARG PIP_INDEX_URL=https://pypi.org/simple
# Where torch comes from; empty: PIP_INDEX_URL, whose build for Linux has CUDA.
ARG TORCH_INDEX=""
ARG EXTRAS=qlora,ui,serve,gguf,modelscope
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/glmtune
WORKDIR /source
# torch first and in a layer of its own: gigabytes that do not change with our code.
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then set -- --index-url "$TORCH_INDEX"; else set --; fi \
    && /opt/glmtune/bin/pip install -c constraints.txt torch "$@"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# There is no git here to read the version from: --build-arg VERSION="$(git describe --tags --abbrev=0)"
ARG VERSION=0.1.0.dev0
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_GLMTUNE="$VERSION" /opt/glmtune/bin/pip install -c constraints.txt ".[$EXTRAS]"

FROM ${BASE}
LABEL org.opencontainers.image.title="glmtune" \
      org.opencontainers.image.description="Fine-tune ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4" \
      org.opencontainers.image.licenses="Apache-2.0"
# gcc and Python's headers: Triton compiles for --compile. tini passes signals on and collects ended jobs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev gcc libc6-dev tini fonts-wqy-microhei \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 glmtune \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /data glmtune \
    && install -d -o glmtune -g glmtune /data
COPY --from=build /opt/glmtune /opt/glmtune
# Caches are below /data, so that they last, and so that `--user` with another number can write them.
ENV PATH=/opt/glmtune/bin:$PATH \
    LANG=C.UTF-8 \
    HOME=/data \
    USER=glmtune \
    XDG_CACHE_HOME=/data/.cache \
    XDG_CONFIG_HOME=/data/.config \
    MODELSCOPE_CACHE=/data/.cache/modelscope \
    TRITON_CACHE_DIR=/data/.cache/triton \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 7860 8000
ENTRYPOINT ["tini", "--", "glmtune"]
# --host 0.0.0.0 needs GLMTUNE_UI_PASSWORD; a stop of the container saves a checkpoint of what trains.
CMD ["ui", "--host", "0.0.0.0", "--root", "/data", "--stop-jobs"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
