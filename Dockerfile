# The image of everything but workers: the gateway, the registry, the node agent, the migrations, and the `corral` command.
#
#   docker build --tag corral:dev .
#   docker build --target sbom --output dist .       dist/corral.cdx.json: its contents
#
# The command chooses what runs: `python -m services.gateway`, `alembic upgrade head`, `corral list`.
# ops/image/site.sh explains how a site adds certificates or its own package index.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS environment
# The extras of pyproject.toml that are installed.
ARG EXTRAS="gateway registry node cli tracing"
ARG UV_VERSION=0.13.9
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1
SHELL ["/bin/sh", "-euc"]
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \
    --mount=type=bind,source=ops/image/site.sh,target=/site.sh \
    . /site.sh; \
    python3 -m venv /opt/uv; \
    /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$UV_VERSION"
WORKDIR /source
# A separate step, so that the following steps stay cached as long as its output does not change.
RUN --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=uv.lock,target=uv.lock \
    set --; for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done; \
    /opt/uv/bin/uv export --quiet --frozen --no-dev --no-emit-project --no-header --no-annotate "$@" --output-file /requirements.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \
    --mount=type=bind,source=ops/image/site.sh,target=/site.sh \
    --mount=type=cache,target=/root/.cache/uv \
    . /site.sh; \
    /opt/uv/bin/uv venv --quiet /opt/corral; \
    /opt/uv/bin/uv pip install --quiet --python /opt/corral --require-hashes --compile-bytecode --requirements /requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY services services
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \
    --mount=type=bind,source=ops/image/site.sh,target=/site.sh \
    --mount=type=cache,target=/root/.cache/uv \
    . /site.sh; \
    echo 'hatchling==1.27.0' > /build-constraints.txt; \
    /opt/uv/bin/uv pip install --quiet --python /opt/corral --no-deps --compile-bytecode --build-constraints /build-constraints.txt .

FROM ${PYTHON_IMAGE} AS corral
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Corral" \
      org.opencontainers.image.description="A team's shared inference cluster for llama.cpp models: gateway, registry, node agent, command line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The same user id in every image, because workers read the files that agents write. Volumes inherit the folders' owner.
RUN groupadd --gid 10001 corral \
    && useradd --uid 10001 --gid corral --home-dir /var/lib/corral --no-create-home --shell /usr/sbin/nologin corral \
    && install --directory --owner corral --group corral /var/lib/corral /var/lib/corral/models /var/lib/corral/node
WORKDIR /srv/corral
COPY alembic.ini ./
COPY migrations migrations
COPY ops/image/health.py ./
COPY --from=environment /opt/corral /opt/corral
ENV PATH=/opt/corral/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CORRAL_STORE=/var/lib/corral/models CORRAL_STATE=/var/lib/corral/node
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["python", "-I", "/srv/corral/health.py"]
CMD ["corral", "--help"]

FROM corral AS inventory
RUN --mount=type=bind,source=ops/image/sbom.py,target=/sbom.py ["python", "/sbom.py", "corral", "/tmp/corral.cdx.json"]

FROM scratch AS sbom
COPY --from=inventory /tmp/corral.cdx.json /

# The last stage is the default target of `docker build`.
FROM corral
