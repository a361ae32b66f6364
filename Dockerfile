# Runs the application as a MONAI Application Package does: docker run -v IN:/var/holoscan/input:ro -v OUT:/var/holoscan/output IMAGE
ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE}

LABEL org.opencontainers.image.title="covid-ct-map" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.description="Explainable COVID-19 findings from chest CT. Research use only. Not for diagnostic use." \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /opt/holoscan

# The packages alone come first, so that a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt \
    # Holoscan's wheel finishes its installation when Python starts for the first time, and must write for that.
    && /opt/venv/bin/python -c "import monai.deploy.core"

COPY LICENSE README.md app.yaml ./
COPY models models
COPY operators operators
COPY app app

# USER is asked for by libraries where the uid has no entry in /etc/passwd.
ENV PATH=/opt/venv/bin:$PATH \
    USER=covid-ct \
    PYTHONPATH=/opt/holoscan \
    PYTHONDONTWRITEBYTECODE=1 \
    HOLOSCAN_APPLICATION=/opt/holoscan/app \
    HOLOSCAN_INPUT_PATH=/var/holoscan/input \
    HOLOSCAN_OUTPUT_PATH=/var/holoscan/output \
    HOLOSCAN_MODEL_PATH=/opt/holoscan/models

RUN mkdir -p /var/holoscan/input /var/holoscan/output && chown -R 1000:1000 /var/holoscan

WORKDIR /var/holoscan
USER 1000:1000
ENTRYPOINT ["python3", "-u", "/opt/holoscan/app/"]
