# The MONAI Application Package: docker build -t covid-ct-map .        (make map does it where no registry can be reached)
# A build argument makes it for GPUs: --build-arg VARIANT=gpu
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS packages
ARG VARIANT=cpu
# Where the build of PyTorch without CUDA is found; an index as pip knows it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
# build/wheels may hold all packages; then the build needs no network. The lists come before the code, so that a change
# of the code does not install them again.
COPY pyproject.toml ./
COPY constraints.txt build/wheel[s] wheels/
RUN set -eu; \
    list() { python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']$1, sep='\n')"; }; \
    list "['dependencies']" > runtime.txt; \
    list "['optional-dependencies']['package']" > describing.txt; \
    index=""; \
    if ls wheels/*.whl > /dev/null 2>&1; then \
        index=--no-index; \
        case "$(cat wheels/.made-for)" in \
            "${VARIANT} "*" $(cat pyproject.toml wheels/constraints.txt | sha256sum)") ;; \
            *) echo "error: build/wheels holds the packages of another build; remove it, or use make map" >&2; exit 1 ;; \
        esac; \
    elif [ "${VARIANT}" = cpu ]; then index="--extra-index-url ${TORCH_INDEX}"; fi; \
    install="install --quiet --no-cache-dir --no-compile --disable-pip-version-check -c wheels/constraints.txt"; \
    python3 -m venv --without-pip /opt/venv; \
    python3 -m pip --python /opt/venv/bin/python ${install} ${index} --find-links wheels -r runtime.txt; \
    python3 -m pip ${install} ${index} --find-links wheels --target /opt/describing -r describing.txt; \
    # Holoscan's wheel finishes its installation when Python starts for the first time, and must write for that.
    /opt/venv/bin/python -c "import torch, cuda.pathfinder as c; c.load_nvidia_dynamic_lib('cudart'); import monai.deploy.core; built = 'gpu' if torch.version.cuda else 'cpu'; \
        assert built == '${VARIANT}', f'PyTorch is the {built} build, not that for ${VARIANT}'"; \
    # Headers, static libraries, test programs and OpenVINO for other processors than CPUs are of no use here.
    cd /opt/venv/lib/python3*/site-packages; \
    rm -rf torch/include torch/test nvidia/*/include openvino/include openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so; \
    find /opt/venv -name '*.a' -delete; \
    find /opt/venv -name __pycache__ -type d -prune -exec rm -rf {} +

# The files of the package, and what it is made of.
FROM packages AS package
ARG VARIANT=cpu
ARG SOURCE_DATE_EPOCH=0
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
WORKDIR /checkout
COPY . ./
RUN set -eu; \
    if [ "${VARIANT}" = gpu ]; then gpus=1; else gpus=0; fi; \
    /opt/venv/bin/python -m app package /package --gpus "${gpus}"; \
    /opt/venv/bin/python /package/opt/holoscan/app convert -m /package/opt/holoscan/models; \
    PYTHONPATH=/opt/describing /opt/venv/bin/python -m app sbom /package/opt/holoscan/docs; \
    # Compiled here, because the root may be read-only; not by the time of the file, so that two builds are the same.
    # PyTorch has files for other versions of Python, named after these, which cannot be compiled.
    /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/_?py3[0-9]+_[a-z_]+\.py$' \
        /opt/venv/lib /package/opt/holoscan/app

FROM ${BASE}
ARG VARIANT=cpu
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="covid-ct-map" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.description="Explainable COVID-19 findings from chest CT. Research use only. Not for diagnostic use." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="covid-ct-map developers" \
      org.opencontainers.image.documentation="/opt/holoscan/docs/README.md" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.monai.deploy.app-sdk="4.0.0" \
      org.nvidia.holoscan="4.2.0"

COPY --from=package /opt/venv /opt/venv
COPY --from=package /package /

# The paths are those of the manifests. USER is asked for by libraries where the uid has no entry in /etc/passwd.
ENV PATH=/opt/venv/bin:$PATH \
    USER=covid-ct \
    PYTHONDONTWRITEBYTECODE=1 \
    HOLOSCAN_APPLICATION=/opt/holoscan/app/ \
    HOLOSCAN_INPUT_PATH=/var/holoscan/input/ \
    HOLOSCAN_OUTPUT_PATH=/var/holoscan/output/ \
    HOLOSCAN_WORKDIR=/var/holoscan/ \
    HOLOSCAN_MODEL_PATH=/opt/holoscan/models/ \
    HOLOSCAN_CONFIG_PATH=/var/holoscan/app.yaml \
    HOLOSCAN_APP_MANIFEST_PATH=/etc/holoscan/app.json \
    HOLOSCAN_PKG_MANIFEST_PATH=/etc/holoscan/pkg.json \
    HOLOSCAN_DOCS=/opt/holoscan/docs/ \
    HOLOSCAN_LOGS=/var/holoscan/logs/ \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /var/holoscan
USER 1000:1000
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["python3", "-u", "/opt/holoscan/app/", "check"]
ENTRYPOINT ["python3", "-u", "/opt/holoscan/app/"]
