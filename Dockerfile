# One image for api, worker and flower. On a GPU node PyPI's torch brings its own CUDA libraries; the
# host needs the NVIDIA driver and container toolkit.
FROM python:3.11-slim

# A new named volume takes its owner from the folder that it is mounted on.
RUN useradd --create-home --uid 1000 fleet \
    && install -d -o fleet -g fleet /data /data/models /home/fleet/.cache /home/fleet/.cache/huggingface
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies alone first, so that a change of our code does not install torch again. What it
# builds must go: setuptools would take these empty modules for newer than the real ones.
RUN mkdir api cli jobs worker && touch api/__init__.py cli/__init__.py jobs/__init__.py worker/__init__.py \
    && pip install --no-cache-dir -c constraints.txt ".[worker]" \
    && pip uninstall --yes diffusion-fleet && rm -r build api cli jobs worker
COPY api api
COPY cli cli
COPY jobs jobs
COPY worker worker
RUN pip install --no-cache-dir --no-deps . && rm -r build

USER fleet
# Not /app: what runs is the installed package, compiled, and no second copy of it.
WORKDIR /home/fleet
ENV FLEET_DATA_DIR=/data PYTHONUNBUFFERED=1
EXPOSE 8000
# What its processes count of their requests lies in a folder, for /metrics of any of them.
CMD ["sh", "-c", "export PROMETHEUS_MULTIPROC_DIR=$(mktemp -d); exec gunicorn 'api:create_app()' --bind 0.0.0.0:8000 --worker-class gthread --workers 2 --threads 256 --graceful-timeout 65 --keep-alive 75"]
