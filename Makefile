# Two commands are all a new user needs: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
SUPPLY := .venv/supply
EXTRAS := dev,pacs,fast,sweep,table1,dask

.PHONY: demo byra test test-slow fuzz test-wheel bench table1 ui install browser orthanc lock sbom audit lint clean

demo: .venv/.core
	$(BIN)/steatosis demo

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory browser
	@test -x .venv/orthanc/usr/sbin/Orthanc || $(MAKE) --no-print-directory orthanc
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The slow tests, then the others again, and which lines of the package neither has reached.
test-slow: .venv/.dev
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory browser
	@test -x .venv/orthanc/usr/sbin/Orthanc || $(MAKE) --no-print-directory orthanc
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --durations=0 --cov=steatosis_tf --cov-report=
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --cov=steatosis_tf --cov-append \
		--cov-report=term-missing:skip-covered

# The tests again on what the wheel installs in an empty environment: its files stand where the
# sources would. TESTS=tests/deploy runs some.
WHEEL := .venv/wheel
test-wheel: $(SUPPLY)/.done
	$(PYTHON) -m venv --clear $(WHEEL)
	mkdir $(WHEEL)/tree && git archive HEAD | tar -x -C $(WHEEL)/tree
	$(SUPPLY)/bin/python -m build --outdir $(WHEEL)/dist $(WHEEL)/tree
	$(WHEEL)/bin/pip install --disable-pip-version-check -q -c constraints.txt \
		"$$(ls $(WHEEL)/dist/*.whl)[$(EXTRAS)]"
	rm -r $(WHEEL)/tree/steatosis_tf
	ln -s $(CURDIR)/$(WHEEL)/lib/python3.*/site-packages/steatosis_tf $(WHEEL)/tree/
	cd $(WHEEL)/tree && ../bin/python -m pytest -m "not slow" $(TESTS)

# Coverage-guided fuzzing of five readers, SECONDS each; what is found lies in tests/faults/findings.
SECONDS ?= 600
fuzz: .venv/.dev
	$(BIN)/python -m pip install --quiet atheris
	for target in image dicom labels decisions bundle; do \
		$(BIN)/python tests/faults/fuzz.py $$target --seconds $(SECONDS) || exit 1; done

# Ratios measured side by side (4 minutes on two idle cores), then peak memory to 100,000 frames,
# which takes longer, needs 8 GB in runs/memory and goes on where it stopped.
bench: .venv/.dev
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/memory.py --folder runs/memory

# Every system of the paper's Table I under one protocol; goes on where it stopped. ONLY=NAME runs
# one system, WEIGHTS=imagenet starts the pretrained ones from ImageNet.
DATA ?= ../shared/data
table1: .venv/.dev
	$(BIN)/steatosis manifest $(DATA)/byra2018/labels.csv --output runs/byra.csv
	$(BIN)/python -m experiments.table1.run_all --manifest runs/byra.csv \
		$(if $(ONLY),--only $(ONLY)) $(if $(WEIGHTS),--weights $(WEIGHTS))

# The best automatic system, leave-one-patient-out, beside the published anchors; goes on where it
# stopped. DATA holds byra2018/, see docs/data.md.
byra: .venv/.core
	$(BIN)/python -m experiments.byra --data $(DATA) --out runs/byra

# MLflow reports its use to its makers unless told not to, and starts workers of 1.5 GB for jobs that
# nothing here asks for.
PORT ?= 5000
ui: .venv/.core
	@$(BIN)/python -c 'from steatosis_tf.tracking import ui_address; print("the newest runs:", ui_address(port=$(PORT)))'
	@PYTHONWARNINGS=ignore MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --port $(PORT) --backend-store-uri "sqlite:///$${STEATOSIS_MLRUNS:-mlruns}/mlflow.db"

install: .venv/.core
	@echo "now: . .venv/bin/activate, then steatosis page, or steatosis --help"

# The browser tests skip, and say so, where this cannot be done.
browser:
	-apt-get update -qq && apt-get install -y -qq chromium

# A PACS for the tests, unpacked from Debian's packages: no service is installed or started. The
# tests that need it skip, and say so, where this cannot be done.
orthanc: | .venv/bin/python
	-apt-get update -qq
	-mkdir -p .venv/orthanc/debs/partial && apt-get install -qq -y --download-only \
		--no-install-recommends -o Debug::NoLocking=1 \
		-o Dir::Cache::archives="$(CURDIR)/.venv/orthanc/debs" orthanc orthanc-dicomweb dcmtk \
		&& for deb in .venv/orthanc/debs/*.deb; do dpkg -x "$$deb" .venv/orthanc; done

# The tools of supply, in an environment of their own: what they need is none of the package's business.
$(SUPPLY)/.done: | .venv/bin/python
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --disable-pip-version-check -q \
		pip-tools==7.6.2 build==1.6.1 cyclonedx-bom==7.5.0 pip-audit==2.10.1 pip-licenses==5.5.5
	touch $@

# requirements/node.txt, from the public index alone, so that its hashes hold everywhere.
lock: $(SUPPLY)/.done
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock" \
		$(SUPPLY)/bin/pip-compile -q --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint constraints.txt --output-file requirements/node.txt requirements/node.in

# What a node is made of: bill of materials (CycloneDX), and the licences as a table.
.venv/node/.done: requirements/node.txt | .venv/bin/python
	$(PYTHON) -m venv --clear .venv/node
	.venv/node/bin/pip install --disable-pip-version-check -q --require-hashes -r requirements/node.txt
	touch $@

sbom: $(SUPPLY)/.done .venv/node/.done
	$(SUPPLY)/bin/cyclonedx-py environment --output-reproducible -o sbom.json .venv/node/bin/python
	$(SUPPLY)/bin/pip-licenses --python=.venv/node/bin/python --with-system --ignore-packages pip \
		--no-version --format=markdown >requirements/licences.md

# Known faults of what is pinned. Without --strict a package that the database was not asked about
# would pass for one without faults.
audit: $(SUPPLY)/.done
	$(SUPPLY)/bin/pip-audit --strict --disable-pip --requirement requirements/node.txt

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv

.venv/.core: setup.cfg constraints.txt | .venv/bin/python
	@echo "installing into .venv: 2 to 4 minutes, 3 GB on the disk"
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv demo runs
