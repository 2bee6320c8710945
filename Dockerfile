# The command mcm with the service, as a user without rights: docker build --tag mcm .
# torch is that for CPUs; --build-arg TORCH=auto or cu128 takes one for GPUs. What a release pins: docs/production.md.
FROM python:3.11.14-slim-bookworm AS build

ARG TORCH=cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "uv>=0.7" && python -m venv /opt/mcm
ENV VIRTUAL_ENV=/opt/mcm UV_TORCH_BACKEND=$TORCH UV_NO_CACHE=1
WORKDIR /mcm

# What changes rarely comes first, so that a change of the code does not download torch again. A constraints.txt, if
# there is one, pins every version.
COPY setup.py pyproject.toml README.md LICENSE constraints*.txt ./
COPY modeling_mcm/__init__.py modeling_mcm/__init__.py
RUN touch constraints.txt && uv pip install --constraint constraints.txt ".[data,serve]"

COPY modeling_mcm modeling_mcm
RUN uv pip install --no-deps --reinstall-package modeling-mcm .

FROM python:3.11.14-slim-bookworm

RUN useradd --create-home --uid 10001 mcm && install --directory --owner 10001 /data
COPY --from=build /opt/mcm /opt/mcm
WORKDIR /mcm
COPY configuration configuration

USER 10001
# No models of others, no telemetry; the cache of `datasets` holds customers' histories: it lies with the data.
ENV PATH=/opt/mcm/bin:$PATH HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/data/cache
VOLUME /data
EXPOSE 8000
# Of `mcm serve`; a container that runs another command has no health.
HEALTHCHECK --start-period=2m CMD \
    ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/readyz', timeout=9)"]
ENTRYPOINT ["mcm"]
CMD ["--help"]
