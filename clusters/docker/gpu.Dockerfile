# An image with Rondo for machines with NVIDIA GPUs, for `kind: kuberay`. The driver comes from the machine, CUDA's
# libraries with PyTorch. From the repository's root:
#   docker build -f clusters/docker/gpu.Dockerfile -t rondo:gpu .
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/rondo
COPY pyproject.toml README.md LICENSE ./
COPY pipelines pipelines
COPY stages stages
COPY clusters clusters
RUN /opt/rondo/bin/pip install --no-cache-dir ".[gpu,quantization]"

FROM python:3.11-slim
# gcc: Triton compiles a launcher for its kernels; wget: KubeRay asks with it whether Ray is well.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home rondo \
    && install -d -o rondo /rondo /rondo/cache
COPY --from=build /opt/rondo /opt/rondo
ENV PATH=/opt/rondo/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/rondo
CMD ["rondo", "--help"]
