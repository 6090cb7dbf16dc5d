# ganflow: all components of the pipelines. mlflow-server: MLflow with its clients for PostgreSQL and S3.
# postgres, object-store: for a cluster that reaches no registry; where one is reached, k8s/ takes the projects' own.
# ganflow-offline: ganflow from the wheels in docker/wheels. docs/cluster.md says how to build them; no BuildKit is needed.
#
# PIP_INDEX_URL and PIP_TRUSTED_HOST, which pip finds in its environment, are named in each stage that runs pip, since not
# every builder hands them on from one stage to the next.
ARG BASE_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE} AS runtime
# The name is for what asks who it is; pods may have any other number. Only /tmp has to be writable.
RUN groupadd --non-unique --gid 1000 ganflow \
 && useradd --non-unique --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ganflow
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=ganflow \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GIT_PYTHON_REFRESH=quiet
WORKDIR /workspace

FROM ${BASE_IMAGE} AS builder
WORKDIR /build
COPY docker/install.sh ./
COPY docker/wheels wheels

FROM builder AS ganflow-package
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY docker/build.lock ./
RUN sh install.sh build.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/venv/bin/hatchling build -t wheel -d dist \
 && /opt/venv/bin/python -m pip install --quiet --no-deps --no-index --prefix /package dist/*.whl

FROM builder AS mlflow-server-packages
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY docker/mlflow-server.lock ./
# pip, and what Debian's venv brings along, are in no lock and of no use any more.
RUN sh install.sh mlflow-server.lock && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM builder AS object-store-packages
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY docker/object-store.lock ./
RUN sh install.sh object-store.lock

FROM ${BASE_IMAGE} AS postgres
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/*/main
USER 1000:1000

FROM runtime AS object-store
COPY --from=object-store-packages /opt/venv/bin/weed /usr/bin/weed
USER 1000:1000
CMD ["weed", "version"]

FROM runtime AS mlflow-server
COPY --from=mlflow-server-packages /opt/venv /opt/venv
USER 1000:1000
CMD ["mlflow", "server", "--help"]

FROM builder AS ganflow-wheels
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG TORCH_INDEX
COPY docker/ganflow.lock ./
RUN sh install.sh ganflow.lock && /opt/venv/bin/python -m pip uninstall --yes --quiet pip

FROM runtime AS ganflow-offline
COPY --from=ganflow-wheels /opt/venv /opt/venv
COPY --from=ganflow-package /package /opt/venv
USER 1000:1000
CMD ["ganflow", "--help"]

# The dependencies are installed in place, since some builders read all of a copied folder again before they trust their
# cache; the package is a layer of its own above them, so that an edit of the code builds and sends that one alone.
# Last, so that it is what is built where no target is named.
FROM runtime AS ganflow-dependencies
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG TORCH_INDEX
COPY docker/install.sh docker/ganflow.lock /build/
RUN cd /build && sh install.sh ganflow.lock && /opt/venv/bin/python -m pip uninstall --yes --quiet pip

FROM ganflow-dependencies AS ganflow
COPY --from=ganflow-package /package /opt/venv
USER 1000:1000
CMD ["ganflow", "--help"]
