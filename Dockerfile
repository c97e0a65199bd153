# megatron-lst in a container: training, data preparation, evaluation.
#
#   docker build -t megatron-lst .                                              on NVIDIA's PyTorch image
#   docker build -t megatron-lst:cpu --build-arg BASE=python:3.11-slim-bookworm \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .            small, for CPUs
#
# NVIDIA's image brings CUDA, NCCL, TransformerEngine and apex, and its own builds of torch and numpy, which stay.
ARG BASE=nvcr.io/nvidia/pytorch:25.06-py3
FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG TORCH_INDEX=
ARG UID=10001
LABEL org.opencontainers.image.title="megatron-lst" \
      org.opencontainers.image.description="Pretrain the Latent Speech-Text Transformer on Megatron-core" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PATH=/opt/megatron-lst/venv/bin:${PATH} PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# NVIDIA's image constrains every call of pip by a list of its own, of packages that it does not all have. What it does
# have is pinned below.
ENV PIP_CONSTRAINT=

# Dependencies first: they change less often than the source. torch is installed only where the base has none.
WORKDIR /opt/megatron-lst
COPY requirements/ requirements/
# Triton compiles the launchers of its kernels with a C compiler and Python.h when they are first used.
# hadolint ignore=DL3008
RUN python3 -c 'import pathlib, shutil, sysconfig; ok = (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file() and shutil.which("gcc"); raise SystemExit(not ok)' \
 || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv --system-site-packages venv \
 && python3 requirements/pins.py > pins.txt \
 && torch="$(python3 -c 'import torch; print("torch==" + torch.__version__)' 2>/dev/null || grep '^torch==' requirements/torch.txt)" \
 && pip install "${torch}" -r requirements/train.txt -c pins.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
 && pip install --no-deps -r requirements/no-deps.txt

COPY pyproject.toml README.md LICENSE ./
COPY megatron_lst/ megatron_lst/
COPY kernels/ kernels/
COPY data_prep/ data_prep/
COPY launchers/ launchers/
COPY configs/ configs/
RUN pip install --no-deps . \
 && useradd --uid "${UID}" --create-home --shell /bin/bash lst \
 && mkdir /runs /data \
 && chown lst:lst /runs /data

USER ${UID}
WORKDIR /runs
VOLUME ["/runs"]
# Alive: the installed program answers. Whether a run makes progress is the run's own watchdog's business.
HEALTHCHECK --interval=60s --timeout=50s --start-period=120s --retries=3 CMD ["python", "-c", "import megatron_lst"]
ENTRYPOINT ["lst"]
CMD ["doctor"]
