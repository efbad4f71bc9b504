# The service as an image: `docker build -t smart-assets .`, see docs/containers.md.
#
# PYTHON_IMAGE may be any Debian with Python 3.11 or newer and its venv module. The digest is that of the tag's
# manifest for all architectures.
ARG PYTHON_IMAGE=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${PYTHON_IMAGE} AS build

# Libraries beside those of the default installation: of postgres, redis, gcs, azure.
ARG EXTRAS="postgres redis"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
WORKDIR /build

COPY requirements requirements
RUN python3 -m venv /opt/smart-assets \
    && /opt/smart-assets/bin/pip install --require-hashes -r requirements/serve.txt \
    && for extra in ${EXTRAS}; do \
         /opt/smart-assets/bin/pip install --require-hashes -r "requirements/${extra}.txt" || exit 1; \
       done

COPY pyproject.toml README.md LICENSE ./
COPY backend backend
# What only builds is not taken along, nor what AWS has beside S3 and the ways to sign in to it. Compiled here, because
# nothing can be written where it runs.
RUN /opt/smart-assets/bin/pip install --no-deps --no-build-isolation . \
    && /opt/smart-assets/bin/pip uninstall --yes hatchling editables pathspec pluggy trove-classifiers pip \
    && find /opt/smart-assets/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
         ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
    && python3 -m compileall -q -j 0 /opt/smart-assets/lib


FROM ${PYTHON_IMAGE}

RUN groupadd --system --gid 10001 assets \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin assets \
    && install --directory --owner=assets --group=assets --mode=0750 /data

COPY --from=build /opt/smart-assets /opt/smart-assets

# It listens for others, and so does not start without ASSETS_API_KEYS.
ENV ASSETS_HOST=0.0.0.0 \
    ASSETS_PORT=8000 \
    ASSETS_DATA_DIR=/data \
    ASSETS_LOG_FORMAT=json \
    PATH=/opt/smart-assets/bin:${PATH}

# Nothing is written but below /data (and where a command is told to).
USER 10001:10001
WORKDIR /opt/smart-assets
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"ASSETS_PORT\"]}/health/ready', timeout=4)"]
CMD ["smart-assets", "serve"]
