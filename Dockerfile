# One image for api, worker and flower. On a GPU node PyPI's torch brings its own CUDA libraries; the
# host needs the NVIDIA driver and container toolkit.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 fleet && mkdir /data && chown fleet /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies alone first, so that a change of our code does not install torch again.
RUN mkdir api cli jobs worker && touch api/__init__.py cli/__init__.py jobs/__init__.py worker/__init__.py \
    && pip install --no-cache-dir -c constraints.txt ".[worker]" \
    && pip uninstall --yes diffusion-fleet
COPY api api
COPY cli cli
COPY jobs jobs
COPY worker worker
RUN pip install --no-cache-dir --no-deps .

USER fleet
ENV FLEET_DATA_DIR=/data PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8000
CMD ["gunicorn", "api:create_app()", "--bind", "0.0.0.0:8000", "--worker-class", "gthread", "--workers", "2", "--threads", "64"]
