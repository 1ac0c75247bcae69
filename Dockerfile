# A machine that only answers: no TensorFlow, no root, a root file system that may be read-only.
# docs/deployment.md says how to run it; tests/deploy/test_node_install.py runs the same steps.
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/node.txt requirements/node.txt
RUN python -m venv /opt/steatosis
RUN /opt/steatosis/bin/pip install --no-cache-dir --require-hashes -r requirements/node.txt
COPY setup.cfg setup.py README.md LICENSE ./
COPY steatosis_tf steatosis_tf
RUN /opt/steatosis/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home steatosis
COPY --from=build /opt/steatosis /opt/steatosis
ENV PATH=/opt/steatosis/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/steatosis
# The model that comes with the package is whole and answers as when it was made.
HEALTHCHECK --interval=10m --timeout=1m CMD ["steatosis", "verify"]
ENTRYPOINT ["steatosis"]
CMD ["--help"]
