# Two stages: the first has pip and its caches, the second what runs.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# the CPU build of torch is by far the smaller one; with a GPU, give --build-arg TORCH_INDEX= for the index that has the
# CUDA build of the pinned version
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/anabranch
ENV PATH=/opt/anabranch/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# before the source, so that a change of the source does not install torch again
RUN pip install --constraint constraints.txt --extra-index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE ./
COPY anabranch ./anabranch
COPY client ./client
COPY common ./common
COPY server ./server
COPY stream ./stream
RUN pip install --constraint constraints.txt . && find /opt/anabranch -type d -name __pycache__ -prune -exec rm -rf {} +

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 10001 anabranch && install -d -o anabranch -g anabranch /data
COPY --from=build /opt/anabranch /opt/anabranch
ENV PATH=/opt/anabranch/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
    ANABRANCH_CACHE=/data/cache NUMBA_CACHE_DIR=/data/cache/numba
USER anabranch:anabranch
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["anabranch"]
