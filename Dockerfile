# opd-ray on machines without GPUs:
#     docker build -t opd-ray .
#     docker run --rm --shm-size=2g -v "$PWD/outputs:/workspace/outputs" opd-ray demo
FROM python:3.11-slim-bookworm

# torch.compile and vLLM's kernels on CPUs are compiled here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/opd-ray
COPY requirements/cpu.txt requirements/cpu.txt
# Without dependencies: the lock has them all, and leaves out what breaks others.
RUN pip install --no-cache-dir --no-deps -r requirements/cpu.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY opd_ray opd_ray
COPY actors actors
COPY configs configs
RUN pip install --no-cache-dir --no-deps .

RUN useradd --uid 10001 --create-home runner && mkdir /workspace && chown runner /workspace
USER 10001
WORKDIR /workspace
ENTRYPOINT ["opd-ray"]
CMD ["--help"]
