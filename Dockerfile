# An image in which `edgesmith` runs: docs/release-builds.md shows how. On Linux the common package index serves torch with its
# CUDA libraries, several gigabytes; for the CPU build give the index that PyTorch documents for it:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t edgesmith .
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=openvino,sklearn,audit

WORKDIR /opt/edgesmith
COPY pyproject.toml constraints.txt README.md LICENSE cli.py ./
COPY src src
COPY compressor compressor
COPY benches benches
COPY exporters exporters
COPY calibration calibration
RUN python -m pip install --disable-pip-version-check -c constraints.txt --no-cache-dir ".[${EXTRAS}]" \
    && edgesmith --version

# Any user may run it (docker run --user): what it writes goes to the mounted folder, caches go to /tmp.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache
WORKDIR /work
USER nobody
ENTRYPOINT ["edgesmith"]
CMD ["--help"]
