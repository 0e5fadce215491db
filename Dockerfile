# densecl on the CPU or on NVIDIA GPUs. A container runs the demo unless it is told else:
#     docker build -t densecl .
#     docker run --rm -v "$PWD/runs:/runs" densecl
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/images:/images:ro" -v "$PWD/runs:/runs" densecl \
#         pretrain --data /images --out /runs/mine
# --build-arg TORCH_INDEX=URL takes torch from another index, such as PyTorch's for the CPU: 1 GB instead of 7.
# `docker build --target demo .` runs the demo within the build, as a test.
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir "hatchling>=1.27" && python -m hatchling build -t wheel -d /wheel

FROM python:3.12-slim AS tool
ARG TORCH_INDEX=""
COPY --from=wheel /wheel /wheel
# Versions are those that the wheel asks for. Workers share images through /dev/shm, of which docker gives 64 MB: hence
# --shm-size above.
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; fi \
    && pip install --no-cache-dir /wheel/*.whl \
    && useradd --create-home --uid 1000 densecl \
    && mkdir /runs \
    && chown densecl /runs
USER 1000
WORKDIR /runs
VOLUME /runs
RUN densecl --version && python -c "import densecl.demo"

FROM tool AS demo
RUN densecl demo --out /tmp/demo

FROM tool
ENTRYPOINT ["densecl"]
CMD ["demo", "--out", "/runs/demo"]
