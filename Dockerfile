# The service alone, without an embedded PostgreSQL: give it AUDIT_DSN.

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements-server.lock requirements-local.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements-local.lock
RUN python3 -m venv /opt/audit \
    && /opt/audit/bin/pip install --require-hashes -r requirements-server.lock
COPY pyproject.toml README.md LICENSE ./
COPY audit audit
COPY sql sql
COPY migrations migrations
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheel . \
    && /opt/audit/bin/pip install --no-deps /opt/wheel/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home audit
COPY --from=build /opt/audit /opt/audit
ENV PATH=/opt/audit/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    USER=audit \
    AUDIT_HOST=0.0.0.0
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["audit"]
CMD ["serve"]
