# Targets: service (answers, refreshes, monitors; without torch), offline (trains and publishes), loadtest (locust),
# gateway (nginx before the service's replicas). Every package's version is in constraints.txt, also of what builds ours.
#   docker build --target service --tag srp4ctr-service .
# For one and the same base for ever: --build-arg PYTHON=python:3.11-slim-bookworm@sha256:...
ARG PYTHON=python:3.11-slim-bookworm
ARG DEBIAN=debian:bookworm-slim

FROM ${PYTHON} AS python
ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/srp4ctr/bin:$PATH \
    SRP4CTR_VAR_DIR=/srv/srp4ctr/var
# The same numbers everywhere, so that a volume that one image writes another can read.
RUN groupadd --gid 10001 srp4ctr \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /srv/srp4ctr --shell /usr/sbin/nologin srp4ctr \
    && mkdir -p /srv/srp4ctr/var /srv/srp4ctr/records \
    && chown -R srp4ctr:srp4ctr /srv/srp4ctr
WORKDIR /srv/srp4ctr

# What an image needs is installed before the sources come, so that a change of ours does not install it again.
FROM python AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/srp4ctr
COPY deploy/docker/requirements.py pyproject.toml constraints.txt ./

FROM build AS build-wheel
RUN pip install --constraint constraints.txt hatchling
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM build AS build-service
RUN python requirements.py service traces > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=build-wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && pip uninstall --yes setuptools pip

FROM build AS build-loadtest
RUN python requirements.py loadtest service > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=build-wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && pip uninstall --yes setuptools pip

FROM build AS build-offline
# Where torch is looked for besides the usual index, whose torch for Linux brings CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --retries 1 --timeout 15 --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" torch \
    && python requirements.py offline > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=build-wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && pip uninstall --yes pip

FROM python AS offline
COPY --from=build-offline /opt/srp4ctr /opt/srp4ctr
COPY configs configs
# matplotlib and torch keep files of their own where they may write.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
VOLUME /srv/srp4ctr/var
ENTRYPOINT ["srp4ctr"]
CMD ["pipeline", "configs/synthetic.toml", "--data", "synthetic", "--unless-active"]

FROM python AS loadtest
COPY --from=build-loadtest /opt/srp4ctr /opt/srp4ctr
# A volume that is mounted there begins with this owner.
RUN mkdir load && chown srp4ctr:srp4ctr load
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
ENTRYPOINT ["python", "-m", "srp4ctr_loadtest.load"]

FROM ${DEBIAN} AS gateway
# Debian's archive has but one version of nginx a release, with what was mended in it since.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx-light curl \
    && rm -rf /var/lib/apt/lists/* /etc/nginx/sites-enabled
COPY deploy/nginx/nginx.conf /etc/nginx/nginx.conf
COPY --chmod=755 deploy/nginx/gateway.sh /usr/local/bin/gateway
USER 33:33
EXPOSE 8000
HEALTHCHECK --interval=2s --timeout=2s --start-period=10s --retries=5 CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8000/livez"]
ENTRYPOINT ["gateway"]

# The last target is what `docker build .` makes.
FROM python AS service
COPY --from=build-service /opt/srp4ctr /opt/srp4ctr
# Torch is for training alone; here it would be size and start-up time for nothing.
RUN if python -c 'import torch' 2> /dev/null; then echo 'the service image can import torch' >&2; exit 1; fi \
    && srp4ctr serve --help > /dev/null
ENV SRP4CTR_HOST=0.0.0.0 SRP4CTR_PORT=8000
USER 10001:10001
VOLUME /srv/srp4ctr/var
EXPOSE 8000
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=5 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["srp4ctr"]
CMD ["serve"]
