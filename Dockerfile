# The command mcm with the service, on CPUs, as a user without rights: docker build --tag mcm .
# pip takes torch with its GPU libraries from the usual index; for a smaller image give the index of CPU wheels as
# --build-arg PIP_EXTRA_INDEX_URL=... . What a release pins stands in docs/production.md.
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=""
RUN useradd --create-home --uid 10001 mcm && install --directory --owner 10001 /data
WORKDIR /mcm

# What changes rarely comes first, so that a change of the code does not download torch again. A constraints.txt, if
# there is one, pins every version.
COPY setup.py pyproject.toml README.md LICENSE constraints*.txt ./
COPY modeling_mcm/__init__.py modeling_mcm/__init__.py
# hadolint ignore=DL3013
RUN touch constraints.txt && pip install --no-cache-dir --constraint constraints.txt ".[demo,serve]"

COPY modeling_mcm modeling_mcm
RUN pip install --no-cache-dir --no-deps .
COPY configuration configuration

USER 10001
# No models of others, no telemetry; the cache of `datasets` holds customers' histories: it lies with the data.
ENV HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/data/cache
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["mcm"]
CMD ["--help"]
