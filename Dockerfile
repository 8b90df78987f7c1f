# docker build --tag IMAGE .                                   for TPUs
# docker build --tag IMAGE --build-arg JAX='jax[cuda12]' .     for NVIDIA GPUs
FROM python:3.12-slim

ARG JAX='jax[tpu]'
# Extras of this package: gcs for folders in gs://, s3 for s3://.
ARG EXTRAS=gcs
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /solo

# Dependencies seldom change: they come first, so that a new commit reuses this layer.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir solo && touch solo/__init__.py && pip install ".[$EXTRAS]" "$JAX" && pip uninstall --yes solo-vlm

COPY solo solo
COPY configs configs
RUN pip install --no-deps . && solo --help > /dev/null && python -m solo.launch.restarts --help > /dev/null
